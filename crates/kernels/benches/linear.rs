//! How near the linear layers come to the machine: one row against a plain read loop, many rows
//! against a loop of multiply-adds. Prints the best of some repeats, as other work only slows.
//!
//! `cargo bench -p puna-kernels --bench linear [-- THREADS [FORMAT ...]]`

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use puna_kernels::{Backend, Cpu, CpuOptions, Dtype, Format, WeightData};

const FORMATS: [Format; 10] = [
    Format::F32,
    Format::Bf16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q8_0,
    Format::Q4K,
    Format::Q6K,
    Format::Iq4Xs,
    Format::Iq2S,
];
/// Features in and out.
const SIZE: usize = 2048;
/// Bytes of weights that one pass of the few-row benches reads: beyond the caches.
const SET_BYTES: usize = 96 << 20;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let threads = args.next().map_or(1, |n| n.parse().expect("THREADS is a number"));
    let names: Vec<String> = args.collect();
    let cpu = Cpu::new(&CpuOptions { threads, ..CpuOptions::default() }).expect("PUNA_ISA");
    println!("{} with {} threads", cpu.isa(), cpu.threads());
    let (read, peak) = (read_loop(&cpu), multiply_add_loop());
    println!("one thread: read loop {read:.1} GB/s, multiply-adds {peak:.1} GFLOP/s");
    for format in FORMATS {
        if names.is_empty() || names.iter().any(|name| name == format.name()) {
            few_rows(&cpu, format, read);
            many_rows(&cpu, format, peak);
        }
    }
}

/// Seconds of the fastest of `repeats` calls, after one that warms up.
fn best(repeats: usize, mut call: impl FnMut()) -> f64 {
    call();
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    (0..repeats).map(time).fold(f64::INFINITY, f64::min)
}

/// GB/s of adding up a large array, in memory of the kind that weights lie in.
fn read_loop(cpu: &Cpu) -> f64 {
    let data = buf(cpu, SET_BYTES / 4);
    let data: &[u64] = bytemuck::cast_slice(&data);
    let seconds = best(7, || {
        let mut sums = [0u64; 16];
        for part in data.as_chunks::<16>().0 {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum = sum.wrapping_add(*value);
            }
        }
        black_box(sums);
    });
    SET_BYTES as f64 / seconds / 1e9
}

/// GFLOP/s of independent multiply-adds in registers; 0 where the machine has none of the kind.
fn multiply_add_loop() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        const TURNS: usize = 4_000_000;
        // SAFETY: the features were just checked.
        let seconds = best(7, || unsafe { fma_turns(TURNS) });
        return (TURNS * 12 * 8 * 2) as f64 / seconds / 1e9;
    }
    0.0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_turns(turns: usize) {
    use std::arch::x86_64::*;
    let (factor, term) = (black_box(_mm256_set1_ps(0.999)), black_box(_mm256_set1_ps(0.001)));
    let mut sums = [_mm256_set1_ps(1.0); 12];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
}

fn few_rows(cpu: &Cpu, format: Format, read: f64) {
    let bytes = format.row_bytes(SIZE).expect("whole blocks") * SIZE;
    let weights: Vec<_> = (0..SET_BYTES / bytes).map(|_| weight(cpu, format)).collect();
    let x = buf(cpu, 32 * SIZE);
    let mut y = buf(cpu, 32 * SIZE);
    let set = (weights.len() * bytes) as f64;
    print!("{:8}", format.name());
    let mut one = 0.0;
    for rows in [1, 2, 4, 8, 16, 17, 32] {
        let seconds = best(5, || {
            for weight in &weights {
                cpu.linear(&x, rows, Dtype::F32, &mut [(weight, &mut y)]);
            }
        });
        if rows == 1 {
            one = seconds;
            let speed = set / seconds / 1e9;
            print!(" 1 row {speed:.1} GB/s = {:.0} % of the loop;", 100.0 * speed / read);
        } else {
            print!(" {rows}: {:.2}x", seconds / one);
        }
    }
    println!();
}

fn many_rows(cpu: &Cpu, format: Format, peak: f64) {
    const ROWS: usize = 512;
    let weight = weight(cpu, format);
    let (x, mut y) = (buf(cpu, ROWS * SIZE), buf(cpu, ROWS * SIZE));
    let flop = 2.0 * (ROWS * SIZE * SIZE) as f64;
    let report = |what: &str, seconds: f64| {
        let speed = flop / seconds / 1e9;
        let share = 100.0 * speed / (peak * cpu.threads() as f64);
        print!(" {what} {speed:.0} GFLOP/s = {share:.0} % of the loop");
    };
    print!("{:8} {ROWS} rows:", "");
    let forward = || cpu.linear(&x, ROWS, Dtype::F32, &mut [(&weight, &mut y)]);
    report("forward", best(7, forward));
    let mut dx = buf(cpu, ROWS * SIZE);
    report("backward", best(5, || cpu.linear_backward_input(&x, ROWS, &weight, &mut dx)));
    println!();
}

fn buf(cpu: &Cpu, len: usize) -> <Cpu as Backend>::Buf {
    let mut buf = cpu.alloc(len, "bench").expect("memory");
    let values: Vec<f32> = (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    cpu.write(&mut buf, 0, &values);
    buf
}

/// Any bits but those of infinities: every byte is below 100.
fn weight(cpu: &Cpu, format: Format) -> <Cpu as Backend>::Weight {
    let len = format.row_bytes(SIZE).expect("whole blocks") * SIZE;
    let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 100) as u8).collect();
    let data = WeightData { format, rows: SIZE, cols: SIZE, bytes: Bytes::from(bytes) };
    cpu.weight(data).expect("memory")
}
