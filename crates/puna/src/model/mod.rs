//! The model: tokens go in, hidden states and logits come out. Knows no files, HTTP or threads.
//!
//! ```text
//! x = embed_tokens[ids]                                  (rows, hidden_size)
//! each block:  x += attention(norm(x));  x += mlp(norm(x))
//! logits = lm_head(norm(x)[asked rows])                  (asked rows, vocab_size)
//! ```

mod attention;
mod batch;
mod block;
mod cache;
mod causal_lm;
mod input_error;
mod linear;
mod load;
mod loss;
mod mask;
mod mlp;
mod norm;
mod padded;
mod pow;
pub mod pretrained;
mod question_answering;
pub mod rope;
mod sequence_classification;
mod token_classification;
mod workspace;

use std::sync::Arc;

use puna_kernels::{Backend, Dtype, KvDtype, KvShape, OutOfMemory};

pub use attention::Attention;
pub use batch::{Batch, Tokens};
pub use block::Block;
pub use cache::Cache;
pub use causal_lm::{CausalLmOutput, LlamaForCausalLM, LogitsToKeep};
pub use input_error::InputError;
pub use linear::Linear;
pub use load::{LoadError, LoadOptions, Loaded, Loader, MismatchedKey};
pub use loss::{
    IGNORE_INDEX, Labels, Loss, causal_lm_loss, classification_loss, cross_entropy,
    infer_problem_type, problem_type,
};
pub use mask::{AttentionMask, Mask4d};
pub use mlp::Mlp;
pub use norm::Norm;
pub use padded::PaddedInputs;
pub use pretrained::{LlamaClass, PretrainedOptions, Resize};
pub use question_answering::{LlamaForQuestionAnswering, QuestionAnsweringOutput};
pub use sequence_classification::{
    LlamaForSequenceClassification, Pooling, SequenceClassifierOutput,
};
pub use token_classification::LlamaForTokenClassification;
pub use workspace::Workspace;

use crate::config::LlamaConfig;
use attention::CacheSlot;
use rope::Rope;

/// The decoder without a head.
#[derive(Debug)]
pub struct LlamaModel<B: Backend> {
    /// The device.
    pub backend: Arc<B>,
    /// Shapes and constants.
    pub config: Arc<LlamaConfig>,
    /// Type that activations are rounded to.
    pub dtype: Dtype,
    /// `(vocab_size, hidden_size)`.
    pub embed_tokens: B::Weight,
    /// The layers.
    pub blocks: Vec<Block<B>>,
    /// After the last layer.
    pub norm: Norm<B>,
    /// Rotary frequencies.
    pub rope: Rope,
}

/// What a forward keeps beside its result, when asked to.
#[derive(Debug, Default)]
pub struct Trace {
    /// Input of each layer, then the normed output of the last: `n_layers + 1` times
    /// `(rows, hidden_size)`.
    pub hidden_states: Option<Vec<Vec<f32>>>,
    /// Probabilities of each layer, span after span `(n_heads, n_rows, n_keys)`.
    pub attentions: Option<Vec<Vec<f32>>>,
}

impl<B: Backend> LlamaModel<B> {
    /// A workspace for forwards of up to `max_rows` rows.
    pub fn workspace(&self, max_rows: usize) -> Result<Workspace<B>, OutOfMemory> {
        Workspace::new(&self.backend, &self.config, self.rope.rotary_dim(), max_rows)
    }

    /// The shape of a paged cache of this model's keys and values, of `n_blocks` blocks of `block_len` tokens.
    pub fn kv_shape(&self, n_blocks: usize, block_len: usize, dtype: KvDtype) -> KvShape {
        KvShape {
            n_layers: self.config.num_hidden_layers,
            n_blocks,
            block_len,
            n_kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            dtype,
        }
    }

    /// Runs the batch through every layer and appends its keys and values to `cache`. Leaves the
    /// residual stream, not yet normed, in `ws.x` `(rows, hidden_size)`.
    ///
    /// # Panics
    /// If the batch has more rows than the workspace, or an id is not below `vocab_size`.
    pub fn forward(
        &self,
        batch: &Batch<'_>,
        cache: &mut B::KvCache,
        ws: &mut Workspace<B>,
        trace: &mut Trace,
    ) -> Result<(), OutOfMemory> {
        let rows = batch.rows();
        assert!(rows <= ws.max_rows, "{rows} rows in a workspace for {}", ws.max_rows);
        self.embed(batch, ws);
        self.turn(batch, ws);
        let mut probs = match trace.attentions {
            Some(_) => Some(self.backend.alloc(self.probs_len(batch), "attention probabilities")?),
            None => None,
        };
        for (layer, block) in self.blocks.iter().enumerate() {
            self.keep_hidden(rows, ws, trace);
            let slot = CacheSlot { cache, layer, spans: batch.spans };
            block.forward(&self.backend, rows, self.dtype, slot, ws, probs.as_mut());
            if let (Some(kept), Some(probs)) = (&mut trace.attentions, &probs) {
                let mut host = vec![0.0; self.probs_len(batch)];
                self.backend.read(probs, 0, &mut host);
                kept.push(host);
            }
        }
        if let Some(kept) = &mut trace.hidden_states {
            self.normed(rows, ws);
            kept.push(read(&*self.backend, &ws.normed, rows * self.config.hidden_size));
        }
        Ok(())
    }

    /// The norm of the first `rows` rows of the residual stream, into `ws.normed`.
    pub fn normed(&self, rows: usize, ws: &mut Workspace<B>) {
        self.norm.forward(&self.backend, &ws.x, rows, self.dtype, &mut ws.normed);
    }

    /// Some rows of normed hidden states `(…, hidden_size)` through a head;
    /// `(rows, out_features)`.
    fn project(
        &self,
        normed: &B::Buf,
        rows: &[u32],
        head: &Linear<B>,
    ) -> Result<Vec<f32>, OutOfMemory> {
        let width = self.config.hidden_size;
        let mut kept = self.backend.alloc(rows.len() * width, "hidden states")?;
        self.backend.gather_rows(normed, width, rows, &mut kept);
        self.project_all(&kept, rows.len(), head)
    }

    /// The first `rows` normed hidden states through a head; `(rows, out_features)`.
    fn project_all(
        &self,
        normed: &B::Buf,
        rows: usize,
        head: &Linear<B>,
    ) -> Result<Vec<f32>, OutOfMemory> {
        let len = rows * head.out_features;
        let mut logits = self.backend.alloc(len, "logits")?;
        head.forward(&self.backend, normed, rows, self.dtype, &mut logits);
        Ok(read(&*self.backend, &logits, len))
    }

    fn embed(&self, batch: &Batch<'_>, ws: &mut Workspace<B>) {
        match batch.tokens {
            Tokens::Ids(ids) => {
                self.backend.embed(&self.embed_tokens, ids, self.dtype, &mut ws.x);
            }
            Tokens::Embeds(embeds) => self.backend.write(&mut ws.x, 0, embeds),
        }
    }

    /// Cosines and sines of the rows' positions.
    fn turn(&self, batch: &Batch<'_>, ws: &mut Workspace<B>) {
        let len = batch.rows() * self.rope.rotary_dim() / 2;
        let (cos, sin) = &mut ws.angles;
        let (cos_rows, sin_rows) = (&mut cos[..len], &mut sin[..len]);
        self.rope.cos_sin(batch.positions, batch.lengths, cos_rows, sin_rows);
        self.backend.write(&mut ws.cos, 0, &cos[..len]);
        self.backend.write(&mut ws.sin, 0, &sin[..len]);
    }

    fn keep_hidden(&self, rows: usize, ws: &Workspace<B>, trace: &mut Trace) {
        if let Some(kept) = &mut trace.hidden_states {
            kept.push(read(&*self.backend, &ws.x, rows * self.config.hidden_size));
        }
    }

    fn probs_len(&self, batch: &Batch<'_>) -> usize {
        let pairs: usize = batch.spans.iter().map(|span| span.rows.len() * span.n_keys).sum();
        pairs * self.config.num_attention_heads
    }
}

fn read<B: Backend>(backend: &B, buf: &B::Buf, len: usize) -> Vec<f32> {
    let mut host = vec![0.0; len];
    backend.read(buf, 0, &mut host);
    host
}
