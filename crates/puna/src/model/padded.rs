//! Rectangular inputs, as the documented classes take them: rows of equal length, with padding
//! said by a mask. Turned here into the ragged batch that the model computes; hidden states
//! `(batch, len, hidden_size)` leave.

use puna_kernels::{Backend, Span};

use super::input_error::{InputError, expect_len};
use super::mask::{AttentionMask, RowMasks, Scores, packed};
use super::{Batch, Cache, LlamaModel, Tokens, Trace, read};

/// A rectangular batch.
#[derive(Clone, Copy, Debug)]
pub struct PaddedInputs<'a> {
    /// `(batch, len)` ids, or `(batch, len, hidden_size)` vectors.
    pub tokens: Tokens<'a>,
    /// Rows.
    pub batch: usize,
    /// Tokens in each row.
    pub len: usize,
    /// `None` is causal over everything; or, where `position_ids` start anew inside a row and there
    /// is no cache, over each of the sequences packed into it.
    pub attention_mask: Option<AttentionMask<'a>>,
    /// `(batch, len)`, or `(len)` for every row; `None` counts on from the cache, whatever the mask
    /// says.
    pub position_ids: Option<&'a [u32]>,
}

impl<'a> Tokens<'a> {
    /// Ids or vectors, of which there must be one.
    ///
    /// # Errors
    /// Both or neither.
    pub fn exactly_one(
        input_ids: Option<&'a [u32]>,
        inputs_embeds: Option<&'a [f32]>,
    ) -> Result<Self, InputError> {
        match (input_ids, inputs_embeds) {
            (Some(ids), None) => Ok(Self::Ids(ids)),
            (None, Some(embeds)) => Ok(Self::Embeds(embeds)),
            _ => Err(InputError::ExactlyOne),
        }
    }
}

impl<'a> PaddedInputs<'a> {
    /// A batch without mask and with the positions that follow the cache.
    pub fn new(tokens: Tokens<'a>, batch: usize, len: usize) -> Self {
        Self { tokens, batch, len, attention_mask: None, position_ids: None }
    }

    /// Checks tokens and positions against the shape and the model.
    fn check<B: Backend>(&self, model: &LlamaModel<B>) -> Result<(), InputError> {
        let rows = self.batch.saturating_mul(self.len);
        match self.tokens {
            Tokens::Ids(ids) => {
                expect_len("input_ids", ids.len(), rows)?;
                let vocab_size = model.config.vocab_size;
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    return Err(InputError::TokenId { id, vocab_size });
                }
            }
            Tokens::Embeds(embeds) => {
                let expected = rows.saturating_mul(model.config.hidden_size);
                expect_len("inputs_embeds", embeds.len(), expected)?;
            }
        }
        if rows == 0 {
            let is_ids = matches!(self.tokens, Tokens::Ids(_));
            return Err(InputError::Empty {
                field: if is_ids { "input_ids" } else { "inputs_embeds" },
            });
        }
        if let Some(positions) = self.position_ids {
            if positions.len() != self.len {
                expect_len("position_ids", positions.len(), rows)?;
            }
            if let Some(&position) = positions.iter().find(|&&p| p > i32::MAX as u32) {
                return Err(InputError::PositionId { position });
            }
        }
        Ok(())
    }

    /// `(batch, len)`.
    fn positions(&self, past: usize) -> Vec<u32> {
        match self.position_ids {
            Some(positions) if positions.len() == self.batch * self.len => positions.to_vec(),
            Some(positions) => positions.repeat(self.batch),
            None => (0..self.batch).flat_map(|_| past as u32..(past + self.len) as u32).collect(),
        }
    }
}

impl<B: Backend> LlamaModel<B> {
    /// Runs a rectangular batch after what `cache` holds; without one, nothing is kept. Returns the
    /// normed hidden states `(batch, len, hidden_size)`; `trace` keeps what it was made to keep.
    ///
    /// # Errors
    /// Inputs that do not fit each other, the model or the cache.
    pub fn forward_padded(
        &self,
        inputs: &PaddedInputs<'_>,
        cache: Option<&mut Cache<B>>,
        trace: &mut Trace,
    ) -> Result<B::Buf, InputError> {
        inputs.check(self)?;
        let is_kept = cache.is_some();
        let mut passing = Cache::dynamic(self.dtype.into());
        let cache = cache.unwrap_or(&mut passing);
        let past = cache.len();
        let n_keys = past + inputs.len;
        let positions = inputs.positions(past);
        let room = cache.max_cache_len().unwrap_or(n_keys);
        let heads = self.config.num_attention_heads;
        let scores = Scores { batch: inputs.batch, heads, queries: inputs.len, keys: n_keys, room };
        cache.reserve(self, inputs.batch, inputs.len)?;
        let masks = match inputs.attention_mask {
            Some(mask) => mask.resolve(scores)?,
            None if is_kept => RowMasks::Causal,
            None => packed(&positions, inputs.len).unwrap_or(RowMasks::Causal),
        };
        let rope_length = self.rope.observe(cache.rope_length, &positions);
        let before = trace.attentions.as_ref().map_or(0, Vec::len);
        let normed = self.forward_rows(inputs, (&positions, rope_length), &masks, cache, trace)?;
        cache.advance(n_keys, rope_length);
        if let Some(attentions) = &mut trace.attentions {
            let layers = &mut attentions[before..];
            layers.iter_mut().for_each(|layer| widen(layer, n_keys, room));
        }
        Ok(normed)
    }

    /// The forward of checked inputs, for which the cache has room.
    fn forward_rows(
        &self,
        inputs: &PaddedInputs<'_>,
        (positions, rope_length): (&[u32], usize),
        masks: &RowMasks<'_>,
        cache: &mut Cache<B>,
        trace: &mut Trace,
    ) -> Result<B::Buf, InputError> {
        let rows = inputs.batch * inputs.len;
        let n_keys = cache.len() + inputs.len;
        let mut ws = self.workspace(rows)?;
        let Some((pool, blocks, per_row)) = cache.parts() else {
            return Err(InputError::Empty { field: "input_ids" });
        };
        let spans: Vec<Span<'_>> = (0..inputs.batch)
            .map(|row| Span {
                rows: row * inputs.len..(row + 1) * inputs.len,
                n_keys,
                blocks: &blocks[row * per_row..][..per_row],
                mask: masks.row(row),
            })
            .collect();
        let batch = Batch {
            tokens: inputs.tokens,
            positions,
            lengths: &vec![rope_length as u32; rows],
            spans: &spans,
        };
        self.forward(&batch, pool, &mut ws, trace)?;
        self.normed(rows, &mut ws);
        Ok(ws.normed)
    }

    /// As [`LlamaModel::forward_padded`], with the hidden states in memory: what the class
    /// `LlamaModel` documents as `last_hidden_state`.
    ///
    /// # Errors
    /// As there.
    pub fn last_hidden_state(
        &self,
        inputs: &PaddedInputs<'_>,
        cache: Option<&mut Cache<B>>,
        trace: &mut Trace,
    ) -> Result<Vec<f32>, InputError> {
        let normed = self.forward_padded(inputs, cache, trace)?;
        Ok(read(&*self.backend, &normed, inputs.batch * inputs.len * self.config.hidden_size))
    }
}

/// Rows of `keys` probabilities, each with zeros up to `room`: the empty end of a static cache.
fn widen(layer: &mut Vec<f32>, keys: usize, room: usize) {
    if room == keys {
        return;
    }
    let mut wide = vec![0.0; layer.len() / keys * room];
    for (to, from) in wide.chunks_exact_mut(room).zip(layer.chunks_exact(keys)) {
        to[..keys].copy_from_slice(from);
    }
    *layer = wide;
}
