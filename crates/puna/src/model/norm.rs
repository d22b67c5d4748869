//! The root-mean-square norm: `y = round(x / sqrt(mean(x²) + eps)) * weight`, where `round` is to
//! the dtype, as LLaMA has it. Rows of `hidden_size` enter and leave; the mean is over one row.

use puna_kernels::{Backend, Dtype, RmsNorm};

/// A norm with its gain.
#[derive(Debug)]
pub struct Norm<B: Backend> {
    /// `(hidden_size)`.
    pub weight: B::Buf,
    /// Features in a row.
    pub hidden_size: usize,
    /// Added to the mean of squares.
    pub rms_norm_eps: f32,
}

impl<B: Backend> Norm<B> {
    /// x and y `(rows, hidden_size)`.
    pub fn forward(&self, backend: &B, x: &B::Buf, rows: usize, dtype: Dtype, y: &mut B::Buf) {
        let norm = RmsNorm {
            weight: &self.weight,
            width: self.hidden_size,
            eps: self.rms_norm_eps,
            dtype,
        };
        backend.rms_norm(x, &norm, rows, y);
    }
}
