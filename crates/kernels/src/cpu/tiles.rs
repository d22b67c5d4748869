//! A matrix whose tiles the parts of one job write side by side. A tile is a range of columns in
//! some rows: no slice holds it, so the parts share a pointer and promise to keep apart.

use std::marker::PhantomData;
use std::ops::Range;

/// A `(rows, cols)` matrix, borrowed for one job.
#[derive(Debug)]
pub(super) struct Tiles<'a, T> {
    base: *mut T,
    rows: usize,
    cols: usize,
    values: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer is used only by callers of `row`, `rows` and `at`, who keep their ranges
// apart.
unsafe impl<T: Send> Sync for Tiles<'_, T> {}
// SAFETY: as above; it stands for a `&mut [T]`, which may be sent.
unsafe impl<T: Send> Send for Tiles<'_, T> {}

impl<'a, T> Tiles<'a, T> {
    /// Panics where `values` is too short.
    pub(super) fn new(values: &'a mut [T], rows: usize, cols: usize) -> Self {
        let len = rows.checked_mul(cols);
        assert!(len.is_some_and(|len| len <= values.len()), "{rows} x {cols}");
        Self { base: values.as_mut_ptr(), rows, cols, values: PhantomData }
    }

    /// The address of a value.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn at(&self, row: usize, col: usize) -> *mut T {
        assert!(row < self.rows && col < self.cols);
        self.base.wrapping_add(row * self.cols + col)
    }

    /// Columns of the matrix.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Columns `cols` of row `row`.
    ///
    /// # Safety
    /// While the slice lives, no other one may overlap it.
    #[inline(always)]
    pub(super) unsafe fn row(&self, row: usize, cols: &Range<usize>) -> &'a mut [T] {
        assert!(row < self.rows && cols.start <= cols.end && cols.end <= self.cols);
        // SAFETY: row and columns were checked against the matrix, which lies inside the slice
        // borrowed for `'a`; the caller keeps others away from this range.
        unsafe {
            let start = self.base.add(row * self.cols + cols.start);
            std::slice::from_raw_parts_mut(start, cols.len())
        }
    }

    /// Columns `cols` of rows `first..first + N`; empty slices for rows from `end` on.
    ///
    /// # Safety
    /// As of [`Self::row`].
    pub(super) unsafe fn rows<const N: usize>(
        &self,
        first: usize,
        end: usize,
        cols: &Range<usize>,
    ) -> [&'a mut [T]; N] {
        std::array::from_fn(|i| {
            if first + i >= end {
                return &mut [][..];
            }
            // SAFETY: rows differ; else the caller's promise.
            unsafe { self.row(first + i, cols) }
        })
    }
}
