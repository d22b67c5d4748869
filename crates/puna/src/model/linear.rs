//! `y = x Wᵀ + b`: x `(rows, in_features)` enters, y `(rows, out_features)` leaves. W keeps the
//! format that its file gave it. Maps of one input (q, k, v; gate, up) go to the backend together,
//! which prepares the input once.

use puna_kernels::{Backend, Dtype};

/// A linear map from `in_features` to `out_features`.
#[derive(Debug)]
pub struct Linear<B: Backend> {
    /// `(out_features, in_features)`.
    pub weight: B::Weight,
    /// `(out_features)`.
    pub bias: Option<B::Buf>,
    /// Width of `x`.
    pub in_features: usize,
    /// Width of `y`.
    pub out_features: usize,
}

impl<B: Backend> Linear<B> {
    /// x `(rows, in_features)`, y `(rows, out_features)`.
    pub fn forward(&self, backend: &B, x: &B::Buf, rows: usize, dtype: Dtype, y: &mut B::Buf) {
        forward_all(backend, x, rows, dtype, &mut [(self, y)]);
    }

    fn add_bias(&self, backend: &B, rows: usize, dtype: Dtype, y: &mut B::Buf) {
        if let Some(bias) = &self.bias {
            backend.add_bias(y, bias, self.out_features, rows, dtype);
        }
    }
}

/// Several maps of the same `x`, which is prepared for the kernels once.
pub(super) fn forward_all<B: Backend, const N: usize>(
    backend: &B,
    x: &B::Buf,
    rows: usize,
    dtype: Dtype,
    outputs: &mut [(&Linear<B>, &mut B::Buf); N],
) {
    // With a bias the product stays in f32 until the bias is added: one rounding, not two.
    let biased = outputs.iter().any(|(linear, _)| linear.bias.is_some());
    let product = if biased { Dtype::F32 } else { dtype };
    let mut products = outputs.each_mut().map(|(linear, y)| (&linear.weight, &mut **y));
    backend.linear(x, rows, product, &mut products);
    for (linear, y) in outputs {
        linear.add_bias(backend, rows, dtype, y);
    }
}
