//! Linear layers: `y = x · Wᵀ`, `dx += dy · W`, `dw += dyᵀ · x`, for weights of any format.
//!
//! A few rows of `x` read each weight once: packed ones against `x` as whole numbers, the others,
//! as they lie, in `f32`. More rows, and all rows of an exact backend, take the blocked product on
//! dequantised panels: of `bf16` pairs where the machine multiplies those faster and the weights
//! were no finer, else of `f32`. A deterministic backend takes the path of a few rows for all.

use std::cell::Cell;
use std::ops::Range;

use super::operands::{pack_panel_row, pack_row_pairs, pack_rows, pack_weight};
use super::ops::activations::SplitRows;
use super::ops::dot_packed::Groups;
use super::ops::panel::{PANEL, STRIP, Start};
use super::ops::{dot_float, dot_packed};
use super::packed::GROUP_ROWS;
use super::product::{Pairs, Product, STEP, VECTORS, round};
use super::scratch::{lend, lend_floats};
use super::tiles::Tiles;
use super::weight::{CpuWeight, RowBytes};
use super::{Cpu, CpuBuf};
use crate::{Dtype, Format};

/// Rows up to which the dots of packed weights, and of floats, beat the blocked product in vectors;
/// measured with `benches/linear.rs` on Zen 4. [`Pairs`] may have others.
pub(super) const FEW_INTEGER: usize = 24;
const FEW_FLOAT: usize = 4;
/// Formats without a dot are dequantised again for each of these.
const FEW_OTHER: usize = 4;
/// Weights that one part of a few-row job reads, at least and at most, in bytes: a small matrix is
/// still shared, and the threads end a large one together. They take runs of parts, so that short
/// ones do not break the stream from memory.
const PART_BYTES: (usize, usize) = (16 << 10, 32 << 10);
/// Parts that a matrix is cut into where their size allows.
const FEW_PARTS: usize = 8;
/// Results of one job; a layer has three at most.
const MAX_RESULTS: usize = 4;

const _: () = assert!(dot_packed::MAX_ROWS == dot_float::MAX_ROWS);
const _: () = assert!(PANEL == GROUP_ROWS);
const _: () = assert!(STEP.is_multiple_of(256));

thread_local! {
    static SPLIT: Cell<SplitRows> = Cell::default();
    static ROW: Cell<CpuBuf> = Cell::default();
}

/// How a weight is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Integer dots.
    Integer,
    /// `f32` dots.
    Float,
    /// `f32` dots with rows dequantised one at a time.
    Row,
    /// The blocked product of `f32`.
    Panel,
    /// The blocked product of `bf16` pairs.
    Pairs,
}

impl Path {
    pub(super) fn of(cpu: &Cpu, weight: &CpuWeight, rows: usize) -> Self {
        let format = weight.format();
        let float = matches!(format, Format::F32 | Format::F16 | Format::Bf16);
        let pairs = cpu.pairs.filter(|_| may_be_bf16(weight));
        let few_integer = pairs.map_or(FEW_INTEGER, |pairs| pairs.few_integer);
        match rows {
            _ if cpu.exact => Self::Panel,
            _ if cpu.deterministic && float => Self::Float,
            _ if cpu.deterministic && matches!(weight, CpuWeight::Packed(_)) => Self::Integer,
            _ if cpu.deterministic => Self::Panel,
            _ if float && rows <= FEW_FLOAT => Self::Float,
            _ if rows <= few_integer && matches!(weight, CpuWeight::Packed(_)) => Self::Integer,
            0..=FEW_OTHER if !float => Self::Row,
            _ if pairs.is_some() => Self::Pairs,
            _ => Self::Panel,
        }
    }

    /// Whether all rows are multiplied together.
    fn is_blocked(self) -> bool {
        matches!(self, Self::Panel | Self::Pairs)
    }
}

/// Whether rounding to `bf16` loses little beside what the encoding lost.
fn may_be_bf16(weight: &CpuWeight) -> bool {
    matches!(weight, CpuWeight::Packed(_)) || weight.format() == Format::Bf16
}

/// See [`crate::Backend::linear`].
pub(super) fn forward(
    cpu: &Cpu,
    x: &CpuBuf,
    rows: usize,
    dtype: Dtype,
    outputs: &mut [(&CpuWeight, &mut CpuBuf)],
) {
    let Some(cols) = outputs.first().map(|(weight, _)| weight.cols()) else { return };
    assert!(outputs.iter().all(|(weight, _)| weight.cols() == cols), "one x, one width");
    let x = &x[..rows * cols];
    if x.is_empty() {
        outputs.iter_mut().for_each(|(weight, y)| y[..rows * weight.rows()].fill(0.0));
        return;
    }
    let integer =
        |(weight, _): &(&CpuWeight, &mut CpuBuf)| Path::of(cpu, weight, rows) == Path::Integer;
    lend(&SPLIT, |numbers| {
        if outputs.iter().any(integer) {
            (cpu.kernels.quantize_rows)(x, cols, numbers);
        }
        let few = Few { cpu, x, numbers, rows, cols, dtype };
        for outputs in outputs.chunks_mut(MAX_RESULTS) {
            few.run(outputs);
        }
    });
    for outputs in outputs.chunks_mut(MAX_RESULTS) {
        let many = Many { cpu, x, rows, dtype };
        many.run(Path::Panel, outputs);
        many.run(Path::Pairs, outputs);
    }
}

/// A few rows of activations.
struct Few<'a> {
    cpu: &'a Cpu,
    /// `(rows, cols)`.
    x: &'a [f32],
    /// The same, where a weight needs it.
    numbers: &'a SplitRows,
    rows: usize,
    cols: usize,
    dtype: Dtype,
}

impl Few<'_> {
    /// The outputs whose path is not blocked.
    fn run(&self, outputs: &mut [(&CpuWeight, &mut CpuBuf)]) {
        let mut results: [Option<(&CpuWeight, Path, Tiles<'_, f32>)>; MAX_RESULTS] =
            Default::default();
        for (slot, (weight, y)) in results.iter_mut().zip(outputs) {
            let path = Path::of(self.cpu, weight, self.rows);
            if !path.is_blocked() {
                *slot = Some((*weight, path, Tiles::new(y, self.rows, weight.rows())));
            }
        }
        let results = &results;
        let parts = results.iter().flatten().map(|(weight, ..)| parts_of(weight)).sum();
        self.cpu.pool.run(parts, |mut part| {
            for (weight, path, y) in results.iter().flatten() {
                let here = parts_of(weight);
                if part < here {
                    let first = part * part_rows(weight);
                    let range = first..weight.rows().min(first + part_rows(weight));
                    return self.part(weight, *path, y, range);
                }
                part -= here;
            }
        });
    }

    /// Output features `range` of one weight, for all rows.
    fn part(&self, weight: &CpuWeight, path: Path, y: &Tiles<'_, f32>, range: Range<usize>) {
        for first in (0..self.rows).step_by(dot_packed::MAX_ROWS) {
            let end = self.rows.min(first + dot_packed::MAX_ROWS);
            // SAFETY: parts differ in `range`; a part has one tile at a time.
            let mut tile: [&mut [f32]; dot_packed::MAX_ROWS] =
                unsafe { y.rows(first, end, &range) };
            let tile = &mut tile[..end - first];
            let x = &self.x[first * self.cols..end * self.cols];
            let kernels = self.cpu.kernels;
            match (weight, weight.row_range(range.clone())) {
                (CpuWeight::Packed(packed), _) => {
                    let groups = range.start / GROUP_ROWS..range.end.div_ceil(GROUP_ROWS);
                    let (format, stride) = (packed.format(), packed.group_bytes());
                    let weights = Groups { format, bytes: packed.groups(groups), stride };
                    (kernels.dot_packed)(weights, self.numbers, first, tile);
                }
                (_, Some(weights)) if path == Path::Float => (kernels.dot_float)(weights, x, tile),
                (_, Some(weights)) => self.dequantized_rows(weights, x, tile),
                (_, None) => unreachable!("only packed weights have no rows"),
            }
            round(self.dtype, tile);
        }
    }

    fn dequantized_rows(&self, weights: RowBytes<'_>, x: &[f32], y: &mut [&mut [f32]]) {
        let kernels = self.cpu.kernels;
        lend_floats(&ROW, self.cols, |row| {
            for n in 0..y[0].len() {
                (kernels.dequantize)(weights.format, weights.row(n), row);
                let bytes = bytemuck::cast_slice(row);
                let row = RowBytes { format: Format::F32, bytes, stride: bytes.len() };
                let mut columns = y.iter_mut().map(|y| &mut y[n..=n]);
                let mut tile: [&mut [f32]; dot_float::MAX_ROWS] =
                    std::array::from_fn(|_| columns.next().unwrap_or_default());
                (kernels.dot_float)(row, x, &mut tile[..x.len() / self.cols]);
            }
        });
    }
}

/// Rows of `weight` in a part: whole groups.
fn part_rows(weight: &CpuWeight) -> usize {
    let bytes = (weight.bytes() / FEW_PARTS).clamp(PART_BYTES.0, PART_BYTES.1);
    (bytes / weight.row_bytes().max(1)).max(1).next_multiple_of(GROUP_ROWS)
}

fn parts_of(weight: &CpuWeight) -> usize {
    weight.rows().div_ceil(part_rows(weight))
}

/// Many rows of activations.
struct Many<'a> {
    cpu: &'a Cpu,
    /// `(rows, cols)`.
    x: &'a [f32],
    rows: usize,
    dtype: Dtype,
}

impl Many<'_> {
    /// The outputs that take `path`, a blocked one.
    fn run(&self, path: Path, outputs: &mut [(&CpuWeight, &mut CpuBuf)]) {
        let &Self { cpu, rows, .. } = self;
        let mut weights: [Option<&CpuWeight>; MAX_RESULTS] = Default::default();
        let mut results: [Tiles<'_, f32>; MAX_RESULTS] =
            std::array::from_fn(|_| Tiles::new(&mut [], rows, 0));
        let mut n = 0;
        for (weight, y) in outputs {
            if Path::of(cpu, weight, rows) == path {
                weights[n] = Some(*weight);
                results[n] = Tiles::new(y, rows, weight.rows());
                n += 1;
            }
        }
        let pairs = cpu.pairs.filter(|_| path == Path::Pairs);
        if n > 0 {
            self.product(pairs, &weights, &results[..n]);
        }
    }

    /// One product with all weights, of pairs or of `f32`.
    fn product(
        &self,
        pairs: Option<&Pairs>,
        weights: &[Option<&CpuWeight>],
        results: &[Tiles<'_, f32>],
    ) {
        let &Self { cpu, x, rows, dtype } = self;
        let cols = x.len() / rows;
        Product {
            rows,
            depth: if pairs.is_some() { cols.div_ceil(2) } else { cols },
            blocking: pairs.map_or(VECTORS, |pairs| pairs.blocking),
            start: Start::Zero,
            dtype,
            multiply: pairs.map_or(cpu.kernels.multiply, |pairs| pairs.kernels.multiply),
            left: &|rows, words, strip| match pairs {
                Some(pairs) => pack_row_pairs(pairs, x, cols, rows, words, strip),
                None => pack_rows(x, cols, rows, words, strip),
            },
            right: &|index, words, features, panels| {
                if let Some(weight) = weights[index] {
                    pack_weight(cpu, pairs, weight, words, features, panels);
                }
            },
        }
        .run(cpu, results);
    }
}

/// See [`crate::Backend::linear_backward_input`].
pub(super) fn backward_input(
    cpu: &Cpu,
    dy: &CpuBuf,
    rows: usize,
    weight: &CpuWeight,
    dx: &mut CpuBuf,
) {
    let (out, cols) = (weight.rows(), weight.cols());
    let dy = &dy[..rows * out];
    Product {
        rows,
        depth: out,
        blocking: VECTORS.with_blocks(weight.format().block_len()),
        start: Start::Held,
        dtype: Dtype::F32,
        multiply: cpu.kernels.multiply,
        left: &|rows, depth, strip| pack_rows(dy, out, rows, depth, strip),
        right: &|_, depth, cols, panels| {
            let mut row = [0.0; STEP];
            for (k, out) in depth.clone().enumerate() {
                let row = &mut row[..cols.len()];
                weight.dequantize(cpu.kernels, out, cols.clone(), row);
                pack_panel_row(row, k, depth.len(), panels);
            }
        },
    }
    .run(cpu, &[Tiles::new(dx, rows, cols)]);
}

/// See [`crate::Backend::linear_backward_weight`].
pub(super) fn backward_weight(
    cpu: &Cpu,
    x: &CpuBuf,
    cols_in: usize,
    dy: &CpuBuf,
    cols_out: usize,
    rows: usize,
    dw: &mut CpuBuf,
) {
    let (x, dy) = (&x[..rows * cols_in], &dy[..rows * cols_out]);
    Product {
        rows: cols_out,
        depth: rows,
        blocking: VECTORS,
        start: Start::Held,
        dtype: Dtype::F32,
        multiply: cpu.kernels.multiply,
        left: &|features, depth, strip| {
            for (row, strip) in depth.zip(strip.as_chunks_mut::<STRIP>().0) {
                let dy = &dy[row * cols_out..][features.clone()];
                strip[..dy.len()].copy_from_slice(dy);
            }
        },
        right: &|_, depth, cols, panels| {
            for (k, row) in depth.clone().enumerate() {
                pack_panel_row(&x[row * cols_in..][cols.clone()], k, depth.len(), panels);
            }
        },
    }
    .run(cpu, &[Tiles::new(dw, cols_out, cols_in)]);
}

#[cfg(test)]
mod tests;
