//! What packed weights promise beyond the other formats. In: blocks of any bytes, shapes that fill
//! no group, codes and activations at the ends of their ranges. Out: rows and panels
//! `[depth][16]` that are `Format::dequantize` in bits (one NaN for all, whose payload no
//! reference defines), and dots within half a step of each activation.

use super::*;
use crate::cpu::packed::Packed;

const PACKED: [Format; 14] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q2K,
    Format::Q3K,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
    Format::Iq4Nl,
    Format::Iq4Xs,
    Format::Tq2_0,
    Format::Mxfp4,
];

/// What a result held before it was written.
const UNWRITTEN: f32 = 7.25e19;

/// A `(rows, cols)` weight of `bytes`, and its values by the format's own reference.
fn weight_of(format: Format, rows: usize, cols: usize, bytes: Vec<u8>) -> (CpuWeight, Vec<f32>) {
    let mut values = vec![UNWRITTEN; rows * cols];
    format.dequantize(&bytes, &mut values);
    let data = WeightData { format, rows, cols, bytes: Bytes::from(bytes) };
    (CpuWeight::new(&Pool::new(2), data).unwrap(), values)
}

fn same_bits(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// One group of `packed` as a panel, against `values` `(rows, cols)`. Rows that fill up the last
/// group are zeros, of either sign.
fn check_panel(cpu: &Cpu, packed: &Packed, values: &[f32], group: usize, depth: &Range<usize>) {
    let mut panel = vec![UNWRITTEN; depth.len() * PANEL];
    let blocks = packed.blocks(group, depth);
    (cpu.kernels.packed_panel)(packed.format(), blocks, &mut panel);
    for (at, got) in panel.into_iter().enumerate() {
        let (row, k) = (group * PANEL + at % PANEL, depth.start + at / PANEL);
        let right = match values.get(row * packed.cols()..) {
            Some(rest) if !rest.is_empty() => same_bits(got, rest[k]),
            _ => got == 0.0,
        };
        assert!(right, "{} {} row {row} weight {k}: {got}", cpu.isa(), packed.format());
    }
}

/// Random to the last bit: of 672 blocks and more, some twenty have an infinity or a NaN for a
/// scale, and some a subnormal number (one of mxfp4 in 256 each).
#[test]
fn any_bytes_are_the_bits_of_the_format() {
    let (rows, cols) = (21, 8192);
    let cpus = kernels::names().into_iter().map(|isa| cpu(isa, 1, false)).collect::<Vec<_>>();
    for format in PACKED {
        let mut noise = Noise(format as u64 + 200);
        let len = rows * format.row_bytes(cols).unwrap();
        let bytes = (0..len).map(|_| noise.next() as u8).collect();
        let (weight, values) = weight_of(format, rows, cols, bytes);
        assert!(values.iter().any(|value| !value.is_finite()), "{format} is not tried");
        assert!(
            values.iter().any(|value| *value != 0.0 && value.abs() < 6e-5),
            "{format} likewise"
        );
        let CpuWeight::Packed(packed) = &weight else { panic!("{format} is not packed") };
        for depth in [0..cols, 0..256, 256..cols] {
            for (row, values) in values.chunks_exact(cols).enumerate() {
                let mut out = vec![UNWRITTEN; depth.len()];
                packed.dequantize_row(row, depth.clone(), &mut out);
                let mut pairs = out.iter().zip(&values[depth.clone()]);
                assert!(pairs.all(|(got, value)| same_bits(*got, *value)), "{format} row {row}");
            }
            for (cpu, group) in cpus.iter().flat_map(|cpu| [(cpu, 0), (cpu, 1)]) {
                check_panel(cpu, packed, &values, group, &depth);
            }
        }
    }
}

/// No rows, no columns, one row, one more than a group, forward and backward.
#[test]
fn shapes_that_fill_no_group() {
    for isa in kernels::names() {
        let cpu = cpu(isa, 2, false);
        for format in Format::ALL {
            for (out, cols) in [(0, 0), (0, 256), (5, 0), (1, 256), (16, 0), (17, 256)] {
                let mut noise = Noise(10);
                let (weight, w) = noise.weight_and_values(format, out, cols);
                let is_packed = matches!(weight, CpuWeight::Packed(_));
                let expected = out >= GROUP_ROWS && PACKED.contains(&format);
                assert_eq!(is_packed, expected, "{format} {out} x {cols}");
                for rows in [0, 1, 5, 40] {
                    forward_error(&cpu, &weight, &w, &noise.buf(rows * cols), rows);
                    check_backward(&cpu, &weight, &w, rows, &mut noise);
                }
            }
        }
    }
}

/// Activation `k` of a row: the ends of the range alone and in turn, then numbers `128 h + 64`,
/// half way between two high bytes, with the largest of each group beside them to set the scale.
const EXTREME: [fn(usize) -> f32; 6] = [
    |_| 1.0,
    |_| -1.0,
    |k| if k.is_multiple_of(2) { 1.0 } else { -1.0 },
    |k| if k.is_multiple_of(32) { 1.0 } else { 64.0 / 16_256.0 },
    |k| if k.is_multiple_of(32) { 1.0 } else { 16_192.0 / 16_256.0 },
    |k| if k.is_multiple_of(32) { 1.0 } else { -16_192.0 / 16_256.0 },
];

/// Bytes that make codes, scales of parts and minima smallest, largest or of the other sign.
const FILLS: [u8; 8] = [0x00, 0xff, 0x80, 0x7f, 0x0f, 0xf0, 0x88, 0x08];

#[test]
fn extreme_codes_times_extreme_activations_do_not_overflow() {
    let (out, cols) = (19, 256);
    let mut x = zeros(EXTREME.len() * cols);
    for (i, x) in x.iter_mut().enumerate() {
        *x = EXTREME[i / cols](i % cols);
    }
    let cpus = kernels::names().into_iter().map(|isa| cpu(isa, 1, false)).collect::<Vec<_>>();
    for format in PACKED {
        for fill in FILLS {
            let mut bytes = vec![fill; out * format.row_bytes(cols).unwrap()];
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                Noise(11).usual_scales(format, block);
            }
            let (weight, w) = weight_of(format, out, cols, bytes);
            for cpu in &cpus {
                for rows in 1..=EXTREME.len() {
                    assert_eq!(Path::of(cpu, &weight, rows), Path::Integer);
                    forward_error(cpu, &weight, &w, &x, rows);
                }
            }
        }
    }
}
