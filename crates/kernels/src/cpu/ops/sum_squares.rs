//! `Σ x²` in `f64`, for gradient clipping. Chunks are fixed and their sums are added in order, so
//! that the number of threads does not change a bit.

use crate::cpu::Cpu;
use crate::cpu::isa::Isa;

/// Values of one part.
const CHUNK: usize = 1 << 16;
/// Sums kept side by side; the compiler makes vectors of them.
const LANES: usize = 8;

/// `Σ x²`.
pub(crate) fn sum_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    let mut sums = vec![0.0; x.len().div_ceil(CHUNK)];
    cpu.pool.for_each_chunk(&mut sums, 1, |i, sum| {
        let x = &x[i * CHUNK..];
        sum[0] = (cpu.kernels.sum_squares)(&x[..CHUNK.min(x.len())]);
    });
    sums.iter().sum()
}

/// `Σ x²` of one chunk. There is no `f64` primitive: plain code compiled for the instruction set
/// is as fast as memory.
#[inline(always)]
pub(crate) fn chunk<I: Isa>(_isa: I, x: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let lines = x.chunks_exact(LANES);
    let rest = lines.remainder();
    for line in lines {
        for i in 0..LANES {
            let v = f64::from(line[i]);
            sums[i] += v * v;
        }
    }
    let tail: f64 = rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    sums.iter().sum::<f64>() + tail
}
