//! The buffers of one forward. A configuration and the most rows enter; buffers `(max_rows, width)`
//! for every step of a layer leave, so that decode allocates none. Layers share them: a layer's
//! values live until the next one writes its own.

use puna_kernels::{Backend, OutOfMemory};

use crate::config::LlamaConfig;

/// Activations of up to `max_rows` rows. One per caller: two forwards may share a model, not a
/// workspace.
#[derive(Debug)]
pub struct Workspace<B: Backend> {
    /// Most rows of one forward.
    pub max_rows: usize,
    /// Values of each head that rotate.
    pub rotary_dim: usize,
    /// Residual stream `(rows, hidden_size)`.
    pub x: B::Buf,
    /// Its norm `(rows, hidden_size)`.
    pub normed: B::Buf,
    /// `(rows, n_heads * head_dim)`.
    pub q: B::Buf,
    /// `(rows, n_kv_heads * head_dim)`.
    pub k: B::Buf,
    /// `(rows, n_kv_heads * head_dim)`.
    pub v: B::Buf,
    /// `(rows, n_heads * head_dim)`.
    pub attended: B::Buf,
    /// Output of a layer before it joins the residual stream `(rows, hidden_size)`.
    pub projected: B::Buf,
    /// `(rows, intermediate_size)`.
    pub gate: B::Buf,
    /// `(rows, intermediate_size)`.
    pub up: B::Buf,
    /// `(rows, intermediate_size)`.
    pub activated: B::Buf,
    /// `(rows, rotary_dim / 2)`.
    pub cos: B::Buf,
    /// `(rows, rotary_dim / 2)`.
    pub sin: B::Buf,
    /// The same two on the host, before they are written to the device.
    pub angles: (Vec<f32>, Vec<f32>),
}

impl<B: Backend> Workspace<B> {
    /// Buffers for forwards of up to `max_rows` rows.
    pub fn new(
        backend: &B,
        config: &LlamaConfig,
        rotary_dim: usize,
        max_rows: usize,
    ) -> Result<Self, OutOfMemory> {
        let alloc = |width: usize| {
            let len = max_rows.checked_mul(width).ok_or_else(|| OutOfMemory {
                what: "the workspace of a forward".to_owned(),
                bytes: u64::MAX,
            })?;
            backend.alloc(len, "the workspace of a forward")
        };
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        );
        let pairs = rotary_dim / 2;
        Ok(Self {
            max_rows,
            x: alloc(hidden)?,
            normed: alloc(hidden)?,
            q: alloc(q_width)?,
            k: alloc(kv_width)?,
            v: alloc(kv_width)?,
            attended: alloc(q_width)?,
            projected: alloc(hidden)?,
            gate: alloc(intermediate)?,
            up: alloc(intermediate)?,
            activated: alloc(intermediate)?,
            cos: alloc(pairs)?,
            sin: alloc(pairs)?,
            angles: (vec![0.0; max_rows * pairs], vec![0.0; max_rows * pairs]),
            rotary_dim,
        })
    }
}
