//! Rectangles of a matrix, handed to the parts of a job: row ranges crossed with strips of
//! columns. Every part owns its own rectangle and nothing else, so no part of `for_each_rect` needs
//! `unsafe`.

use std::ops::Range;

use super::pool::Pool;
use super::tiles::Tiles;

/// A row-major matrix to be cut into strips of columns.
#[derive(Debug)]
pub(crate) struct Strips<'a, T> {
    /// `(rows, row_len)`, or longer.
    pub(crate) data: &'a mut [T],
    /// Values in a row; 0 for a matrix that is not there.
    pub(crate) row_len: usize,
    /// Columns of a strip; the last one may be narrower.
    pub(crate) strip_len: usize,
}

/// A rectangle of a matrix.
#[derive(Debug)]
pub(crate) struct Rect<'a, T> {
    matrix: &'a Tiles<'a, T>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl<'a, T> Rect<'a, T> {
    /// Rows × columns of `matrix`.
    ///
    /// # Safety
    /// While it lives, no other rectangle may overlap it.
    pub(super) unsafe fn new(
        matrix: &'a Tiles<'a, T>,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Self {
        Self { matrix, rows, cols }
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows.len(), self.cols.len())
    }

    /// The address of a value, and how many values lie from one row to the next. Through it the
    /// rectangle may be read and written while it is borrowed.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn at(&mut self, row: usize, col: usize) -> (*mut T, usize) {
        assert!(row < self.rows.len() && col < self.cols.len());
        let at = self.matrix.at(self.rows.start + row, self.cols.start + col);
        (at, self.matrix.cols())
    }

    /// Row `index` of the rectangle.
    #[inline(always)]
    pub(crate) fn row(&mut self, index: usize) -> &mut [T] {
        assert!(index < self.rows.len());
        // SAFETY: whoever made it sees to it that no other rectangle overlaps this one, and it
        // lends one row at a time.
        unsafe { self.matrix.row(self.rows.start + index, &self.cols) }
    }
}

impl Pool {
    /// Calls `part(range, strip, rectangles)` for every range of rows and every strip, one
    /// rectangle of each matrix. The ranges ascend and do not overlap.
    pub(crate) fn for_each_rect<T: Send, const N: usize>(
        &self,
        matrices: [Strips<'_, T>; N],
        row_ranges: &[Range<usize>],
        part: impl Fn(usize, usize, [Rect<'_, T>; N]) + Sync,
    ) {
        let mut end = 0;
        for rows in row_ranges {
            assert!(end <= rows.start && rows.start <= rows.end, "ranges of rows overlap");
            end = rows.end;
        }
        let mut n_strips = 0;
        for m in &matrices {
            assert!(m.strip_len > 0 || m.row_len == 0);
            n_strips = n_strips.max(m.row_len.div_ceil(m.strip_len.max(1)));
        }
        let matrices = matrices.map(|m| (Tiles::new(m.data, end, m.row_len), m.strip_len));
        let matrices = &matrices;
        self.run(row_ranges.len() * n_strips, |i| {
            let (range, strip) = (i / n_strips, i % n_strips);
            let rects = std::array::from_fn(|m| {
                let (matrix, strip_len) = &matrices[m];
                let col = |strip: usize| strip.saturating_mul(*strip_len).min(matrix.cols());
                Rect { matrix, rows: row_ranges[range].clone(), cols: col(strip)..col(strip + 1) }
            });
            part(range, strip, rects);
        });
    }

    /// Calls `part(i, chunks)` for chunk `i` of each slice, `chunk_len` values; the last may be
    /// shorter. The slices are of equal length.
    pub(crate) fn for_each_chunks<T: Send, const N: usize>(
        &self,
        slices: [&mut [T]; N],
        chunk_len: usize,
        part: impl Fn(usize, [&mut [T]; N]) + Sync,
    ) {
        let matrices = slices.map(|data| {
            let row_len = data.len();
            Strips { data, row_len, strip_len: chunk_len }
        });
        assert!(matrices.iter().all(|m| m.row_len == matrices[0].row_len));
        let whole = 0..1;
        self.for_each_rect(matrices, std::slice::from_ref(&whole), |_, i, mut rects| {
            part(i, rects.each_mut().map(|rect| rect.row(0)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_tile_the_matrices() {
        let pool = Pool::new(3);
        let (mut a, mut b) = (vec![0usize; 7 * 10], vec![0usize; 7 * 3]);
        let matrices = [
            Strips { data: &mut a, row_len: 10, strip_len: 4 },
            Strips { data: &mut b, row_len: 3, strip_len: 1 },
        ];
        pool.for_each_rect(matrices, &[0..2, 2..3, 4..7], |range, strip, mut rects| {
            for rect in &mut rects {
                for row in 0..rect.rows.len() {
                    rect.row(row).iter_mut().for_each(|v| *v += 1 + range * 3 + strip);
                }
            }
        });
        for row in 0..7 {
            let range = [0, 0, 1, 9, 2, 2, 2][row];
            for col in 0..10 {
                let expected = if row == 3 { 0 } else { 1 + range * 3 + col / 4 };
                assert_eq!(a[row * 10 + col], expected);
            }
            for col in 0..3 {
                let expected = if row == 3 { 0 } else { 1 + range * 3 + col };
                assert_eq!(b[row * 3 + col], expected);
            }
        }
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_ranges_are_refused() {
        let mut data = vec![0; 9];
        let matrix = Strips { data: &mut data, row_len: 3, strip_len: 3 };
        Pool::new(1).for_each_rect([matrix], &[0..2, 1..3], |_, _, _| {});
    }

    #[test]
    fn chunks_of_two_slices_go_together() {
        let pool = Pool::new(2);
        let (mut a, mut b) = (vec![0; 11], vec![0; 11]);
        pool.for_each_chunks([&mut a, &mut b], 4, |i, [a, b]| {
            assert_eq!(a.len(), if i == 2 { 3 } else { 4 });
            a.fill(i);
            b.fill(i + 1);
        });
        assert_eq!(a, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]);
        assert_eq!(b, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]);
    }
}
