//! A weight matrix on the processor: packed for the integer dots, the bytes of a file where they
//! lie, or a buffer that is trained. The latter two are rows of blocks of their [`Format`].

use std::ops::Range;

use super::packed::{GROUP_ROWS, Packed};
use super::pool::Pool;
use super::{CpuBuf, Kernels};
use crate::{Format, OutOfMemory, WeightData};

/// A `(rows, cols)` weight.
#[derive(Debug)]
pub enum CpuWeight {
    /// As the file holds it; mapped files are not copied.
    Frozen(WeightData),
    /// Quantised, in the order of the kernels.
    Packed(Packed),
    /// Values that training changes.
    Trainable {
        /// `(rows, cols)`.
        values: CpuBuf,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
}

/// Consecutive rows of a weight as bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowBytes<'a> {
    /// Encoding.
    pub(crate) format: Format,
    /// Whole rows, one after the other.
    pub(crate) bytes: &'a [u8],
    /// Bytes of one row.
    pub(crate) stride: usize,
}

impl<'a> RowBytes<'a> {
    /// Row `index`.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [u8] {
        &self.bytes[index * self.stride..][..self.stride]
    }
}

impl CpuWeight {
    /// Packs a weight, or takes it as it is where its format is not packed. Panics where the bytes
    /// are not `rows` rows of `cols` values.
    pub(crate) fn new(pool: &Pool, data: WeightData) -> Result<Self, OutOfMemory> {
        let bytes = data.format.row_bytes(data.cols).and_then(|row| row.checked_mul(data.rows));
        assert_eq!(bytes, Some(data.bytes.len()), "{} {} x {}", data.format, data.rows, data.cols);
        // A group is sixteen rows: fewer would be padded to many times their size.
        if data.rows < GROUP_ROWS {
            return Ok(Self::Frozen(data));
        }
        match Packed::new(pool, data.format, (data.rows, data.cols), &data.bytes) {
            Some(packed) => packed.map(Self::Packed),
            None => Ok(Self::Frozen(data)),
        }
    }

    /// A trainable matrix. Panics where `values` is too short.
    pub(crate) fn from_values(values: CpuBuf, rows: usize, cols: usize) -> Self {
        let len = rows.checked_mul(cols);
        assert!(len.is_some_and(|len| len <= values.len()), "{rows} x {cols}");
        Self::Trainable { values, rows, cols }
    }

    /// The values of a trainable matrix.
    pub(crate) fn values_mut(&mut self) -> Option<&mut CpuBuf> {
        match self {
            Self::Frozen(_) | Self::Packed(_) => None,
            Self::Trainable { values, .. } => Some(values),
        }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Frozen(data) => data.rows,
            Self::Packed(packed) => packed.rows(),
            Self::Trainable { rows, .. } => *rows,
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Self::Frozen(data) => data.cols,
            Self::Packed(packed) => packed.cols(),
            Self::Trainable { cols, .. } => *cols,
        }
    }

    /// Encoding of the rows.
    pub fn format(&self) -> Format {
        match self {
            Self::Frozen(data) => data.format,
            Self::Packed(packed) => packed.format(),
            Self::Trainable { .. } => Format::F32,
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.rows().div_ceil(GROUP_ROWS) * packed.group_bytes(),
            Self::Frozen(_) | Self::Trainable { .. } => self.rows() * self.row_bytes(),
        }
    }

    /// Bytes of one row, as the format has it.
    pub(super) fn row_bytes(&self) -> usize {
        self.cols() / self.format().block_len() * self.format().block_bytes()
    }

    /// The bytes of `rows`; `None` where they are packed.
    pub(super) fn row_range(&self, rows: Range<usize>) -> Option<RowBytes<'_>> {
        let stride = self.row_bytes();
        let all = match self {
            Self::Frozen(data) => &data.bytes,
            Self::Trainable { values, .. } => bytemuck::cast_slice(values),
            Self::Packed(_) => return None,
        };
        let bytes = &all[rows.start * stride..rows.end * stride];
        Some(RowBytes { format: self.format(), bytes, stride })
    }

    /// Values `cols` of `row`; both ends of `cols` lie on blocks.
    pub(super) fn dequantize(
        &self,
        kernels: &Kernels,
        row: usize,
        cols: Range<usize>,
        out: &mut [f32],
    ) {
        if let Self::Packed(packed) = self {
            return packed.dequantize_row(row, cols, out);
        }
        let (len, bytes) = (self.format().block_len(), self.format().block_bytes());
        let blocks = cols.start / len * bytes..cols.end / len * bytes;
        if let Some(row) = self.row_range(row..row + 1) {
            (kernels.dequantize)(row.format, &row.bytes[blocks], out);
        }
    }
}
