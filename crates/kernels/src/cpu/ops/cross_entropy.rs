//! Loss of each row of logits: `nll = log Σ exp(x) - x[target]`; backward
//! `dx += weight (softmax(x) - onehot(target))`. A row without a target has neither.

use super::vector::{load, load_or, max, store};
use crate::cpu::Cpu;
use crate::cpu::isa::Isa;

/// Values summed in `f32` before the sum is carried on in `f64`.
const SUM_CHUNK: usize = 4096;

/// Fills nll `(targets)` from logits `(targets, vocab_size)`.
pub(crate) fn forward(cpu: &Cpu, logits: &[f32], targets: &[Option<u32>], nll: &mut [f32]) {
    let vocab_size = logits.len() / targets.len().max(1);
    cpu.pool.for_each_chunk(nll, 1, |r, nll| {
        nll[0] = targets[r].map_or(0.0, |target| {
            let row = &logits[r * vocab_size..][..vocab_size];
            (cpu.kernels.log_sum_exp)(row) - row[target as usize]
        });
    });
}

/// Adds to dlogits `(targets, vocab_size)`.
pub(crate) fn backward(
    cpu: &Cpu,
    logits: &[f32],
    targets: &[Option<u32>],
    weights: &[f32],
    dlogits: &mut [f32],
) {
    let vocab_size = logits.len() / targets.len().max(1);
    if vocab_size == 0 {
        return;
    }
    cpu.pool.for_each_chunk(dlogits, vocab_size, |r, dlogits| {
        let Some(target) = targets[r] else { return };
        let row = &logits[r * vocab_size..][..vocab_size];
        (cpu.kernels.softmax_add)(row, weights[r], dlogits);
        dlogits[target as usize] -= weights[r];
    });
}

/// `log Σ exp(x)`.
#[inline(always)]
pub(crate) fn log_sum_exp<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let largest = max(isa, x);
    if largest.is_infinite() {
        return largest;
    }
    let shift = isa.splat(largest);
    let mut total = 0.0;
    for x in x.chunks(SUM_CHUNK) {
        let mut sum = isa.splat(0.0);
        for at in (0..x.len()).step_by(I::LANES) {
            let v = load_or(isa, &x[at..], f32::NEG_INFINITY);
            sum = isa.add(sum, isa.exp(isa.sub(v, shift)));
        }
        total += f64::from(isa.reduce_sum(sum));
    }
    (f64::from(largest) + total.ln()) as f32
}

/// `dx += weight softmax(x)`.
#[inline(always)]
pub(crate) fn softmax_add<I: Isa>(isa: I, x: &[f32], weight: f32, dx: &mut [f32]) {
    let shift = isa.splat(log_sum_exp(isa, x));
    let weight = isa.splat(weight);
    for at in (0..x.len()).step_by(I::LANES) {
        let p = isa.exp(isa.sub(load(isa, &x[at..]), shift));
        let tail = &mut dx[at..];
        store(isa, isa.fma(weight, p, load(isa, tail)), tail);
    }
}
