//! Where the keys and the values of one head lie. In: a range of keys of a span. Out: its runs, each
//! within one block, as memory that the products read; and what to ask for before it is read.

use std::ops::Range;

use crate::KvShape;
use crate::cpu::isa::{Cache, Isa};
use crate::cpu::kv_cache::units::{PANEL, Stored};

/// The keys and the values of one head, in blocks of a layer's pool.
#[derive(Debug)]
pub(crate) struct Pages<'a, T: Stored> {
    /// Keys of the layer: units of each block of each head.
    pub(crate) keys: &'a [T::Keys],
    /// Values of the layer, likewise.
    pub(crate) values: &'a [T::Values],
    /// Sizes of the pool.
    pub(crate) shape: KvShape,
    /// Block of each `block_len` consecutive keys.
    pub(crate) blocks: &'a [u32],
    /// The head.
    pub(crate) head: usize,
    /// Key that the first of the blocks begins with.
    pub(crate) first_key: usize,
}

impl<T: Stored> Clone for Pages<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Stored> Copy for Pages<'_, T> {}

/// Consecutive keys within one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The block of the head, counted over the layer.
    block: usize,
    /// The first, counted from the block's.
    pub(super) at: usize,
    /// How many.
    pub(super) n: usize,
}

impl<'a, T: Stored> Pages<'a, T> {
    /// The keys from `range.start` to the end of its block or of the range.
    #[inline(always)]
    pub(super) fn run(&self, range: &Range<usize>) -> Run {
        let KvShape { block_len, n_blocks, .. } = self.shape;
        let start = range.start - self.first_key;
        let (block, at) = (start / block_len, start % block_len);
        let left = block_len - at;
        Run {
            block: self.head * n_blocks + self.blocks[block] as usize,
            at,
            n: if left < range.len() { left } else { range.len() },
        }
    }

    /// The panels that hold the keys of a run.
    #[inline(always)]
    pub(super) fn panels(&self, run: Run) -> &'a [T::Keys] {
        let across = T::KEYS.across(self.shape.head_dim);
        let first = run.block * self.shape.block_len.div_ceil(PANEL) + run.at / PANEL;
        let n_panels = (run.at % PANEL + run.n).div_ceil(PANEL);
        &self.keys[first * across..][..n_panels * across]
    }

    #[inline(always)]
    pub(super) fn values(&self, run: Run) -> Values<'a, T> {
        let KvShape { block_len, head_dim, .. } = self.shape;
        let size = block_len.div_ceil(T::VALUES.rows) * T::VALUES.across(head_dim);
        let units = &self.values[run.block * size..][..size];
        Values { units, head_dim, at: run.at, n: run.n }
    }

    /// The memory of the first keys of `range` within one block; none of no range.
    #[inline(always)]
    pub(super) fn first_keys(&self, range: &Range<usize>) -> Ahead<'a> {
        if range.is_empty() {
            return Ahead::default();
        }
        Ahead(bytemuck::cast_slice(self.panels(self.run(range))))
    }

    /// Likewise of the first values.
    #[inline(always)]
    pub(super) fn first_values(&self, range: &Range<usize>) -> Ahead<'a> {
        if range.is_empty() {
            return Ahead::default();
        }
        let run = self.run(range);
        let units = run.at / T::VALUES.rows * T::VALUES.across(self.shape.head_dim);
        Ahead(bytemuck::cast_slice(&self.values(run).units[units..]))
    }
}

/// Values of consecutive keys of one head, within one block.
#[derive(Debug)]
pub(crate) struct Values<'a, T: Stored> {
    /// Those of the block.
    pub(crate) units: &'a [T::Values],
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// The first.
    pub(crate) at: usize,
    /// How many.
    pub(crate) n: usize,
}

impl<T: Stored> Clone for Values<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Stored> Copy for Values<'_, T> {}

/// Memory that the next product will read, asked for while this one computes: blocks lie anywhere,
/// and the processor finds out too late. Empty where there is time enough.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead<'a>(pub(crate) &'a [u8]);

impl Ahead<'_> {
    /// Asks for bytes `from..to`, as far as there are so many.
    #[inline(always)]
    pub(super) fn fetch<I: Isa>(self, isa: I, from: usize, to: usize) {
        const LINE: usize = 64;
        let end = if to < self.0.len() { to } else { self.0.len() };
        isa.prefetch(Cache::Second, self.0, from.next_multiple_of(LINE)..end);
    }

    /// Without the first `n` bytes.
    #[inline(always)]
    pub(super) fn skip(self, n: usize) -> Self {
        Self(if n < self.0.len() { &self.0[n..] } else { &[] })
    }
}
