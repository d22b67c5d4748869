//! One transformer layer. The residual stream `x (rows, hidden_size)` enters and leaves in place:
//! `x += attention(input_norm(x))`, then `x += mlp(post_attention_norm(x))`. Each sum is rounded to
//! the model's dtype once.

use puna_kernels::{Backend, Dtype};

use super::attention::{Attention, CacheSlot};
use super::mlp::Mlp;
use super::norm::Norm;
use super::workspace::Workspace;

/// Weights of one layer.
#[derive(Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub input_norm: Norm<B>,
    /// Attention.
    pub attention: Attention<B>,
    /// Before the feed-forward layer.
    pub post_attention_norm: Norm<B>,
    /// The feed-forward layer.
    pub mlp: Mlp<B>,
}

impl<B: Backend> Block<B> {
    /// Updates `ws.x` `(rows, hidden_size)` in place. For `probs` see [`Attention::forward`].
    pub fn forward(
        &self,
        backend: &B,
        rows: usize,
        dtype: Dtype,
        slot: CacheSlot<'_, B>,
        ws: &mut Workspace<B>,
        probs: Option<&mut B::Buf>,
    ) {
        let len = rows * self.input_norm.hidden_size;
        self.input_norm.forward(backend, &ws.x, rows, dtype, &mut ws.normed);
        self.attention.forward(backend, rows, dtype, slot, ws, probs);
        backend.add_scaled(&mut ws.x, &ws.projected, 1.0, len, dtype);
        self.post_attention_norm.forward(backend, &ws.x, rows, dtype, &mut ws.normed);
        self.mlp.forward(backend, rows, dtype, ws);
        backend.add_scaled(&mut ws.x, &ws.projected, 1.0, len, dtype);
    }
}
