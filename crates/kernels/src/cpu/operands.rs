//! The operands of blocked products: rows of activations as strips, rows of weights as panels
//! `[depth][16]`. A word of depth is an `f32`, or a pair of `bf16` values that are neighbours.

use std::ops::Range;

use super::Cpu;
use super::ops::panel::PANEL;
use super::product::{Pairs, STEP, VECTORS};
use super::weight::{CpuWeight, RowBytes};
use crate::Format;

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
        (VECTORS.put_row)(&x[row * cols..][depth.clone()], i, strip);
    }
}

/// Likewise of words that are pairs, [`STEP`] of them at most, in the order of the instruction set.
pub(super) fn pack_row_pairs(
    pairs: &Pairs,
    x: &[f32],
    cols: usize,
    rows: Range<usize>,
    words: Range<usize>,
    strip: &mut [f32],
) {
    let mut row_words = [0.0; STEP];
    for (i, row) in rows.enumerate() {
        let x = &x[row * cols..(row + 1) * cols][2 * words.start..cols.min(2 * words.end)];
        (pairs.kernels.pair_up)(x, &mut row_words[..words.len()]);
        (pairs.blocking.put_row)(&row_words[..pairs.blocking.filled(words.len())], i, strip);
    }
}

/// One row of a `B` into row `k` of panels `depth` deep.
pub(super) fn pack_panel_row(row: &[f32], k: usize, depth: usize, panels: &mut [f32]) {
    for (row, panel) in row.chunks(PANEL).zip(panels.chunks_exact_mut(depth * PANEL)) {
        panel[k * PANEL..][..row.len()].copy_from_slice(row);
    }
}

/// Output features of a weight over a range of words of its rows, as panels `[words][16]`, filled
/// up with zeros. A word is a value, or with `pairs` two.
pub(super) fn pack_weight(
    cpu: &Cpu,
    pairs: Option<&Pairs>,
    weight: &CpuWeight,
    words: Range<usize>,
    features: Range<usize>,
    panels: &mut [f32],
) {
    let panel_len = panels.len() / features.len().div_ceil(PANEL);
    let panels = features.clone().step_by(PANEL).zip(panels.chunks_exact_mut(panel_len));
    let (depth, packed_panel) = match pairs {
        Some(pairs) => {
            (2 * words.start..weight.cols().min(2 * words.end), pairs.kernels.packed_panel)
        }
        None => (words.clone(), cpu.kernels.packed_panel),
    };
    if let CpuWeight::Packed(packed) = weight {
        // Blocks are 32 long and more, so there is nothing to fill up.
        debug_assert_eq!(panel_len, words.len() * PANEL);
        for (first, panel) in panels {
            packed_panel(packed.format(), packed.blocks(first / PANEL, &depth), panel);
        }
        return;
    }
    let mut rows = [0.0; STEP * PANEL];
    for (first, panel) in panels {
        for (row, feature) in rows.as_chunks_mut::<STEP>().0.iter_mut().zip(first..features.end) {
            let row = &mut row[..words.len()];
            match (pairs, weight.row_range(feature..feature + 1)) {
                (Some(pairs), Some(RowBytes { format: Format::Bf16, bytes, .. })) => {
                    (pairs.kernels.copy_pairs)(&bytes[2 * depth.start..2 * depth.end], row);
                }
                (Some(_), _) => unreachable!("pairs are made of packed and of `bf16` weights"),
                (None, _) => weight.dequantize(cpu.kernels, feature, depth.clone(), row),
            }
        }
        (cpu.kernels.pack_panel)(&rows, STEP, panel);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cpu::pool::Pool;
    use crate::cpu::{CpuOptions, kernels};
    use crate::{Format, WeightData};

    /// The word of values `low` and `high`.
    fn word(low: f32, high: f32) -> u32 {
        low.to_bits() >> 16 | high.to_bits() & 0xffff_0000
    }

    fn cpus() -> impl Iterator<Item = Cpu> {
        kernels::names().into_iter().map(|isa| {
            let isa = Some(isa.to_owned());
            Cpu::new(&CpuOptions { threads: 1, isa, ..CpuOptions::default() }).unwrap()
        })
    }

    /// Value `k` of row `i`: a whole number, which `bf16` holds.
    fn value(i: usize, k: usize) -> f32 {
        (i * 19 + k) as f32 % 251.0 + 1.0
    }

    /// Rows 2, 3 and 4 of an odd width, from word 16 on: eleven words, the last a value and a zero.
    #[test]
    fn rows_of_pairs_lie_in_the_order_of_the_instruction_set() {
        let cols = 53;
        let x: Vec<f32> = (0..5 * cols).map(|i| value(i / cols, i % cols)).collect();
        for cpu in cpus() {
            let Some(pairs) = cpu.pairs else { continue };
            let depth = pairs.blocking.filled(11);
            let (height, run) = match cpu.isa() {
                "amx" => (32, 16),
                _ => (6, 1),
            };
            assert_eq!(depth, 11usize.next_multiple_of(run));
            let mut strip = vec![-1.0; height * depth];
            pack_row_pairs(pairs, &x, cols, 2..5, 16..27, &mut strip);
            for (at, got) in strip.iter().enumerate() {
                let (i, k) = (at / run % height, at / run / height * run + at % run);
                let right = match (i, k) {
                    (3.., _) => (-1.0f32).to_bits(),
                    (_, 11..) => 0,
                    (_, 10) => word(value(2 + i, 52), 0.0),
                    _ => word(value(2 + i, 32 + 2 * k), value(2 + i, 33 + 2 * k)),
                };
                assert_eq!(got.to_bits(), right, "{} row {i} word {k}", cpu.isa());
            }
        }
    }

    /// Two panels of twenty features: the words of an odd width, then zeros.
    #[test]
    fn panels_of_pairs_are_filled_up_with_zeros() {
        let (features, cols) = (20, 53);
        let values = (0..features * cols).map(|i| value(i / cols, i % cols));
        let bytes: Vec<u8> = values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
        let data =
            WeightData { format: Format::Bf16, rows: features, cols, bytes: Bytes::from(bytes) };
        let weight = CpuWeight::new(&Pool::new(1), data).unwrap();
        for cpu in cpus() {
            let Some(pairs) = cpu.pairs else { continue };
            let depth = pairs.blocking.filled(11);
            let mut panels = vec![-1.0; 2 * depth * PANEL];
            pack_weight(&cpu, Some(pairs), &weight, 16..27, 0..features, &mut panels);
            for (at, got) in panels.iter().enumerate() {
                let (k, feature) = (at / PANEL % depth, at / PANEL / depth * PANEL + at % PANEL);
                let right = match k {
                    11.. => 0,
                    10 => word(value(feature, 52), 0.0),
                    _ => word(value(feature, 32 + 2 * k), value(feature, 33 + 2 * k)),
                };
                if feature < features {
                    assert_eq!(got.to_bits(), right, "{} {feature} word {k}", cpu.isa());
                }
            }
        }
    }
}
