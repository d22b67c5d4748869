//! A paged key-value cache: for each layer and head, keys and values in a pool of blocks
//! `(n_blocks, block_len, head_dim)`, stored as f32, f16, bf16 or signed bytes. In: rows of keys
//! and values, rounded once. Out: the same, or the memory that attention reads. The blocks of a
//! head lie together: those of one sequence are neighbours as a rule, and read as one stream.

mod lines;
pub(crate) mod units;

use half::{bf16, f16};

use crate::{KvDtype, KvShape, OutOfMemory, Span};
use lines::Lines;
use units::{Q8, Stored, Unit};

/// Keys and values of every layer, by their type.
#[derive(Debug)]
pub(crate) enum Store {
    F32(Sides<f32>),
    F16(Sides<f16>),
    Bf16(Sides<bf16>),
    Q8(Sides<Q8>),
}

/// Keys and values of every layer, each `(n_layers, n_kv_heads, n_blocks, units of a head)`.
#[derive(Debug)]
pub(crate) struct Sides<T: Stored> {
    keys: Lines<T::Keys>,
    values: Lines<T::Values>,
}

/// A paged key-value cache in main memory.
#[derive(Debug)]
pub struct CpuKvCache {
    shape: KvShape,
    store: Store,
}

impl CpuKvCache {
    /// A zeroed cache; untouched pages cost nothing until they are written.
    pub(crate) fn new(shape: KvShape) -> Result<Self, OutOfMemory> {
        let refused = || OutOfMemory {
            what: "key-value cache".to_owned(),
            bytes: shape.bytes().map_or(u64::MAX, |b| b as u64),
        };
        let store = match shape.dtype {
            KvDtype::F32 => Sides::new(shape).map(Store::F32),
            KvDtype::F16 => Sides::new(shape).map(Store::F16),
            KvDtype::Bf16 => Sides::new(shape).map(Store::Bf16),
            KvDtype::Q8 => Sides::new(shape).map(Store::Q8),
        };
        Ok(Self { shape, store: store.ok_or_else(refused)? })
    }

    /// The shape it was made with.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Panics where a span names a block or a key that the cache does not have.
    pub(crate) fn check(&self, span: &Span<'_>) {
        assert!(span.rows.start <= span.rows.end && span.rows.len() <= span.n_keys);
        self.check_blocks(span.blocks, span.n_keys);
    }

    fn check_blocks(&self, blocks: &[u32], n_keys: usize) {
        let used = n_keys.div_ceil(self.shape.block_len);
        assert!(used <= blocks.len(), "{n_keys} keys in {} blocks", blocks.len());
        assert!(blocks[..used].iter().all(|b| (*b as usize) < self.shape.n_blocks));
    }

    /// Stores the new rows k and v `(rows, n_kv_heads * head_dim)` where the spans say.
    pub(crate) fn append(&mut self, layer: usize, k: &[f32], v: &[f32], spans: &[Span<'_>]) {
        assert!(layer < self.shape.n_layers);
        for span in spans {
            self.check(span);
            match &mut self.store {
                Store::F32(sides) => sides.append(self.shape, layer, (k, v), span),
                Store::F16(sides) => sides.append(self.shape, layer, (k, v), span),
                Store::Bf16(sides) => sides.append(self.shape, layer, (k, v), span),
                Store::Q8(sides) => sides.append(self.shape, layer, (k, v), span),
            }
        }
    }

    /// Fills keys and values `(n_kv_heads, n_keys, head_dim)` with the first `n_keys` of `blocks`.
    pub(crate) fn read(
        &self,
        layer: usize,
        blocks: &[u32],
        n_keys: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        assert!(layer < self.shape.n_layers);
        self.check_blocks(blocks, n_keys);
        let (from, to) = ((layer, blocks, n_keys), (keys, values));
        match &self.store {
            Store::F32(sides) => sides.read(self.shape, from, to),
            Store::F16(sides) => sides.read(self.shape, from, to),
            Store::Bf16(sides) => sides.read(self.shape, from, to),
            Store::Q8(sides) => sides.read(self.shape, from, to),
        }
    }

    /// Copies block `from` to block `to` in every layer.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        assert!(from < self.shape.n_blocks && to < self.shape.n_blocks);
        match &mut self.store {
            Store::F32(sides) => sides.copy_block(self.shape, from, to),
            Store::F16(sides) => sides.copy_block(self.shape, from, to),
            Store::Bf16(sides) => sides.copy_block(self.shape, from, to),
            Store::Q8(sides) => sides.copy_block(self.shape, from, to),
        }
    }
}

impl<T: Stored> Sides<T> {
    /// Zeros, or `None` where there is no memory for them.
    fn new(shape: KvShape) -> Option<Self> {
        let len = |unit: Unit| {
            [shape.n_blocks, shape.n_kv_heads, unit.of_head(shape)?]
                .into_iter()
                .try_fold(shape.n_layers, usize::checked_mul)
        };
        Some(Self { keys: Lines::zeros(len(T::KEYS)?)?, values: Lines::zeros(len(T::VALUES)?)? })
    }

    /// The keys and the values of a layer.
    pub(crate) fn layer(&self, shape: KvShape, layer: usize) -> (&[T::Keys], &[T::Values]) {
        assert!(layer < shape.n_layers);
        let part =
            |len: usize| layer * (len / shape.n_layers)..(layer + 1) * (len / shape.n_layers);
        (&self.keys[part(self.keys.len())], &self.values[part(self.values.len())])
    }

    fn append(&mut self, shape: KvShape, layer: usize, (k, v): (&[f32], &[f32]), span: &Span<'_>) {
        let row_len = shape.n_kv_heads * shape.head_dim;
        let first_key = span.n_keys - span.rows.len();
        for (i, row) in span.rows.clone().enumerate() {
            for head in 0..shape.n_kv_heads {
                let (key, from) = (first_key + i, row * row_len + head * shape.head_dim);
                let slot = |unit| slot(unit, shape, (layer, span.blocks), key, head);
                let (start, lane) = slot(T::KEYS);
                let units = &mut self.keys[start..][..T::KEYS.across(shape.head_dim)];
                T::put_key(units, lane, &k[from..][..shape.head_dim]);
                let (start, index) = slot(T::VALUES);
                let units = &mut self.values[start..][..T::VALUES.across(shape.head_dim)];
                T::put_value(units, index, &v[from..][..shape.head_dim]);
            }
        }
    }

    fn read(
        &self,
        shape: KvShape,
        (layer, blocks, n_keys): (usize, &[u32], usize),
        (keys, values): (&mut [f32], &mut [f32]),
    ) {
        let rows = keys.chunks_exact_mut(shape.head_dim);
        for (i, (k, v)) in rows.zip(values.chunks_exact_mut(shape.head_dim)).enumerate() {
            let slot = |unit| slot(unit, shape, (layer, blocks), i % n_keys, i / n_keys);
            let (start, lane) = slot(T::KEYS);
            T::get_key(&self.keys[start..][..T::KEYS.across(shape.head_dim)], lane, k);
            let (start, index) = slot(T::VALUES);
            T::get_value(&self.values[start..][..T::VALUES.across(shape.head_dim)], index, v);
        }
    }

    fn copy_block(&mut self, shape: KvShape, from: usize, to: usize) {
        copy_blocks(&mut self.keys, shape, from, to);
        copy_blocks(&mut self.values, shape, from, to);
    }
}

fn copy_blocks<U: Copy>(units: &mut [U], shape: KvShape, from: usize, to: usize) {
    if units.is_empty() {
        return;
    }
    let pool = units.len() / (shape.n_layers * shape.n_kv_heads);
    let size = pool / shape.n_blocks;
    for head in units.chunks_exact_mut(pool) {
        head.copy_within(from * size..(from + 1) * size, to * size);
    }
}

/// Where the units across a key begin, and which row of them it is.
fn slot(
    unit: Unit,
    shape: KvShape,
    (layer, blocks): (usize, &[u32]),
    key: usize,
    head: usize,
) -> (usize, usize) {
    let (block, at) = (blocks[key / shape.block_len] as usize, key % shape.block_len);
    let of_blocks = (layer * shape.n_kv_heads + head) * shape.n_blocks + block;
    let row = of_blocks * shape.block_len.div_ceil(unit.rows) + at / unit.rows;
    (row * unit.across(shape.head_dim), at % unit.rows)
}
