//! `C += A B` for any matrices that can be packed: blocked for the caches, split over threads.
//! Depth is counted in words, whatever those hold: see [`Words`](super::ops::panel::Words).
//!
//! `A` is packed once, 516 rows × 4,096 of depth at a time. A part of the job owns some columns
//! of `C`: it packs 256 of depth of its columns of `B` into its thread's second-level cache and
//! multiplies every strip of `A` with them. Each element of `C` sums 256 of depth at a time, in
//! order, whatever the number of rows, columns or threads.

use std::cell::Cell;
use std::ops::Range;

use super::ops::panel::{PANEL, STRIP, Start};
use super::scratch::lend_floats;
use super::tiles::Tiles;
use super::{Cpu, CpuBuf};
use crate::Dtype;

/// Rows of `A` that are packed at a time: a multiple of [`STRIP`].
const ROWS: usize = 86 * STRIP;
/// Depth to which they are packed: with [`ROWS`], 8 MB.
const DEPTH: usize = 4096;
/// Depth that runs in registers: a multiple of every block length, and a divisor of [`DEPTH`].
pub(super) const STEP: usize = 256;
/// Parts that a job should have, so that threads end together.
const MIN_PARTS: usize = 16;

thread_local! {
    static LEFT: Cell<CpuBuf> = Cell::default();
    static RIGHT: Cell<CpuBuf> = Cell::default();
}

/// Packs rows of `A` over a range of depth into a strip `[depth][6]`.
type PackLeft<'a> = &'a (dyn Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync);
/// Packs a range of depth of some columns of the `B` of result `i` into panels `[depth][16]`.
type PackRight<'a> = &'a (dyn Fn(usize, Range<usize>, Range<usize>, &mut [f32]) + Sync);

/// Adds a strip times panels to a tile.
type Multiply = fn(&[f32], &[f32], Start, &mut [&mut [f32]]);

/// One `A` and the `B` of each result.
pub(super) struct Product<'a> {
    /// Rows of `A` and of the results.
    pub(super) rows: usize,
    /// Columns of `A`, rows of each `B`: words of either.
    pub(super) depth: usize,
    /// Columns of a result that a part takes, at most; a multiple of [`PANEL`].
    pub(super) width: usize,
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
        for top in (0..self.rows).step_by(ROWS) {
            let rows = top..self.rows.min(top + ROWS);
            for near in (0..self.depth).step_by(DEPTH) {
                let depth = near..self.depth.min(near + DEPTH);
                let strip_len = STRIP * depth.len();
                let len = rows.len().div_ceil(STRIP) * strip_len;
                lend_floats(&LEFT, len, |left| {
                    cpu.pool.for_each_chunk(left, strip_len, |i, strip| {
                        let first = top + i * STRIP;
                        (self.left)(first..rows.end.min(first + STRIP), depth.clone(), strip);
                    });
                    self.run_parts(cpu, results, &Packed { rows: rows.clone(), depth, left });
                });
            }
        }
    }

    fn run_parts(&self, cpu: &Cpu, results: &[Tiles<'_, f32>], packed: &Packed<'_>) {
        let columns: usize = results.iter().map(|c| c.cols().div_ceil(self.width)).sum();
        let strips = packed.rows.len().div_ceil(STRIP);
        let layers = MIN_PARTS.div_ceil(columns.max(1)).min(strips);
        let layer = strips.div_ceil(layers);
        let layers = strips.div_ceil(layer);
        cpu.pool.run(columns * layers, |part| {
            let strips = part / columns * layer..strips.min((part / columns + 1) * layer);
            let mut column = part % columns;
            for (index, result) in results.iter().enumerate() {
                let here = result.cols().div_ceil(self.width);
                if column < here {
                    let first = column * self.width;
                    let cols = first..result.cols().min(first + self.width);
                    return self.part(packed, strips, (index, result), cols);
                }
                column -= here;
            }
        });
    }

    /// Some strips of `A` times some columns of a `B`.
    fn part(
        &self,
        packed: &Packed<'_>,
        strips: Range<usize>,
        (index, result): (usize, &Tiles<'_, f32>),
        cols: Range<usize>,
    ) {
        let panels = cols.len().div_ceil(PANEL);
        let depth = &packed.depth;
        let strip_len = STRIP * depth.len();
        lend_floats(&RIGHT, panels * PANEL * STEP, |right| {
            for near in depth.clone().step_by(STEP) {
                let step = near..depth.end.min(near + STEP);
                let right = &mut right[..panels * PANEL * step.len()];
                (self.right)(index, step.clone(), cols.clone(), right);
                let start = if near == 0 { self.start } else { Start::Held };
                let within = STRIP * (near - depth.start)..STRIP * (step.end - depth.start);
                for i in strips.clone() {
                    let left = &packed.left[i * strip_len..][within.clone()];
                    let first = packed.rows.start + i * STRIP;
                    let end = packed.rows.end.min(first + STRIP);
                    // SAFETY: parts differ in columns or in strips, hence in rows; a part has one
                    // tile at a time.
                    let mut tile: [&mut [f32]; STRIP] = unsafe { result.rows(first, end, &cols) };
                    let tile = &mut tile[..end - first];
                    (self.multiply)(left, right, start, tile);
                    if step.end == self.depth {
                        round(self.dtype, tile);
                    }
                }
            }
        });
    }
}

/// A packed block of `A`.
struct Packed<'a> {
    rows: Range<usize>,
    depth: Range<usize>,
    left: &'a [f32],
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
