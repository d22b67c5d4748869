//! Keys and values of a rectangular batch, kept between forwards: `n_layers` × keys and values
//! `(batch, n_kv_heads, len, head_dim)`, keys after their rotation. One type serves the documented
//! kinds: it grows without a limit (`DynamicCache`), has a length given beforehand (`StaticCache`),
//! or holds eight-bit values (`QuantizedCache`). Blocks of a pool lie below; each row has its own.

use puna_kernels::{Backend, KvDtype, KvShape, Mask, OutOfMemory, Span};

use super::LlamaModel;
use super::input_error::{InputError, expect_len};

/// Tokens in one block.
const BLOCK_LEN: usize = 32;

/// What the model's earlier tokens left for its attention.
#[derive(Debug)]
pub struct Cache<B: Backend> {
    dtype: KvDtype,
    /// Length given beforehand, for a static cache.
    max_cache_len: Option<usize>,
    /// Tokens of each row so far, padding included.
    len: usize,
    /// Length whose rotary frequencies the last forward took.
    pub(super) rope_length: usize,
    store: Option<Store<B>>,
}

/// The pool, and which blocks of it belong to whom.
#[derive(Debug)]
struct Store<B: Backend> {
    pool: B::KvCache,
    shape: KvShape,
    /// Blocks of each row.
    per_row: usize,
    /// `(batch, per_row)`.
    rows: Vec<u32>,
    /// Blocks of rows that were dropped, `per_row` each.
    spare: Vec<u32>,
}

impl<B: Backend> Cache<B> {
    /// An empty cache that grows as tokens come: its size is at most twice that of its tokens.
    pub fn dynamic(dtype: KvDtype) -> Self {
        Self { dtype, max_cache_len: None, len: 0, rope_length: 0, store: None }
    }

    /// An empty cache for up to `max_cache_len` tokens in each row.
    pub fn fixed(max_cache_len: usize, dtype: KvDtype) -> Self {
        Self { max_cache_len: Some(max_cache_len), ..Self::dynamic(dtype) }
    }

    /// An empty cache that grows and keeps keys and values in `bits` bits.
    ///
    /// # Errors
    /// Another width than 8: each 32 dimensions are signed bytes under one scale.
    pub fn quantized(bits: u32) -> Result<Self, InputError> {
        if bits == 8 { Ok(Self::dynamic(KvDtype::Q8)) } else { Err(InputError::CacheBits { bits }) }
    }

    /// A cache that holds given keys and values, one pair for each layer, each
    /// `(batch, n_kv_heads, len, head_dim)`.
    ///
    /// # Errors
    /// Another number of layers, or slices of the wrong length.
    pub fn from_layers(
        model: &LlamaModel<B>,
        layers: &[(&[f32], &[f32])],
        (batch, len): (usize, usize),
        mut empty: Self,
    ) -> Result<Self, InputError> {
        expect_len("past_key_values", layers.len(), model.config.num_hidden_layers)?;
        let row = model.config.num_key_value_heads * model.config.head_dim;
        let expected = batch.saturating_mul(len).saturating_mul(row);
        for (keys, values) in layers {
            expect_len("the keys of a layer", keys.len(), expected)?;
            expect_len("the values of a layer", values.len(), expected)?;
        }
        empty.reserve(model, batch, len)?;
        if let Some(store) = &mut empty.store
            && len > 0
        {
            for (layer, (keys, values)) in layers.iter().enumerate() {
                let rows = keys.chunks_exact(len * row).zip(values.chunks_exact(len * row));
                for (r, pair) in rows.enumerate() {
                    store.put(&*model.backend, layer, (r, len), pair)?;
                }
            }
        }
        empty.len = len;
        Ok(empty)
    }

    /// Tokens of each row so far (`get_seq_length`).
    pub fn len(&self) -> usize {
        self.len
    }

    /// No token so far.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The length given beforehand, for a static cache.
    pub fn max_cache_len(&self) -> Option<usize> {
        self.max_cache_len
    }

    /// Rows, once there are tokens.
    pub fn batch(&self) -> Option<usize> {
        self.store.as_ref().map(Store::batch)
    }

    /// How keys and values are stored.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Keys and values of a layer, each `(batch, n_kv_heads, keys, head_dim)`: as many keys as there
    /// are tokens, or the whole length of a static cache, zeros at its end. Nothing before the first
    /// token.
    pub fn layer(&self, backend: &B, layer: usize) -> (Vec<f32>, Vec<f32>) {
        let Some(store) = &self.store else { return (Vec::new(), Vec::new()) };
        let (heads, dim) = (store.shape.n_kv_heads, store.shape.head_dim);
        let room = self.max_cache_len.unwrap_or(self.len);
        let row = heads * room * dim;
        let mut out = (vec![0.0; store.batch() * row], vec![0.0; store.batch() * row]);
        if self.len == 0 {
            return out;
        }
        let mut read = (vec![0.0; heads * self.len * dim], vec![0.0; heads * self.len * dim]);
        for r in 0..store.batch() {
            let blocks = store.row(r);
            backend.read_kv(&store.pool, layer, blocks, self.len, &mut read.0, &mut read.1);
            for (out, read) in [(&mut out.0, &read.0), (&mut out.1, &read.1)] {
                let heads = out[r * row..][..row].chunks_exact_mut(room * dim);
                for (head, from) in heads.zip(read.chunks_exact(self.len * dim)) {
                    head[..from.len()].copy_from_slice(from);
                }
            }
        }
        out
    }

    /// Forgets the last `-tokens` tokens of each row; more than there are forgets all.
    ///
    /// # Errors
    /// `tokens` is positive.
    pub fn crop(&mut self, tokens: i64) -> Result<(), InputError> {
        if tokens > 0 {
            return Err(InputError::Crop { tokens });
        }
        let gone = usize::try_from(tokens.unsigned_abs()).unwrap_or(usize::MAX);
        self.len = self.len.saturating_sub(gone);
        Ok(())
    }

    /// Forgets everything. A static cache keeps its memory and its rows.
    pub fn reset(&mut self) {
        (self.len, self.rope_length) = (0, 0);
        if self.max_cache_len.is_none() {
            self.store = None;
        }
    }

    /// The rows `indices`, in this order, take the place of all: `reorder_cache` of beam search and
    /// `batch_select_indices`. Nothing happens to a cache without tokens.
    ///
    /// # Errors
    /// An index that names no row.
    pub fn select(&mut self, backend: &B, indices: &[usize]) -> Result<(), InputError> {
        let Some(store) = self.store.as_mut().filter(|_| self.len > 0) else { return Ok(()) };
        let rows = store.batch();
        if let Some(&index) = indices.iter().find(|&&index| index >= rows) {
            return Err(InputError::CacheRow { index, rows });
        }
        store.select(backend, indices, self.len)
    }

    /// Each row `repeats` times, one after the other (`batch_repeat_interleave`).
    ///
    /// # Errors
    /// No memory for them.
    pub fn repeat_interleave(&mut self, backend: &B, repeats: usize) -> Result<(), InputError> {
        let rows = self.batch().unwrap_or(0);
        let indices: Vec<usize> = (0..rows * repeats).map(|i| i / repeats).collect();
        self.select(backend, &indices)
    }

    /// Makes room for `added` more tokens in each of `batch` rows.
    pub(super) fn reserve(
        &mut self,
        model: &LlamaModel<B>,
        batch: usize,
        added: usize,
    ) -> Result<(), InputError> {
        let needed = self.len.saturating_add(added);
        if let Some(max_cache_len) = self.max_cache_len
            && needed > max_cache_len
        {
            return Err(InputError::CacheFull { max_cache_len, needed });
        }
        let shape = model.kv_shape(0, BLOCK_LEN, self.dtype);
        let mut held = 0;
        if let Some(store) = &self.store {
            if (KvShape { n_blocks: 0, ..store.shape }) != shape {
                return Err(InputError::CacheModel);
            }
            if self.len > 0 && store.batch() != batch {
                return Err(InputError::CacheBatch { cached: store.batch(), batch });
            }
            if store.batch() == batch {
                held = store.per_row * BLOCK_LEN;
            }
        }
        if needed <= held {
            return Ok(());
        }
        // Twice what there is: each token is moved less than once on average.
        let room = self.max_cache_len.unwrap_or_else(|| needed.max(2 * held));
        let backend = &*model.backend;
        let mut grown = Store::new(backend, shape, batch, room)?;
        if let Some(store) = &self.store
            && self.len > 0
        {
            for row in 0..batch {
                store.copy_row(backend, row, self.len, (&mut grown, row))?;
            }
        }
        self.store = Some(grown);
        Ok(())
    }

    /// The pool and the blocks of each row, once room was made.
    pub(super) fn parts(&mut self) -> Option<(&mut B::KvCache, &[u32], usize)> {
        self.store.as_mut().map(|store| (&mut store.pool, &*store.rows, store.per_row))
    }

    /// What a forward has appended.
    pub(super) fn advance(&mut self, len: usize, rope_length: usize) {
        (self.len, self.rope_length) = (len, rope_length);
    }
}

impl<B: Backend> Store<B> {
    /// Room for `room` tokens in each of `batch` rows.
    fn new(backend: &B, shape: KvShape, batch: usize, room: usize) -> Result<Self, OutOfMemory> {
        let per_row = room.div_ceil(BLOCK_LEN);
        let too_many = || OutOfMemory { what: "key-value cache".to_owned(), bytes: u64::MAX };
        let n_blocks = batch.checked_mul(per_row).ok_or_else(too_many)?;
        let last = u32::try_from(n_blocks).map_err(|_| too_many())?;
        let shape = KvShape { n_blocks, ..shape };
        let pool = backend.kv_cache(shape)?;
        Ok(Self { pool, shape, per_row, rows: (0..last).collect(), spare: Vec::new() })
    }

    fn batch(&self) -> usize {
        self.rows.len() / self.per_row.max(1)
    }

    fn row(&self, row: usize) -> &[u32] {
        &self.rows[row * self.per_row..][..self.per_row]
    }

    /// Stores keys and values `(n_kv_heads, len, head_dim)` of a row in a layer.
    fn put(
        &mut self,
        backend: &B,
        layer: usize,
        (row, len): (usize, usize),
        (keys, values): (&[f32], &[f32]),
    ) -> Result<(), OutOfMemory> {
        let mut token_major = vec![0.0; keys.len()];
        let mut upload = |from: &[f32]| {
            self.transpose(from, len, &mut token_major);
            let mut buf = backend.alloc(from.len(), "key-value cache")?;
            backend.write(&mut buf, 0, &token_major);
            Ok::<_, OutOfMemory>(buf)
        };
        let (k, v) = (upload(keys)?, upload(values)?);
        let blocks = &self.rows[row * self.per_row..][..self.per_row];
        let span = Span { rows: 0..len, n_keys: len, blocks, mask: Mask::Causal };
        backend.append_kv(&mut self.pool, layer, &k, &v, &[span]);
        Ok(())
    }

    /// `(n_kv_heads, len, head_dim)` to `(len, n_kv_heads * head_dim)`.
    fn transpose(&self, from: &[f32], len: usize, to: &mut [f32]) {
        let (heads, dim) = (self.shape.n_kv_heads, self.shape.head_dim);
        for (i, values) in from.chunks_exact(dim).enumerate() {
            let (head, token) = (i / len, i % len);
            to[(token * heads + head) * dim..][..dim].copy_from_slice(values);
        }
    }

    /// Copies the first `len` tokens of a row to a row of another pool. What is stored in a type is
    /// read and stored again without a change.
    fn copy_row(
        &self,
        backend: &B,
        row: usize,
        len: usize,
        (to, to_row): (&mut Self, usize),
    ) -> Result<(), OutOfMemory> {
        let size = self.shape.n_kv_heads * len * self.shape.head_dim;
        let (mut keys, mut values) = (vec![0.0; size], vec![0.0; size]);
        for layer in 0..self.shape.n_layers {
            backend.read_kv(&self.pool, layer, self.row(row), len, &mut keys, &mut values);
            to.put(backend, layer, (to_row, len), (&keys, &values))?;
        }
        Ok(())
    }

    fn select(&mut self, backend: &B, indices: &[usize], len: usize) -> Result<(), InputError> {
        let rows = self.batch();
        if indices.len() > rows + self.spare.len() / self.per_row {
            let room = self.per_row * BLOCK_LEN;
            let mut grown = Self::new(backend, self.shape, indices.len(), room)?;
            for (to, &row) in indices.iter().enumerate() {
                self.copy_row(backend, row, len, (&mut grown, to))?;
            }
            *self = grown;
            return Ok(());
        }
        let mut taken = vec![false; rows];
        indices.iter().for_each(|&row| taken[row] = true);
        for row in (0..rows).filter(|&row| !taken[row]) {
            let blocks = self.rows[row * self.per_row..][..self.per_row].to_vec();
            self.spare.extend(blocks);
        }
        let mut table = Vec::with_capacity(indices.len() * self.per_row);
        for &row in indices {
            let blocks = self.row(row).to_vec();
            if std::mem::take(&mut taken[row]) {
                table.extend(blocks);
                continue;
            }
            let copy = self.spare.split_off(self.spare.len() - self.per_row);
            for (&from, &to) in blocks.iter().zip(&copy).take(len.div_ceil(BLOCK_LEN)) {
                backend.copy_kv_block(&mut self.pool, from, to);
            }
            table.extend(copy);
        }
        self.rows = table;
        Ok(())
    }
}
