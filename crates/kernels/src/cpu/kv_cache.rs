//! A paged key-value cache: for each layer, keys and values in a pool of blocks
//! `(n_blocks, n_kv_heads, block_len, head_dim)`, stored as f32, f16 or bf16.

use bytemuck::Zeroable;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::ops::vector::Element;
use crate::{Dtype, KvShape, OutOfMemory, Span};

/// Keys and values of every layer: `(n_layers, 2, n_blocks, n_kv_heads, block_len, head_dim)`.
#[derive(Debug)]
pub(crate) enum Store {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
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
        let bytes = shape.bytes();
        let refused = || OutOfMemory {
            what: "key-value cache".to_owned(),
            bytes: bytes.map_or(u64::MAX, |b| b as u64),
        };
        let len = bytes.ok_or_else(refused)? / shape.dtype.size();
        let store = match shape.dtype {
            Dtype::F32 => zeroed(len).map(Store::F32),
            Dtype::F16 => zeroed(len).map(Store::F16),
            Dtype::Bf16 => zeroed(len).map(Store::Bf16),
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

    /// Values in one block.
    fn block_size(&self) -> usize {
        self.shape.n_kv_heads * self.shape.block_len * self.shape.head_dim
    }

    /// Values in the keys of one layer, or in its values.
    fn layer_size(&self) -> usize {
        self.shape.n_blocks * self.block_size()
    }

    /// The keys and the values of a layer within the store.
    pub(crate) fn layer<'a, T>(&self, store: &'a [T], layer: usize) -> (&'a [T], &'a [T]) {
        assert!(layer < self.shape.n_layers);
        let size = self.layer_size();
        store[2 * layer * size..][..2 * size].split_at(size)
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
        let (shape, layer_size) = (self.shape, self.layer_size());
        for span in spans {
            self.check(span);
            for (side, rows) in [k, v].into_iter().enumerate() {
                let first = (2 * layer + side) * layer_size;
                match &mut self.store {
                    Store::F32(s) => {
                        scatter(&mut s[first..], shape, span, rows, <[f32]>::copy_from_slice);
                    }
                    Store::F16(s) => scatter(&mut s[first..], shape, span, rows, |to, from| {
                        to.convert_from_f32_slice(from);
                    }),
                    Store::Bf16(s) => scatter(&mut s[first..], shape, span, rows, |to, from| {
                        to.convert_from_f32_slice(from);
                    }),
                }
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
        self.check_blocks(blocks, n_keys);
        match &self.store {
            Store::F32(s) => self.gather(self.layer(s, layer), blocks, n_keys, (keys, values)),
            Store::F16(s) => self.gather(self.layer(s, layer), blocks, n_keys, (keys, values)),
            Store::Bf16(s) => self.gather(self.layer(s, layer), blocks, n_keys, (keys, values)),
        }
    }

    fn gather<T: Element>(
        &self,
        (all_keys, all_values): (&[T], &[T]),
        blocks: &[u32],
        n_keys: usize,
        (keys, values): (&mut [f32], &mut [f32]),
    ) {
        let head_dim = self.shape.head_dim;
        for head in 0..self.shape.n_kv_heads {
            for key in 0..n_keys {
                let from = slot(self.shape, blocks, key, head);
                let to = (head * n_keys + key) * head_dim;
                for i in 0..head_dim {
                    keys[to + i] = all_keys[from + i].widen();
                    values[to + i] = all_values[from + i].widen();
                }
            }
        }
    }

    /// Copies block `from` to block `to` in every layer.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        assert!(from < self.shape.n_blocks && to < self.shape.n_blocks);
        let (size, layer_size) = (self.block_size(), self.layer_size());
        for side in 0..2 * self.shape.n_layers {
            let first = side * layer_size;
            let source = first + from * size..first + (from + 1) * size;
            match &mut self.store {
                Store::F32(s) => s.copy_within(source, first + to * size),
                Store::F16(s) => s.copy_within(source, first + to * size),
                Store::Bf16(s) => s.copy_within(source, first + to * size),
            }
        }
    }
}

fn zeroed<T: Zeroable>(len: usize) -> Option<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(len).ok()
}

/// Where a key of a head begins within the keys of a layer.
fn slot(shape: KvShape, blocks: &[u32], key: usize, head: usize) -> usize {
    let block = blocks[key / shape.block_len] as usize;
    let row = (block * shape.n_kv_heads + head) * shape.block_len + key % shape.block_len;
    row * shape.head_dim
}

/// Writes the rows of a span to their slots, head by head.
fn scatter<T>(
    store: &mut [T],
    shape: KvShape,
    span: &Span<'_>,
    rows: &[f32],
    convert: impl Fn(&mut [T], &[f32]),
) {
    let row_len = shape.n_kv_heads * shape.head_dim;
    let first_key = span.n_keys - span.rows.len();
    for (i, row) in span.rows.clone().enumerate() {
        for head in 0..shape.n_kv_heads {
            let to = slot(shape, span.blocks, first_key + i, head);
            let from = row * row_len + head * shape.head_dim;
            convert(&mut store[to..][..shape.head_dim], &rows[from..][..shape.head_dim]);
        }
    }
}
