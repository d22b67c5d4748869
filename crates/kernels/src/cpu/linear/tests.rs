//! Linear layers of every format, on every instruction set and path. In: weights of random codes
//! under usual scales, `x` `(rows, cols)` and `dy` `(rows, out)` even over `-1..1`. Out: `y`, `dx`
//! and `dw`, held against sums in `f64` over `Format::dequantize`, within
//! `F32_ERROR * Σ |w x|` and what rounding activations costs; where a path promises the same bits,
//! against another run. [`packed`] has what only packed weights promise.

mod packed;
mod pairs;
mod shapes;

use bytes::Bytes;

use super::*;
use crate::cpu::pool::Pool;
use crate::cpu::{CpuOptions, embed, kernels};
use crate::{OutOfMemory, WeightData};

/// Relative to `Σ |w x|`: at most some hundred roundings of 6e-8 each, most of them cancelling.
const F32_ERROR: f64 = 1e-5;
/// Likewise where both factors are rounded to `bf16`: half a step of 2^-8 each.
const PAIRS_ERROR: f64 = 0.00391;
const ROWS: [usize; 6] = [1, 2, 3, 7, 33, 100];
const OUTS: [usize; 4] = [1, 17, 48, 250];

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `-1..1`.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn buf(&mut self, len: usize) -> CpuBuf {
        let mut buf = zeros(len);
        buf.fill_with(|| self.value());
        buf
    }

    /// Any bits under scales of 2^-7 to 2^-3, of either sign.
    fn weight(&mut self, format: Format, rows: usize, cols: usize) -> CpuWeight {
        self.weight_and_values(format, rows, cols).0
    }

    /// Likewise, and its `(rows, cols)` values by the format's own reference.
    fn weight_and_values(
        &mut self,
        format: Format,
        rows: usize,
        cols: usize,
    ) -> (CpuWeight, Vec<f32>) {
        let len = rows * format.row_bytes(cols).unwrap();
        let mut bytes: Vec<u8> = (0..=len).map(|_| self.next() as u8).collect();
        for block in bytes[1..].chunks_exact_mut(format.block_bytes()) {
            self.usual_scales(format, block);
        }
        // An odd address: files promise no alignment.
        let bytes = Bytes::from(bytes).slice(1..);
        let mut values = vec![0.0; rows * cols];
        format.dequantize(&bytes, &mut values);
        let data = WeightData { format, rows, cols, bytes };
        (CpuWeight::new(&Pool::new(2), data).unwrap(), values)
    }

    fn usual_scales(&mut self, format: Format, block: &mut [u8]) {
        use Format::*;
        let f16_at: &[usize] = match format {
            F32 | Q8K => {
                block[..4].copy_from_slice(&self.value().to_le_bytes());
                &[]
            }
            Bf16 => {
                block.copy_from_slice(&self.value().to_le_bytes()[2..]);
                &[]
            }
            // The top four bits of the scale are those of the last byte.
            Iq1M => {
                block[55] = block[55] & 15 | 0x20;
                &[]
            }
            Mxfp4 => {
                block[0] = 120 + (self.next() % 4) as u8;
                &[]
            }
            Q4_1 | Q5_1 | Q4K | Q5K => &[0, 2],
            Q2K => &[80, 82],
            Q3K => &[108],
            Q6K => &[208],
            Tq1_0 => &[52],
            Tq2_0 => &[64],
            _ => &[0],
        };
        for &at in f16_at {
            block[at + 1] = block[at + 1] & 0x8f | 0x20;
        }
    }
}

fn zeros(len: usize) -> CpuBuf {
    CpuBuf::zeros(len, "test").unwrap()
}

fn poisoned(len: usize) -> CpuBuf {
    let mut buf = zeros(len);
    buf.fill(f32::NAN);
    buf
}

fn cpu(isa: &str, threads: usize, exact: bool) -> Cpu {
    let isa = Some(isa.to_owned());
    Cpu::new(&CpuOptions { threads, isa, exact, ..CpuOptions::default() }).unwrap()
}

fn deterministic(isa: &str) -> Cpu {
    let isa = Some(isa.to_owned());
    Cpu::new(&CpuOptions { threads: 2, isa, deterministic: true, ..CpuOptions::default() }).unwrap()
}

/// `Σ a b` and `Σ |a b|` over `len` products.
fn sums(len: usize, product: impl Fn(usize) -> (f32, f32)) -> (f64, f64) {
    (0..len).map(product).fold((0.0, 0.0), |(sum, size), (a, b)| {
        let product = f64::from(a) * f64::from(b);
        (sum + product, size + product.abs())
    })
}

fn widths(format: Format) -> Vec<usize> {
    match format.block_len() {
        1 => vec![1, 7, 50, 64, 600],
        32 => vec![32, 96, 544],
        len => vec![len, 3 * len],
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What rounding activations to whole numbers may cost one output: half a step each.
fn rounding_bound(x: &[f32], w: &[f32]) -> f64 {
    let groups = x.chunks(32).zip(w.chunks(32));
    groups
        .map(|(x, w)| {
            let top = x.iter().fold(0f32, |top, x| top.max(x.abs()));
            f64::from(top) / 32_512.0 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
        })
        .sum::<f64>()
        * 1.001
}

/// Holds every output of `rows` rows against the oracle. Returns the root of the squares of errors
/// over the squares of products: the error's share of what a random sum is.
fn forward_error(cpu: &Cpu, weight: &CpuWeight, w: &[f32], x: &CpuBuf, rows: usize) -> f64 {
    let (out, cols) = (weight.rows(), weight.cols());
    let mut y = poisoned(rows * out + 3);
    forward(cpu, x, rows, Dtype::F32, &mut [(weight, &mut y)]);
    let path = Path::of(cpu, weight, rows);
    let (mut error_squares, mut natural_squares) = (0.0, 0.0);
    for (i, y) in y[..rows * out].iter().enumerate() {
        let (x, w) = (&x[i / out * cols..][..cols], &w[i % out * cols..][..cols]);
        let (sum, size) = sums(cols, |k| (x[k], w[k]));
        let rounding = match path {
            Path::Integer => rounding_bound(x, w),
            Path::Pairs => PAIRS_ERROR * size,
            _ => 0.0,
        };
        let error = (f64::from(*y) - sum).abs();
        assert!(
            error <= F32_ERROR * size + rounding,
            "{} {} {path:?} {rows}x{cols}x{out} at {i}: {y} for {sum}",
            cpu.isa(),
            weight.format(),
        );
        error_squares += error * error;
        natural_squares += (0..cols).map(|k| f64::from(x[k] * w[k]).powi(2)).sum::<f64>();
    }
    assert!(y[rows * out..].iter().all(|y| y.is_nan()), "wrote past the result");
    (error_squares / natural_squares).sqrt()
}

fn check_forward(cpu: &Cpu, weight: &CpuWeight, w: &[f32], x: &CpuBuf, rows: usize) {
    let share = forward_error(cpu, weight, w, x, rows);
    if rows * weight.rows() >= 17 {
        // Uniform activations in steps of 2/32512: 0.003 % of their size. Two factors of bf16: each
        // within 2^-9 of its size, evenly, or some 0.2 % together.
        let most = if Path::of(cpu, weight, rows) == Path::Pairs { 3e-3 } else { 1e-4 };
        assert!(share <= most, "{} {} {rows}: {share}", cpu.isa(), weight.format());
    }
}

/// Holds `dx += dy · W` against the oracle.
fn check_backward(cpu: &Cpu, weight: &CpuWeight, w: &[f32], rows: usize, noise: &mut Noise) {
    let (out, cols) = (weight.rows(), weight.cols());
    let (dy, before) = (noise.buf(rows * out), noise.buf(rows * cols));
    let mut dx = zeros(rows * cols);
    dx.copy_from_slice(&before);
    backward_input(cpu, &dy, rows, weight, &mut dx);
    for (i, dx) in dx.iter().enumerate() {
        let (r, c) = (i / cols, i % cols);
        let (sum, size) = sums(out, |n| (dy[r * out + n], w[n * cols + c]));
        let error = (f64::from(*dx) - f64::from(before[i]) - sum).abs();
        let what = (cpu.isa(), weight.format());
        assert!(error <= F32_ERROR * (size + 1.0), "{what:?} {rows} at {i}: {error}");
    }
}

#[test]
fn forward_agrees_with_the_oracle_for_every_format() {
    for isa in kernels::names() {
        let backends = [cpu(isa, 2, false), cpu(isa, 2, true)];
        for format in Format::ALL {
            let mut noise = Noise(format as u64);
            for cols in widths(format) {
                for out in OUTS {
                    let (weight, w) = noise.weight_and_values(format, out, cols);
                    let x = noise.buf(100 * cols);
                    for rows in ROWS {
                        backends.iter().for_each(|cpu| check_forward(cpu, &weight, &w, &x, rows));
                    }
                }
            }
        }
    }
}

#[test]
fn backward_of_the_input_agrees_with_the_oracle_for_every_format() {
    for isa in kernels::names() {
        let cpu = cpu(isa, 2, false);
        for format in Format::ALL {
            let mut noise = Noise(format as u64 + 100);
            for (cols, (out, rows)) in
                widths(format).into_iter().zip([(1, 7), (17, 1), (250, 33), (300, 2), (48, 100)])
            {
                let (weight, w) = noise.weight_and_values(format, out, cols);
                check_backward(&cpu, &weight, &w, rows, &mut noise);
            }
        }
    }
}

#[test]
fn backward_of_the_weight_agrees_with_the_oracle() {
    for isa in kernels::names() {
        let cpu = cpu(isa, 2, false);
        let mut noise = Noise(7);
        for (rows, cols_in, cols_out) in
            [(1, 1, 1), (2, 50, 17), (7, 64, 48), (33, 250, 6), (300, 17, 130), (5, 33, 600)]
        {
            let (x, dy) = (noise.buf(rows * cols_in), noise.buf(rows * cols_out));
            let before = noise.buf(cols_out * cols_in);
            let mut dw = zeros(cols_out * cols_in);
            dw.copy_from_slice(&before);
            backward_weight(&cpu, &x, cols_in, &dy, cols_out, rows, &mut dw);
            for (i, dw) in dw.iter().enumerate() {
                let (o, c) = (i / cols_in, i % cols_in);
                let (sum, size) = sums(rows, |r| (dy[r * cols_out + o], x[r * cols_in + c]));
                let error = (f64::from(*dw) - f64::from(before[i]) - sum).abs();
                assert!(error <= F32_ERROR * (size + 1.0), "{isa} at {i}: {error}");
            }
        }
    }
}

/// More than one block of rows (516 at most) and of depth (4,096), so that blocks join.
#[test]
fn blocks_of_rows_and_depth_join() {
    let mut noise = Noise(8);
    let (rows, cols, out) = (530, 4400, 18);
    let cpu = cpu(kernels::names()[0], 2, false);
    let (weight, w) = noise.weight_and_values(Format::F32, out, cols);
    check_forward(&cpu, &weight, &w, &noise.buf(rows * cols), rows);
    // Twice as many columns, for words may be pairs of them.
    for (format, cols) in [(Format::Bf16, 8801), (Format::Q4_0, 8224)] {
        let (weight, w) = noise.weight_and_values(format, out, cols);
        check_forward(&cpu, &weight, &w, &noise.buf(rows * cols), rows);
    }
    let (weight, w) = noise.weight_and_values(Format::Q4_0, 4400, 32);
    let dy = noise.buf(3 * 4400);
    let mut dx = zeros(3 * 32);
    backward_input(&cpu, &dy, 3, &weight, &mut dx);
    for (i, dx) in dx.iter().enumerate() {
        let (sum, size) = sums(4400, |n| (dy[i / 32 * 4400 + n], w[n * 32 + i % 32]));
        assert!((f64::from(*dx) - sum).abs() <= F32_ERROR * size, "at {i}: {dx} for {sum}");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (cols, out) = (512, 250);
    for isa in kernels::names() {
        for format in [Format::F16, Format::Q4_1, Format::Q6K, Format::Iq2S] {
            for rows in [1, 3, 8, 100] {
                let run = |threads| {
                    let cpu = cpu(isa, threads, false);
                    let mut noise = Noise(1);
                    let weight = noise.weight(format, out, cols);
                    let (x, dy) = (noise.buf(rows * cols), noise.buf(rows * out));
                    let (mut y, mut dx) = (poisoned(rows * out), noise.buf(rows * cols));
                    let mut dw = noise.buf(out * cols);
                    forward(&cpu, &x, rows, Dtype::F32, &mut [(&weight, &mut y)]);
                    backward_input(&cpu, &dy, rows, &weight, &mut dx);
                    backward_weight(&cpu, &x, cols, &dy, out, rows, &mut dw);
                    [bits(&y), bits(&dx), bits(&dw)]
                };
                let one = run(1);
                assert!(one == run(2) && one == run(5), "{isa} {format} {rows}");
            }
        }
    }
}

#[test]
fn rows_of_a_batch_are_the_bits_of_a_row_alone() {
    let (cols, out, rows) = (768, 70, 103);
    for isa in kernels::names() {
        for format in Format::ALL {
            let mut noise = Noise(2);
            let weight = noise.weight(format, out, cols);
            let x = noise.buf(rows * cols);
            let run = |cpu: &Cpu, rows: Range<usize>| {
                let mut these = zeros(rows.len() * cols);
                these.copy_from_slice(&x[rows.start * cols..rows.end * cols]);
                let mut y = poisoned(rows.len() * out);
                forward(cpu, &these, rows.len(), Dtype::F32, &mut [(&weight, &mut y)]);
                bits(&y)
            };
            let alone = |cpu: &Cpu| -> Vec<u32> {
                (0..FEW_INTEGER).flat_map(|row| run(cpu, row..row + 1)).collect()
            };
            for (name, cpu) in [("exact", cpu(isa, 2, true)), ("pinned", deterministic(isa))] {
                let all = run(&cpu, 0..rows);
                assert!(alone(&cpu) == all[..FEW_INTEGER * out], "{isa} {format} {name}");
                for few in [2, 3, 5, 6, 7, 64] {
                    assert!(run(&cpu, 0..few) == all[..few * out], "{isa} {format} {name} {few}");
                }
                assert_eq!(cpu.rows_like_one(&weight), 64, "{isa} {format} {name}");
            }
            let fast = cpu(isa, 2, false);
            let alone = alone(&fast);
            for few in 2..=fast.rows_like_one(&weight).min(FEW_INTEGER) {
                assert!(run(&fast, 0..few) == alone[..few * out], "{isa} {format} {few}");
            }
        }
    }
}

#[test]
fn outputs_share_x_and_round() {
    let formats = [Format::Q4K, Format::F32, Format::Iq1S, Format::Q6K, Format::Bf16, Format::Q8_0];
    let (cols, cpu) = (512, cpu(kernels::names()[0], 2, false));
    for rows in [1, 5, 40] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let mut noise = Noise(3);
            let x = noise.buf(rows * cols);
            let weights = formats.map(|format| noise.weight(format, 33, cols));
            let mut together = formats.map(|_| poisoned(rows * 33));
            let mut outputs: Vec<_> = weights.iter().zip(&mut together).collect();
            forward(&cpu, &x, rows, dtype, &mut outputs);
            for (weight, together) in weights.iter().zip(&together) {
                let mut alone = poisoned(rows * 33);
                forward(&cpu, &x, rows, Dtype::F32, &mut [(weight, &mut alone)]);
                alone.iter_mut().for_each(|y| *y = dtype.round(*y));
                assert_eq!(bits(&alone), bits(together), "{} {rows}", weight.format());
            }
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_its_row_alone() {
    let (cols, out) = (512, 20);
    for isa in kernels::names() {
        let cpu = cpu(isa, 1, false);
        for format in [Format::Q4_0, Format::Q8_0, Format::Q4K, Format::F32] {
            for (rows, bad) in [(3, f32::NAN), (3, f32::INFINITY), (3, f32::NEG_INFINITY)] {
                let mut noise = Noise(4);
                let weight = noise.weight(format, out, cols);
                let mut x = noise.buf(rows * cols);
                x[cols + 77] = bad;
                let mut y = zeros(rows * out);
                forward(&cpu, &x, rows, Dtype::F32, &mut [(&weight, &mut y)]);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(y.is_finite(), i / out != 1, "{isa} {format} {bad} at {i}: {y}");
                }
            }
        }
    }
}

#[test]
fn tiny_and_zero_activations_give_tiny_and_zero_results() {
    for isa in kernels::names() {
        let cpu = cpu(isa, 1, false);
        for value in [0.0, 1e-40, 1e-31, 1e-20] {
            let mut x = zeros(64);
            x.fill(value);
            let weight = Noise(5).weight(Format::Q4_0, 4, 64);
            let mut y = poisoned(4);
            forward(&cpu, &x, 1, Dtype::F32, &mut [(&weight, &mut y)]);
            assert!(y.iter().all(|y| y.abs() <= value * 64.0), "{isa} {value}: {:?}", &y[..]);
        }
    }
}

#[test]
fn a_trainable_matrix_is_read_where_it_is_written() -> Result<(), OutOfMemory> {
    let cpu = cpu(kernels::names()[0], 1, false);
    let mut weight = CpuWeight::from_values(CpuBuf::zeros(6, "test")?, 2, 3);
    weight.values_mut().unwrap().copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut x = zeros(3);
    x.copy_from_slice(&[1.0, 10.0, 100.0]);
    let mut y = poisoned(2);
    forward(&cpu, &x, 1, Dtype::F32, &mut [(&weight, &mut y)]);
    assert_eq!(y[..], [321.0, 654.0]);
    assert_eq!(weight.format(), Format::F32);
    Ok(())
}

#[test]
fn embedding_and_its_backward() {
    for isa in kernels::names() {
        let cpu = cpu(isa, 3, false);
        for format in Format::ALL {
            let (table, values) = Noise(6).weight_and_values(format, 9, 256);
            let ids = [8, 0, 3, 3, 8];
            let mut y = poisoned(5 * 256);
            embed::forward(&cpu, &table, &ids, Dtype::F32, &mut y);
            for (y, id) in y.chunks(256).zip(ids) {
                assert_eq!(bits(y), bits(&values[id as usize * 256..][..256]), "{isa} {format}");
            }
        }
        let (dy, mut dtable) = (Noise(6).buf(4 * 70), zeros(5 * 70));
        dtable.fill(1.0);
        embed::backward(&cpu, &[2, 4, 2, 2], 70, &dy, &mut dtable);
        for (i, sum) in dtable.iter().enumerate() {
            let (id, c) = (i / 70, i % 70);
            let at = |r: usize| dy[r * 70 + c];
            let expected = match id {
                2 => 1.0 + at(0) + at(2) + at(3),
                4 => 1.0 + at(1),
                _ => 1.0,
            };
            assert_eq!(*sum, expected);
        }
    }
}

/// Two callers of one backend at once: one of them computes alone, both right.
#[test]
fn two_callers_do_not_disturb_each_other() {
    let cpu = cpu(kernels::names()[0], 2, false);
    let mut noise = Noise(9);
    let weight = noise.weight(Format::Q4_0, 300, 512);
    let x = noise.buf(40 * 512);
    let run = |rows: usize| {
        let mut y = poisoned(rows * 300);
        forward(&cpu, &x, rows, Dtype::F32, &mut [(&weight, &mut y)]);
        bits(&y)
    };
    let (few, many) = (run(2), run(40));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert!(run(2) == few && run(40) == many);
                }
            });
        }
    });
}
