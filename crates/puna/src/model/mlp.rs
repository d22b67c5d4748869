//! The gated feed-forward layer: `y = down_proj(act(gate_proj(x)) * up_proj(x))`. x
//! `(rows, hidden_size)` enters, two products `(rows, intermediate_size)` lie between, y
//! `(rows, hidden_size)` leaves.

use puna_kernels::{Activation, Backend, Dtype};

use super::linear::{Linear, forward_all};
use super::workspace::Workspace;

/// Weights of one feed-forward layer.
#[derive(Debug)]
pub struct Mlp<B: Backend> {
    /// `(intermediate_size, hidden_size)`.
    pub gate_proj: Linear<B>,
    /// `(intermediate_size, hidden_size)`.
    pub up_proj: Linear<B>,
    /// `(hidden_size, intermediate_size)`.
    pub down_proj: Linear<B>,
    /// The gate's non-linearity.
    pub activation: Activation,
}

impl<B: Backend> Mlp<B> {
    /// Reads `ws.normed`, writes `ws.projected`, both `(rows, hidden_size)`.
    pub fn forward(&self, backend: &B, rows: usize, dtype: Dtype, ws: &mut Workspace<B>) {
        let Workspace { normed, gate, up, activated, projected, .. } = ws;
        forward_all(
            backend,
            normed,
            rows,
            dtype,
            &mut [(&self.gate_proj, &mut *gate), (&self.up_proj, &mut *up)],
        );
        let len = rows * self.gate_proj.out_features;
        backend.act_mul(self.activation, gate, up, len, dtype, activated);
        self.down_proj.forward(backend, activated, rows, dtype, projected);
    }
}
