//! The operands of blocked products: rows of activations as strips `[depth][6]`, rows of weights as
//! panels `[depth][16]`. A word of depth is an `f32`, or a pair of `bf16` values that are neighbours.

use std::ops::Range;

use super::Cpu;
use super::isa::PairKernels;
use super::ops::panel::{PANEL, STRIP};
use super::product::STEP;
use super::weight::CpuWeight;

/// Rows of a `(_, cols)` matrix over a range of columns, as a strip `[depth][6]`. Missing rows
/// keep what the strip held: their sums are not stored.
pub(super) fn pack_rows(
    x: &[f32],
    cols: usize,
    rows: Range<usize>,
    depth: Range<usize>,
    strip: &mut [f32],
) {
    for (i, row) in rows.enumerate() {
        let x = &x[row * cols..][depth.clone()];
        for (x, strip) in x.iter().zip(strip.as_chunks_mut::<STRIP>().0) {
            strip[i] = *x;
        }
    }
}

/// Likewise of words that are pairs.
pub(super) fn pack_row_pairs(
    pairs: &PairKernels,
    x: &[f32],
    cols: usize,
    rows: Range<usize>,
    words: Range<usize>,
    strip: &mut [f32],
) {
    let mut row_words = [0.0; STEP];
    for near in words.clone().step_by(STEP) {
        let step = near..words.end.min(near + STEP);
        let strip = &mut strip[(near - words.start) * STRIP..];
        let row_words = &mut row_words[..step.len()];
        for (i, row) in rows.clone().enumerate() {
            let x = &x[row * cols..(row + 1) * cols];
            (pairs.pair_up)(&x[2 * step.start..cols.min(2 * step.end)], row_words);
            for (word, strip) in row_words.iter().zip(strip.as_chunks_mut::<STRIP>().0) {
                strip[i] = *word;
            }
        }
    }
}

/// One row of a `B` into row `k` of panels `depth` deep.
pub(super) fn pack_panel_row(row: &[f32], k: usize, depth: usize, panels: &mut [f32]) {
    for (row, panel) in row.chunks(PANEL).zip(panels.chunks_exact_mut(depth * PANEL)) {
        panel[k * PANEL..][..row.len()].copy_from_slice(row);
    }
}

/// Output features of a weight over a range of words of its rows, as panels `[words][16]`. A word
/// is a value, or with `pairs` two.
pub(super) fn pack_weight(
    cpu: &Cpu,
    pairs: Option<&PairKernels>,
    weight: &CpuWeight,
    words: Range<usize>,
    features: Range<usize>,
    panels: &mut [f32],
) {
    let firsts = features.clone().step_by(PANEL);
    let panels = firsts.zip(panels.chunks_exact_mut(words.len() * PANEL));
    let (depth, packed_panel) = match pairs {
        Some(pairs) => (2 * words.start..weight.cols().min(2 * words.end), pairs.packed_panel),
        None => (words.clone(), cpu.kernels.packed_panel),
    };
    if let CpuWeight::Packed(packed) = weight {
        for (first, panel) in panels {
            packed_panel(packed.format(), packed.blocks(first / PANEL, &depth), panel);
        }
        return;
    }
    let mut rows = [0.0; STEP * PANEL];
    let mut values = [0.0; 2 * STEP];
    for (first, panel) in panels {
        for (row, feature) in rows.as_chunks_mut::<STEP>().0.iter_mut().zip(first..features.end) {
            let (row, values) = (&mut row[..words.len()], &mut values[..depth.len()]);
            match pairs {
                Some(pairs) => {
                    weight.dequantize(cpu.kernels, feature, depth.clone(), values);
                    (pairs.pair_up)(values, row);
                }
                None => weight.dequantize(cpu.kernels, feature, depth.clone(), row),
            }
        }
        (cpu.kernels.pack_panel)(&rows, STEP, panel);
    }
}
