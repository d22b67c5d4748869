//! Grouped-query attention with rotary positions over a paged cache:
//! `y = o(softmax(q·kᵀ / √d) · v)`, with `q, k, v = rope(q(x)), rope(k(x)), v(x)`.

use puna_kernels::{AttentionOutputs, AttentionSpec, Backend, Dtype, RopeLayout, RopeTable, Span};

use super::linear::{Linear, forward_all};
use super::workspace::Workspace;

/// Weights and shape of one attention layer.
#[derive(Debug)]
pub struct Attention<B: Backend> {
    /// `(n_heads * head_dim, hidden_size)`.
    pub q_proj: Linear<B>,
    /// `(n_kv_heads * head_dim, hidden_size)`.
    pub k_proj: Linear<B>,
    /// `(n_kv_heads * head_dim, hidden_size)`.
    pub v_proj: Linear<B>,
    /// `(hidden_size, n_heads * head_dim)`.
    pub o_proj: Linear<B>,
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// How the rows of `q_proj` and `k_proj` pair up for the rotation.
    pub rope_layout: RopeLayout,
}

/// Where one call of attention reads and writes its keys and values.
#[derive(Debug)]
pub struct CacheSlot<'a, B: Backend> {
    /// The pool.
    pub cache: &'a mut B::KvCache,
    /// Layer in it.
    pub layer: usize,
    /// Rows and keys of each sequence.
    pub spans: &'a [Span<'a>],
}

impl<B: Backend> Attention<B> {
    /// Reads `ws.normed`, writes `ws.projected`, both `(rows, hidden_size)`; `probs`, where asked
    /// for, gets the probabilities of each span, `(n_heads, n_rows, n_keys)`.
    pub fn forward(
        &self,
        backend: &B,
        rows: usize,
        dtype: Dtype,
        slot: CacheSlot<'_, B>,
        ws: &mut Workspace<B>,
        probs: Option<&mut B::Buf>,
    ) {
        self.project(backend, rows, dtype, ws);
        let CacheSlot { cache, layer, spans } = slot;
        backend.append_kv(cache, layer, &ws.k, &ws.v, spans);
        let spec = AttentionSpec {
            layer,
            n_heads: self.n_heads,
            scale: (self.head_dim as f32).powf(-0.5),
            dtype,
        };
        let outputs = AttentionOutputs { probs, log_sum_exp: None };
        backend.attention(&ws.q, cache, spans, spec, &mut ws.attended, outputs);
        self.o_proj.forward(backend, &ws.attended, rows, dtype, &mut ws.projected);
    }

    /// `ws.q`, `ws.k`, `ws.v` from `ws.normed`, rotated.
    fn project(&self, backend: &B, rows: usize, dtype: Dtype, ws: &mut Workspace<B>) {
        let Workspace { normed, q, k, v, cos, sin, rotary_dim, .. } = ws;
        forward_all(
            backend,
            normed,
            rows,
            dtype,
            &mut [(&self.q_proj, &mut *q), (&self.k_proj, &mut *k), (&self.v_proj, v)],
        );
        let table =
            RopeTable { cos, sin, rotary_dim: *rotary_dim, layout: self.rope_layout, dtype };
        backend.rope(q, rows, self.n_heads, self.head_dim, &table);
        backend.rope(k, rows, self.n_kv_heads, self.head_dim, &table);
    }
}
