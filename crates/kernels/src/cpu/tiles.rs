//! A matrix whose tiles the parts of one job write side by side. A tile is a range of columns in
//! some rows: no slice holds it, so the parts share a pointer and promise to keep apart.

use std::marker::PhantomData;
use std::ops::Range;

/// A `(rows, cols)` matrix, borrowed for one job.
#[derive(Debug)]
pub(super) struct Tiles<'a> {
    base: *mut f32,
    rows: usize,
    cols: usize,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is used only through `row`, whose callers keep their ranges apart.
unsafe impl Sync for Tiles<'_> {}
// SAFETY: as above; it stands for a `&mut [f32]`, which may be sent.
unsafe impl Send for Tiles<'_> {}

impl<'a> Tiles<'a> {
    /// Panics where `values` is too short.
    pub(super) fn new(values: &'a mut [f32], rows: usize, cols: usize) -> Self {
        let len = rows.checked_mul(cols);
        assert!(len.is_some_and(|len| len <= values.len()), "{rows} x {cols}");
        Self { base: values.as_mut_ptr(), rows, cols, values: PhantomData }
    }

    /// Columns of the matrix.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Columns `cols` of rows `first..first + N`; empty slices for rows from `end` on.
    ///
    /// # Safety
    /// While the slices live, no other one may overlap them.
    pub(super) unsafe fn rows<const N: usize>(
        &self,
        first: usize,
        end: usize,
        cols: &Range<usize>,
    ) -> [&'a mut [f32]; N] {
        assert!(end <= self.rows && cols.start <= cols.end && cols.end <= self.cols);
        std::array::from_fn(|i| {
            if first + i >= end {
                return &mut [][..];
            }
            // SAFETY: row and columns were checked against the matrix, which lies inside the
            // slice borrowed for `'a`; the caller keeps others away from this range.
            unsafe {
                let start = self.base.add((first + i) * self.cols + cols.start);
                std::slice::from_raw_parts_mut(start, cols.len())
            }
        })
    }
}
