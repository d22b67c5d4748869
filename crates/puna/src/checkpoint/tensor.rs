//! One tensor of a model file: name, shape, format, and bytes that stay on disk until they are
//! read. What a reader found enters as a [`StoredTensor`]; a [`Tensor`] in order, row after row,
//! leaves. Two kinds are copied: strided ones, and 64-bit floats, which become `f32`.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use puna_kernels::Format;

use super::error::{CheckpointError, Fault};
use super::quantized::Matrix;

/// A weight as a file holds it.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name in the Hugging Face layout.
    pub name: String,
    /// How the bytes encode the values.
    pub format: Format,
    /// Hugging Face's order: `(rows, cols)` for a matrix.
    pub shape: Vec<usize>,
    /// The values, row after row; mapped from the file where they lie there in order and in a
    /// format that is computed with.
    pub bytes: Bytes,
}

impl Tensor {
    /// How many values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the memory that reading the bytes took back to the system, where they are those of a
    /// mapped file. They are read again when used.
    pub fn let_go(&self) {
        super::mmap::let_go(&self.bytes);
    }

    /// All values. For small tensors: norms, biases, RoPE divisors.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.format.dequantize(&self.bytes, &mut values);
        values
    }
}

/// The type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// A weight format.
    Weight(Format),
    /// Anything else: name and bytes of one value.
    Other(&'static str, usize),
}

/// 64-bit floats, which are read as `f32`.
pub(super) const FLOAT64: Encoding = Encoding::Other("float64", 8);

impl Encoding {
    /// Bytes of a tensor; the last of `shape` is a row's length. `None` where that overflows or a
    /// row is no whole number of blocks.
    pub(super) fn tensor_bytes(self, shape: &[usize]) -> Option<usize> {
        let (cols, rows) = match shape.split_last() {
            Some((cols, rows)) => (*cols, rows),
            None => (1, shape),
        };
        let row_bytes = match self {
            Self::Weight(format) => format.row_bytes(cols)?,
            Self::Other(_, size) => cols.checked_mul(size)?,
        };
        rows.iter().try_fold(row_bytes, |bytes, n| bytes.checked_mul(*n))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Weight(format) => format.name(),
            Self::Other(name, _) => name,
        }
    }
}

/// A tensor as a reader found it, under the file's own name for it.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub(super) encoding: Encoding,
    /// Hugging Face's order.
    pub(super) shape: Vec<usize>,
    pub(super) place: Place,
    pub(super) file: Arc<Path>,
}

/// Where the values are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In order.
    Whole(Bytes),
    /// Value `(i, j, …)` at `start + i strides[0] + j strides[1] …`, counted in values.
    Strided {
        /// The storage, which several tensors may share.
        storage: Bytes,
        /// Of the first value.
        start: usize,
        /// One for each dimension. The reader has checked that the last value lies inside.
        strides: Vec<usize>,
    },
    /// Codes and scales under other names, which are put together when they are read.
    Quantized(Arc<Matrix>),
}

impl StoredTensor {
    /// The tensor as a weight.
    pub(super) fn to_weight(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let format = match self.encoding {
            Encoding::Weight(format) => format,
            FLOAT64 => Format::F32,
            Encoding::Other(dtype, _) => {
                return Err(CheckpointError::new(&self.file, name, Fault::NotAWeight(dtype)));
            }
        };
        let bytes = self.ordered();
        let bytes = if self.encoding == FLOAT64 { narrowed(&bytes) } else { bytes };
        Ok(Tensor { name: name.to_owned(), format, shape: self.shape.clone(), bytes })
    }

    /// The values in order, in the file's own type.
    pub(super) fn ordered(&self) -> Bytes {
        match &self.place {
            Place::Whole(bytes) => bytes.clone(),
            // Only PyTorch's files have strides, and their types are one value to a block.
            Place::Strided { storage, start, strides } => {
                let size = match self.encoding {
                    Encoding::Weight(format) => format.block_bytes(),
                    Encoding::Other(_, size) => size,
                };
                gather(storage, *start, strides, &self.shape, size)
            }
            Place::Quantized(matrix) => matrix.bytes(),
        }
    }
}

/// 64-bit floats rounded to `f32`: no model computes with more, and Transformers casts them too.
fn narrowed(bytes: &[u8]) -> Bytes {
    let (values, _) = bytes.as_chunks::<8>();
    values.iter().flat_map(|value| (f64::from_le_bytes(*value) as f32).to_le_bytes()).collect()
}

/// Copies a strided tensor into order. The caller has checked that it has no more values than its
/// storage, so that the copy is no larger than the file.
fn gather(storage: &[u8], start: usize, strides: &[usize], shape: &[usize], size: usize) -> Bytes {
    let count: usize = shape.iter().product();
    let mut out = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        let at = (start + at) * size;
        out.extend_from_slice(&storage[at..at + size]);
        for (i, n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_read_as_floats() {
        let values: [f64; 6] = [0.1, -2.5, 1e300, 1e-300, 3.0, f64::from(f32::MAX)];
        let bytes: Bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let stored = |shape: &[usize], place| StoredTensor {
            encoding: FLOAT64,
            shape: shape.to_vec(),
            place,
            file: Arc::from(Path::new("file")),
        };
        let whole = stored(&[2, 3], Place::Whole(bytes.clone())).to_weight("w").unwrap();
        assert_eq!((whole.format, whole.bytes.len()), (Format::F32, 24));
        assert_eq!(whole.to_f32(), [0.1, -2.5, f32::INFINITY, 0.0, 3.0, f32::MAX]);
        // The transpose of the first two columns.
        let place = Place::Strided { storage: bytes, start: 0, strides: vec![1, 3] };
        let turned = stored(&[2, 2], place).to_weight("w").unwrap();
        assert_eq!(turned.to_f32(), [0.1, 0.0, -2.5, 3.0]);
    }
}
