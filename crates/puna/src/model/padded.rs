//! Rectangular inputs, as the documented classes take them: rows of equal length, with padding
//! said by a mask. Turned here into the ragged batch that the model computes.

use puna_kernels::{Backend, KvDtype, KvShape, Mask, OutOfMemory, Span};

use super::{Batch, LlamaModel, Tokens, Trace};

/// Tokens in one block of a [`DynamicCache`].
const BLOCK_LEN: usize = 32;

/// Keys and values of a rectangular batch, kept between forwards.
#[derive(Debug)]
pub struct DynamicCache<B: Backend> {
    pool: B::KvCache,
    shape: KvShape,
    batch: usize,
    /// Tokens of each row so far, padding included.
    len: usize,
    capacity: usize,
    /// Length whose rotary frequencies the last forward took.
    rope_length: usize,
    /// Blocks of each row, `(batch, capacity / BLOCK_LEN)`.
    blocks: Vec<u32>,
}

impl<B: Backend> DynamicCache<B> {
    /// Room for `capacity` tokens in each of `batch` rows, stored as `dtype`.
    pub fn new(
        model: &LlamaModel<B>,
        batch: usize,
        capacity: usize,
        dtype: KvDtype,
    ) -> Result<Self, OutOfMemory> {
        let per_row = capacity.div_ceil(BLOCK_LEN);
        let shape = model.kv_shape(batch * per_row, BLOCK_LEN, dtype);
        let pool = model.backend.kv_cache(shape)?;
        let blocks = (0..(batch * per_row) as u32).collect();
        let capacity = per_row * BLOCK_LEN;
        Ok(Self { pool, shape, batch, len: 0, capacity, rope_length: 0, blocks })
    }

    /// Tokens of each row so far (`get_seq_length`).
    pub fn len(&self) -> usize {
        self.len
    }

    /// No token so far.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys and values of a layer, each `(batch, n_kv_heads, len, head_dim)`.
    pub fn layer(&self, backend: &B, layer: usize) -> (Vec<f32>, Vec<f32>) {
        let row = self.shape.n_kv_heads * self.len * self.shape.head_dim;
        let (mut keys, mut values) = (vec![0.0; self.batch * row], vec![0.0; self.batch * row]);
        if row > 0 {
            for (r, (k, v)) in keys.chunks_mut(row).zip(values.chunks_mut(row)).enumerate() {
                backend.read_kv(&self.pool, layer, self.row_blocks(r), self.len, k, v);
            }
        }
        (keys, values)
    }

    fn row_blocks(&self, row: usize) -> &[u32] {
        let per_row = self.capacity / BLOCK_LEN;
        &self.blocks[row * per_row..][..per_row]
    }
}

/// Which keys count.
#[derive(Clone, Copy, Debug)]
pub enum AttentionMask<'a> {
    /// `(batch, past + len)`: true keeps a key; the causal rule holds as well.
    Keys(&'a [bool]),
    /// `(batch, len, past + len)`: added to the scores, and nothing else is masked.
    Additive(&'a [f32]),
}

/// A rectangular batch.
#[derive(Clone, Copy, Debug)]
pub struct PaddedInputs<'a> {
    /// `(batch, len)` ids, or `(batch, len, hidden_size)` vectors.
    pub tokens: Tokens<'a>,
    /// Rows.
    pub batch: usize,
    /// Tokens in each row.
    pub len: usize,
    /// `None` is causal over everything; or, where `position_ids` start anew inside a row and
    /// nothing is cached, over each of the sequences packed into it.
    pub attention_mask: Option<AttentionMask<'a>>,
    /// `(batch, len)`; `None` counts on from the cache, whatever the mask says.
    pub position_ids: Option<&'a [u32]>,
}

/// Inputs that do not fit each other or the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// A slice has the wrong number of values.
    #[error("{field} has {found} values; {expected} were expected")]
    Length {
        /// Name of the argument.
        field: &'static str,
        /// Values it has.
        found: usize,
        /// Values it should have.
        expected: usize,
    },
    /// A token id outside the vocabulary.
    #[error("input_ids holds {id}, but the vocabulary has {vocab_size} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A row outside the batch.
    #[error("logits_to_keep names position {position}, but a row has {len} tokens")]
    Position {
        /// The position asked for.
        position: usize,
        /// Tokens in a row.
        len: usize,
    },
    /// A position that no sequence reaches.
    #[error("position_ids hold {position}, but positions end at {}", i32::MAX)]
    PositionId {
        /// The position.
        position: u32,
    },
    /// The cache is full or was made for another batch.
    #[error(
        "the cache holds {rows} rows of up to {capacity} tokens; {batch} rows of {needed} were given"
    )]
    Cache {
        /// Rows of the cache.
        rows: usize,
        /// Its capacity in tokens.
        capacity: usize,
        /// Rows of the inputs.
        batch: usize,
        /// Tokens that each row would have.
        needed: usize,
    },
    /// No memory for the forward.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl PaddedInputs<'_> {
    /// Checks every length against the others, the model and the cache.
    pub(super) fn check<B: Backend>(
        &self,
        model: &LlamaModel<B>,
        cache: &DynamicCache<B>,
    ) -> Result<(), InputError> {
        let rows = self.batch.saturating_mul(self.len);
        let expect = |field, found, expected| {
            if found == expected {
                Ok(())
            } else {
                Err(InputError::Length { field, found, expected })
            }
        };
        match self.tokens {
            Tokens::Ids(ids) => {
                expect("input_ids", ids.len(), rows)?;
                let vocab_size = model.config.vocab_size;
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    return Err(InputError::TokenId { id, vocab_size });
                }
            }
            Tokens::Embeds(embeds) => {
                let expected = rows.saturating_mul(model.config.hidden_size);
                expect("inputs_embeds", embeds.len(), expected)?;
            }
        }
        if let Some(positions) = self.position_ids {
            expect("position_ids", positions.len(), rows)?;
            if let Some(&position) = positions.iter().find(|&&p| p > i32::MAX as u32) {
                return Err(InputError::PositionId { position });
            }
        }
        let n_keys = cache.len + self.len;
        match self.attention_mask {
            Some(AttentionMask::Keys(keep)) => {
                expect("attention_mask", keep.len(), self.batch.saturating_mul(n_keys))?;
            }
            Some(AttentionMask::Additive(bias)) => {
                expect("attention_mask", bias.len(), rows.saturating_mul(n_keys))?;
            }
            None => {}
        }
        if cache.batch != self.batch || n_keys > cache.capacity {
            return Err(InputError::Cache {
                rows: cache.batch,
                capacity: cache.capacity,
                batch: self.batch,
                needed: n_keys,
            });
        }
        Ok(())
    }

    fn positions(&self, past: usize) -> Vec<u32> {
        match self.position_ids {
            Some(positions) => positions.to_vec(),
            None => (0..self.batch).flat_map(|_| past as u32..(past + self.len) as u32).collect(),
        }
    }

    /// Bias that separates the sequences packed into each row `(batch, len, len)`, where the
    /// positions start anew and nothing else says what belongs together.
    fn packed_bias(&self, past: usize) -> Option<Vec<f32>> {
        let positions = self.position_ids?;
        let restarts = |row: &[u32]| row.windows(2).any(|pair| pair[1] != pair[0].wrapping_add(1));
        let packed = past == 0
            && self.attention_mask.is_none()
            && self.len > 0
            && positions.chunks(self.len).any(restarts);
        if !packed {
            return None;
        }
        let mut bias = Vec::with_capacity(self.batch * self.len * self.len);
        for row in positions.chunks(self.len) {
            let mut start = 0;
            for query in 0..self.len {
                if query > 0 && row[query] != row[query - 1] + 1 {
                    start = query;
                }
                bias.extend((0..self.len).map(|key| {
                    if (start..=query).contains(&key) { 0.0 } else { f32::NEG_INFINITY }
                }));
            }
        }
        Some(bias)
    }
}

impl<B: Backend> LlamaModel<B> {
    /// Runs a rectangular batch after what `cache` holds. Returns the normed hidden states
    /// `(batch, len, hidden_size)`; `trace` keeps what it was made to keep.
    pub fn forward_padded(
        &self,
        inputs: &PaddedInputs<'_>,
        cache: &mut DynamicCache<B>,
        trace: &mut Trace,
    ) -> Result<B::Buf, InputError> {
        inputs.check(self, cache)?;
        let rows = inputs.batch * inputs.len;
        let mut ws = self.workspace(rows.max(1))?;
        let past = cache.len;
        let positions = inputs.positions(past);
        let packed = inputs.packed_bias(past);
        let mask = match (&packed, inputs.attention_mask) {
            (Some(bias), _) => Some(AttentionMask::Additive(bias)),
            (None, mask) => mask,
        };
        let n_keys = past + inputs.len;
        let per_row = cache.capacity / BLOCK_LEN;
        let spans: Vec<Span<'_>> = (0..inputs.batch)
            .map(|row| Span {
                rows: row * inputs.len..(row + 1) * inputs.len,
                n_keys,
                blocks: &cache.blocks[row * per_row..][..per_row],
                mask: row_mask(mask, row, inputs.len, n_keys),
            })
            .collect();
        let rope_length = self.rope.observe(cache.rope_length, &positions);
        let batch = Batch {
            tokens: inputs.tokens,
            positions: &positions,
            lengths: &vec![rope_length as u32; rows],
            spans: &spans,
        };
        self.forward(&batch, &mut cache.pool, &mut ws, trace)?;
        (cache.len, cache.rope_length) = (n_keys, rope_length);
        self.normed(rows, &mut ws);
        Ok(ws.normed)
    }
}

fn row_mask(mask: Option<AttentionMask<'_>>, row: usize, len: usize, n_keys: usize) -> Mask<'_> {
    match mask {
        None => Mask::Causal,
        Some(AttentionMask::Keys(keep)) => Mask::CausalKeys(&keep[row * n_keys..][..n_keys]),
        Some(AttentionMask::Additive(bias)) => {
            Mask::Additive(&bias[row * len * n_keys..][..len * n_keys])
        }
    }
}
