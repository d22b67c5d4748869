//! `C += A B` for any matrices that can be packed: blocked for the caches, split over threads.
//! Depth is counted in words, whatever those hold: see [`Words`](super::ops::panel::Words).
//!
//! `A` is packed once, 512 rows or a few more × 4,096 of depth at a time. A part of the job owns
//! some rows and columns of `C`: it packs 256 of depth of a chunk of its columns of `B` into its
//! thread's own caches and multiplies its strips of `A` with them. Each element of `C` sums 256 of
//! depth at a time, in order, whatever the number of rows, columns or threads.

use std::cell::Cell;
use std::ops::Range;

use super::kernels::PairKernels;
use super::ops::panel::{PANEL, STRIP, Start};
use super::rect::Rect;
use super::scratch::lend_floats;
use super::tiles::Tiles;
use super::{Cpu, CpuBuf};
use crate::Dtype;

/// Rows of `A` that are packed at a time, cut down to whole strips.
const ROWS: usize = 86 * STRIP;
/// Depth to which they are packed: with [`ROWS`], 8 MB.
const DEPTH: usize = 4096;
/// Depth that runs in registers: a multiple of every block length, and a divisor of [`DEPTH`].
pub(super) const STEP: usize = 256;
/// Parts that a job should have, so that threads end together: columns are cut finer, for those of
/// one part share nothing with another's, while rows that are cut need the same chunks of `B`.
const MIN_PARTS: usize = 16;
const COLUMN_PARTS: usize = 64;

thread_local! {
    static LEFT: Cell<CpuBuf> = Cell::default();
    static RIGHT: Cell<CpuBuf> = Cell::default();
}

/// How a product is cut, for the registers and the caches of what multiplies it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocking {
    /// Rows of a strip of `A`.
    strip: usize,
    /// Words of a row that lie side by side in a strip, `[depth / run][strip][run]`. The depth of
    /// both operands is filled up to a multiple with zeros.
    run: usize,
    /// Puts a row, filled up, in its place in a strip.
    pub(super) put_row: fn(row: &[f32], index: usize, strip: &mut [f32]),
    /// Columns of `B` that are packed at a time; a multiple of [`PANEL`].
    chunk: usize,
    /// Most rows and columns of a part: whole strips and chunks.
    part: (usize, usize),
}

/// For vectors of words: strips `[depth][6]`, and one chunk of 64 KB to a part.
pub(crate) const VECTORS: Blocking = Blocking::of::<STRIP, 1>(4 * PANEL, (ROWS, 4 * PANEL));

impl Blocking {
    /// Of strips `[depth / RUN][ROWS][RUN]`.
    pub(crate) const fn of<const ROWS: usize, const RUN: usize>(
        chunk: usize,
        part: (usize, usize),
    ) -> Self {
        assert!(chunk.is_multiple_of(PANEL) && STEP.is_multiple_of(RUN));
        assert!(part.0.is_multiple_of(ROWS) && part.1.is_multiple_of(chunk));
        Self { strip: ROWS, run: RUN, put_row: put_row::<ROWS, RUN>, chunk, part }
    }

    /// The same with chunks and parts of whole blocks of `block_len` columns: either divides the
    /// other.
    pub(super) fn with_blocks(self, block_len: usize) -> Self {
        let chunk = self.chunk.max(block_len);
        Self { chunk, part: (self.part.0, self.part.1.max(chunk)), ..self }
    }

    /// Depth with what fills it up.
    pub(super) fn filled(&self, depth: usize) -> usize {
        depth.next_multiple_of(self.run)
    }
}

fn put_row<const ROWS: usize, const RUN: usize>(row: &[f32], index: usize, strip: &mut [f32]) {
    for (run, strip) in row.as_chunks::<RUN>().0.iter().zip(strip.chunks_exact_mut(ROWS * RUN)) {
        strip[index * RUN..][..RUN].copy_from_slice(run);
    }
}

/// How a processor multiplies `bf16` pairs.
#[derive(Debug)]
pub(crate) struct Pairs {
    /// Name of the path in a plan.
    pub(crate) path: &'static str,
    pub(crate) kernels: &'static PairKernels,
    /// How operands are cut for these kernels.
    pub(crate) blocking: Blocking,
    /// Rows up to which whole-number dots of packed weights are faster.
    pub(crate) few_integer: usize,
}

/// Packs rows of `A` over a range of depth into a strip.
type PackLeft<'a> = &'a (dyn Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync);
/// Packs a range of depth of some columns of the `B` of result `i` into panels `[depth][16]`.
type PackRight<'a> = &'a (dyn Fn(usize, Range<usize>, Range<usize>, &mut [f32]) + Sync);

/// Adds strips times panels to a rectangle.
type Multiply = fn(&[f32], &[f32], Start, &mut Rect<'_, f32>);

/// One `A` and the `B` of each result.
pub(super) struct Product<'a> {
    /// Rows of `A` and of the results.
    pub(super) rows: usize,
    /// Columns of `A`, rows of each `B`: words of either.
    pub(super) depth: usize,
    /// How both are cut.
    pub(super) blocking: Blocking,
    /// Whether the results are added to.
    pub(super) start: Start,
    /// What finished results are rounded to.
    pub(super) dtype: Dtype,
    /// Multiplies words: [`multiply`](super::ops::panel::multiply).
    pub(super) multiply: Multiply,
    /// Packs `A`.
    pub(super) left: PackLeft<'a>,
    /// Packs the `B` of one result.
    pub(super) right: PackRight<'a>,
}

impl Product<'_> {
    /// Computes the results.
    pub(super) fn run(&self, cpu: &Cpu, results: &[Tiles<'_, f32>]) {
        let Blocking { strip, .. } = self.blocking;
        let most_rows = ROWS / strip * strip;
        for top in (0..self.rows).step_by(most_rows) {
            let rows = top..self.rows.min(top + most_rows);
            for near in (0..self.depth).step_by(DEPTH) {
                let depth = near..self.depth.min(near + DEPTH);
                let strips = rows.len().div_ceil(strip);
                let slot = strip * self.blocking.filled(depth.len()).min(STEP);
                let len = depth.len().div_ceil(STEP) * strips * slot;
                lend_floats(&LEFT, len, |left| {
                    let block = Block { rows: rows.clone(), depth, strips, slot };
                    self.pack_left(cpu, &block, left);
                    self.run_parts(cpu, results, &block, left);
                });
            }
        }
    }

    /// Packs a block of `A` into slots `[step][strip]`: those that a part reads in turn are
    /// neighbours.
    fn pack_left(&self, cpu: &Cpu, block: &Block, left: &mut [f32]) {
        let Block { rows, depth, strips, slot } = block;
        let steps = depth.len().div_ceil(STEP);
        cpu.pool.for_each_chunk(left, steps * slot, |chunk, slots| {
            for (i, slot) in (chunk * steps..).zip(slots.chunks_exact_mut(*slot)) {
                let first = rows.start + i % strips * self.blocking.strip;
                let near = depth.start + i / strips * STEP;
                let rows = first..rows.end.min(first + self.blocking.strip);
                (self.left)(rows, near..depth.end.min(near + STEP), slot);
            }
        });
    }

    fn run_parts(&self, cpu: &Cpu, results: &[Tiles<'_, f32>], block: &Block, left: &[f32]) {
        let Blocking { chunk, part: (most_rows, most_cols), .. } = self.blocking;
        let least_layers = block.rows.len().div_ceil(most_rows);
        let all_cols: usize = results.iter().map(Tiles::cols).sum();
        let width = all_cols / COLUMN_PARTS.div_ceil(least_layers);
        let width = width.next_multiple_of(chunk).clamp(chunk, most_cols);
        let columns: usize = results.iter().map(|c| c.cols().div_ceil(width)).sum();
        let layers = MIN_PARTS.div_ceil(columns.max(1)).max(least_layers).min(block.strips);
        let layer = block.strips.div_ceil(layers);
        let layers = block.strips.div_ceil(layer);
        cpu.pool.run(columns * layers, |part| {
            let strips = part / columns * layer..block.strips.min((part / columns + 1) * layer);
            let mut column = part % columns;
            for (index, result) in results.iter().enumerate() {
                let here = result.cols().div_ceil(width);
                if column < here {
                    let first = column * width;
                    let cols = first..result.cols().min(first + width);
                    return self.part(block, left, strips, (index, result), cols);
                }
                column -= here;
            }
        });
    }

    /// Some strips of `A` times some columns of a `B`.
    fn part(
        &self,
        block: &Block,
        left: &[f32],
        strips: Range<usize>,
        (index, result): (usize, &Tiles<'_, f32>),
        cols: Range<usize>,
    ) {
        let Blocking { strip, chunk, .. } = self.blocking;
        let [first, end] = [strips.start, strips.end].map(|i| block.rows.start + i * strip);
        let rows = first..block.rows.end.min(end);
        let room = chunk.min(cols.len()).next_multiple_of(PANEL) * STEP;
        lend_floats(&RIGHT, room, |right| {
            for (i, near) in block.depth.clone().step_by(STEP).enumerate() {
                let step = near..block.depth.end.min(near + STEP);
                let depth = self.blocking.filled(step.len());
                let left = &left[(i * block.strips + strips.start) * block.slot..];
                let left = &left[..strips.len() * block.slot];
                let start = if near == 0 { self.start } else { Start::Held };
                for near in cols.clone().step_by(chunk) {
                    let cols = near..cols.end.min(near + chunk);
                    let right = &mut right[..cols.len().next_multiple_of(PANEL) * depth];
                    (self.right)(index, step.clone(), cols.clone(), right);
                    // SAFETY: parts differ in columns or in strips, hence in rows; a part has one
                    // rectangle at a time.
                    let mut c = unsafe { Rect::new(result, rows.clone(), cols) };
                    (self.multiply)(left, right, start, &mut c);
                    if step.end == self.depth {
                        (0..rows.len()).for_each(|i| round(self.dtype, &mut [c.row(i)]));
                    }
                }
            }
        });
    }
}

/// A block of `A`.
struct Block {
    rows: Range<usize>,
    depth: Range<usize>,
    strips: usize,
    /// Words from one strip to the next.
    slot: usize,
}

/// Rounds a finished tile.
pub(super) fn round(dtype: Dtype, tile: &mut [&mut [f32]]) {
    if dtype == Dtype::F32 {
        return;
    }
    for row in tile {
        for value in row.iter_mut() {
            *value = dtype.round(*value);
        }
    }
}
