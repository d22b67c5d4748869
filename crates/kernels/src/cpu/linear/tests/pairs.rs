//! Products of `bf16` pairs on every instruction set that has them, for any number of rows: the few
//! that another path would take as well. In: shapes that end within strips, tiles, panels and
//! steps. Out: exact sums of whole numbers, and the bits of a row whatever is beside it.

use super::*;

/// Within one tile, its end, one more, within two, one strip and more, several.
const ROWS: [usize; 7] = [1, 15, 16, 17, 31, 33, 100];
/// Whole tiles of 32 values, half ones, odd ends, and more than one step of 512.
const COLS: [usize; 10] = [1, 2, 16, 31, 32, 48, 64, 513, 560, 1061];

fn cpus() -> Vec<Cpu> {
    let cpus = kernels::names().into_iter().map(|isa| cpu(isa, 2, false));
    cpus.filter(|cpu| cpu.pairs.is_some()).collect()
}

/// `y = x · Wᵀ` in pairs; what lies behind the result is untouched.
fn product(cpu: &Cpu, weight: &CpuWeight, x: &[f32], rows: usize) -> Vec<f32> {
    let len = rows * weight.rows();
    let mut y = poisoned(len + 40);
    let many = Many { cpu, x: &x[..rows * weight.cols()], rows, dtype: Dtype::F32 };
    many.product(cpu.pairs, &[Some(weight)], &[Tiles::new(&mut y, rows, weight.rows())]);
    assert!(y[len..].iter().all(|y| y.is_nan()), "wrote past the result");
    y[..len].to_vec()
}

/// Whole numbers from -8 to 8.
fn whole(noise: &mut Noise, len: usize) -> Vec<f32> {
    (0..len).map(|_| (noise.next() % 17) as f32 - 8.0).collect()
}

fn bf16_weight(values: &[f32], cols: usize) -> CpuWeight {
    let bytes: Vec<u8> =
        values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let rows = values.len() / cols;
    let data = WeightData { format: Format::Bf16, rows, cols, bytes: Bytes::from(bytes) };
    CpuWeight::new(&Pool::new(1), data).unwrap()
}

/// Every product and every sum is a whole number below 2^24, so there is one right answer.
#[test]
fn whole_numbers_are_exact() {
    for cpu in cpus() {
        let mut noise = Noise(20);
        for cols in COLS {
            for out in OUTS {
                let w = whole(&mut noise, out * cols);
                let weight = bf16_weight(&w, cols);
                let x = whole(&mut noise, 100 * cols);
                for rows in ROWS {
                    for (i, y) in product(&cpu, &weight, &x, rows).into_iter().enumerate() {
                        let (x, w) = (&x[i / out * cols..], &w[i % out * cols..]);
                        let (sum, _) = sums(cols, |k| (x[k], w[k]));
                        let what = cpu.isa();
                        assert_eq!(f64::from(y), sum, "{what} {rows}x{cols}x{out} at {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_beside_any_others() {
    for cpu in cpus() {
        let mut noise = Noise(21);
        for (format, cols) in [(Format::Bf16, 1061), (Format::Q4_0, 544), (Format::Q6K, 768)] {
            for out in [17, 48, 250] {
                let weight = noise.weight(format, out, cols);
                let x = noise.buf(100 * cols);
                let all = bits(&product(&cpu, &weight, &x, 100));
                for rows in ROWS {
                    let some = bits(&product(&cpu, &weight, &x, rows));
                    assert!(some == all[..rows * out], "{} {format} {rows}x{out}", cpu.isa());
                }
                // In other places of a strip.
                for first in [1, 16, 31, 99] {
                    let one = bits(&product(&cpu, &weight, &x[first * cols..], 1));
                    assert!(one == all[first * out..][..out], "{} {format} {first}", cpu.isa());
                }
            }
        }
    }
}

/// What is not finite shows in its own row and nowhere else: not in rows beside it, nor through
/// the zeros that fill up depth.
#[test]
fn infinities_stay_in_their_row() {
    for cpu in cpus() {
        let (cols, out, rows) = (51, 35, 40);
        let weight = bf16_weight(&vec![1.0; out * cols], cols);
        for bad in [0, 15, 16, 31, 32, 39] {
            let mut x = vec![1.0; rows * cols];
            x[bad * cols + 50] = f32::INFINITY;
            for (i, y) in product(&cpu, &weight, &x, rows).into_iter().enumerate() {
                let right = if i / out == bad { f32::INFINITY } else { 51.0 };
                assert_eq!(y, right, "{} {bad} at {i}", cpu.isa());
            }
        }
    }
}
