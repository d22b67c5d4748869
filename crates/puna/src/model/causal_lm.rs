//! The language model. Hidden states `(rows, hidden_size)` of the decoder enter; logits
//! `h lm_headᵀ` `(rows, vocab_size)` of the asked rows leave, with the embedding's own matrix where
//! the two are tied. The loss is `-log softmax(logits[t])[labels[t + 1]]`, averaged over the labels
//! that count.

use puna_kernels::Backend;

use super::{DynamicCache, InputError, Linear, LlamaModel, PaddedInputs, Trace, Workspace, read};

/// A LLaMA that predicts the next token.
#[derive(Debug)]
pub struct LlamaForCausalLM<B: Backend> {
    /// The decoder.
    pub model: LlamaModel<B>,
    /// `(vocab_size, hidden_size)`; `None` where it is tied to the embedding.
    pub lm_head: Option<Linear<B>>,
}

/// Which positions of each row logits are computed for.
#[derive(Clone, Copy, Debug, Default)]
pub enum LogitsToKeep<'a> {
    /// All of them.
    #[default]
    All,
    /// The last so many; more than there are means all.
    Last(usize),
    /// These, in this order.
    Positions(&'a [usize]),
}

/// Result of [`LlamaForCausalLM::forward`].
#[derive(Debug, Default)]
pub struct CausalLmOutput {
    /// `(batch, kept, vocab_size)`.
    pub logits: Vec<f32>,
    /// Positions kept of each row.
    pub kept: usize,
}

/// How the losses of the tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Their mean; NaN where no token counts, as PyTorch has it.
    Mean,
    /// Their sum over this many items: the number in all batches that share a step.
    SumOver(f64),
}

impl<B: Backend> LlamaForCausalLM<B> {
    /// Logits of a rectangular batch after what `cache` holds.
    pub fn forward(
        &self,
        inputs: &PaddedInputs<'_>,
        keep: LogitsToKeep<'_>,
        cache: &mut DynamicCache<B>,
        trace: &mut Trace,
    ) -> Result<CausalLmOutput, InputError> {
        let positions = kept_positions(keep, inputs.len)?;
        let normed = self.model.forward_padded(inputs, cache, trace)?;
        let backend = &*self.model.backend;
        let (hidden, vocab) = (self.model.config.hidden_size, self.model.config.vocab_size);
        let rows: Vec<u32> = (0..inputs.batch)
            .flat_map(|row| positions.iter().map(move |p| (row * inputs.len + p) as u32))
            .collect();
        let mut kept = backend.alloc(rows.len() * hidden, "hidden states")?;
        backend.gather_rows(&normed, hidden, &rows, &mut kept);
        let mut logits = backend.alloc(rows.len() * vocab, "logits")?;
        self.head(&kept, rows.len(), &mut logits);
        let logits = read(backend, &logits, rows.len() * vocab);
        Ok(CausalLmOutput { logits, kept: positions.len() })
    }

    /// Every matrix that rows are multiplied with.
    pub fn weights(&self) -> impl Iterator<Item = &B::Weight> {
        let layers = self.model.blocks.iter().flat_map(|block| {
            let (attention, mlp) = (&block.attention, &block.mlp);
            [
                &attention.q_proj,
                &attention.k_proj,
                &attention.v_proj,
                &attention.o_proj,
                &mlp.gate_proj,
                &mlp.up_proj,
                &mlp.down_proj,
            ]
        });
        let head = self.lm_head.as_ref().map_or(&self.model.embed_tokens, |head| &head.weight);
        layers.map(|linear| &linear.weight).chain([head])
    }

    /// `logits = lm_head(x)`: x `(rows, hidden_size)`, already normed, logits
    /// `(rows, vocab_size)`.
    pub fn head(&self, x: &B::Buf, rows: usize, logits: &mut B::Buf) {
        let (backend, dtype) = (&*self.model.backend, self.model.dtype);
        match &self.lm_head {
            Some(head) => head.forward(backend, x, rows, dtype, logits),
            None => backend.linear(x, rows, dtype, &mut [(&self.model.embed_tokens, logits)]),
        }
    }

    /// Logits of some rows of the residual stream that a forward left in `ws.x`;
    /// `(rows, vocab_size)`. Overwrites `ws.projected` and `ws.normed`.
    pub fn head_rows(&self, ws: &mut Workspace<B>, rows: &[u32], logits: &mut B::Buf) {
        let backend = &*self.model.backend;
        let hidden = self.model.config.hidden_size;
        backend.gather_rows(&ws.x, hidden, rows, &mut ws.projected);
        let norm = &self.model.norm;
        norm.forward(backend, &ws.projected, rows.len(), self.model.dtype, &mut ws.normed);
        self.head(&ws.normed, rows.len(), logits);
    }
}

fn kept_positions(keep: LogitsToKeep<'_>, len: usize) -> Result<Vec<usize>, InputError> {
    match keep {
        LogitsToKeep::All => Ok((0..len).collect()),
        LogitsToKeep::Last(n) => Ok((len.saturating_sub(n)..len).collect()),
        LogitsToKeep::Positions(positions) => match positions.iter().find(|&&p| p >= len) {
            Some(&position) => Err(InputError::Position { position, len }),
            None => Ok(positions.to_vec()),
        },
    }
}

/// Loss of a language model: token `t` predicts label `t + 1`; a negative label does not count.
///
/// logits `(batch, len, vocab_size)`, labels `(batch, len)`. The logits are taken in `f32`.
///
/// # Errors
/// A label that is not below the vocabulary's size, or slices of the wrong length.
pub fn causal_lm_loss<B: Backend>(
    model: &LlamaModel<B>,
    logits: &[f32],
    labels: &[i64],
    len: usize,
    reduction: Loss,
) -> Result<f32, InputError> {
    let vocab_size = model.config.vocab_size;
    let expected = labels.len() * vocab_size;
    if logits.len() != expected {
        return Err(InputError::Length {
            field: "labels",
            found: labels.len(),
            expected: logits.len() / vocab_size,
        });
    }
    let mut targets = Vec::with_capacity(labels.len());
    for row in labels.chunks(len.max(1)) {
        for t in 0..row.len() {
            targets.push(target(row.get(t + 1).copied(), vocab_size)?);
        }
    }
    let backend = &*model.backend;
    let mut buf = backend.alloc(logits.len(), "logits")?;
    backend.write(&mut buf, 0, logits);
    let mut nll = vec![0.0; targets.len()];
    backend.cross_entropy(&buf, vocab_size, &targets, &mut nll);
    let total: f64 = nll.iter().map(|&x| f64::from(x)).sum();
    let items = match reduction {
        Loss::Mean => targets.iter().flatten().count() as f64,
        Loss::SumOver(items) => items,
    };
    Ok((total / items) as f32)
}

fn target(label: Option<i64>, vocab_size: usize) -> Result<Option<u32>, InputError> {
    match label {
        None => Ok(None),
        Some(label) if label < 0 => Ok(None),
        Some(label) => match u32::try_from(label) {
            Ok(id) if (id as usize) < vocab_size => Ok(Some(id)),
            _ => Err(InputError::TokenId {
                id: u32::try_from(label).unwrap_or(u32::MAX),
                vocab_size,
            }),
        },
    }
}
