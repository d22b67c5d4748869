//! Root-mean-square norm. `y = round(x r) * weight` with `r = 1 / sqrt(mean(x²) + eps)`; with
//! `g = dy * weight`: `dx += r g - x r³ mean(g x)`, `dweight += Σ_rows dy x r`.

use super::rows_per_part;
use super::vector::{dot, load, store};
use crate::cpu::Cpu;
use crate::cpu::CpuBuf;
use crate::cpu::isa::Isa;
use crate::{Dtype, RmsNorm};

/// Columns of `dweight` that one part sums over all rows.
const WEIGHT_STRIP: usize = 64;

/// Fills y `(rows, width)`.
pub(crate) fn forward(cpu: &Cpu, x: &[f32], norm: &RmsNorm<'_, CpuBuf>, y: &mut [f32]) {
    let width = norm.width;
    let chunk = rows_per_part(width) * width;
    cpu.pool.for_each_chunk(y, chunk, |i, y| {
        let x = &x[i * chunk..][..y.len()];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            (cpu.kernels.rms_norm)(x, &norm.weight[..width], norm.eps, norm.dtype, y);
        }
    });
}

/// Adds to dx `(rows, width)` and dweight `(width)`.
pub(crate) fn backward(
    cpu: &Cpu,
    x: &[f32],
    norm: &RmsNorm<'_, CpuBuf>,
    dy: &[f32],
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    let width = norm.width;
    let chunk = rows_per_part(width) * width;
    cpu.pool.for_each_chunk(dx, chunk, |i, dx| {
        for (r, dx) in dx.chunks_exact_mut(width).enumerate() {
            let at = i * chunk + r * width;
            let (x, dy) = (&x[at..][..width], &dy[at..][..width]);
            (cpu.kernels.rms_norm_backward)(x, &norm.weight[..width], norm.eps, dy, dx);
        }
    });
    let Some(dweight) = dweight else { return };
    let mut factors = vec![0.0; x.len() / width];
    cpu.pool.for_each_chunk(&mut factors, rows_per_part(width), |i, factors| {
        for (r, factor) in factors.iter_mut().enumerate() {
            let row = i * rows_per_part(width) + r;
            *factor = (cpu.kernels.rms_factor)(&x[row * width..][..width], norm.eps);
        }
    });
    cpu.pool.for_each_chunk(dweight, WEIGHT_STRIP, |i, dweight| {
        let at = i * WEIGHT_STRIP;
        (cpu.kernels.rms_norm_backward_weight)((x, dy), width, at, &factors, dweight);
    });
}

/// `1 / sqrt(mean(x²) + eps)` of one row.
#[inline(always)]
pub(crate) fn factor<I: Isa>(isa: I, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(isa, x, x) / x.len() as f32 + eps).sqrt()
}

/// One row of the forward.
#[inline(always)]
pub(crate) fn row<I: Isa>(
    isa: I,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dtype: Dtype,
    y: &mut [f32],
) {
    let r = isa.splat(factor(isa, x, eps));
    for at in (0..x.len()).step_by(I::LANES) {
        let normed = isa.round_to(dtype, isa.mul(load(isa, &x[at..]), r));
        let v = isa.mul(normed, load(isa, &weight[at..]));
        store(isa, isa.round_to(dtype, v), &mut y[at..]);
    }
}

/// One row of dx.
#[inline(always)]
pub(crate) fn row_backward<I: Isa>(
    isa: I,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
) {
    let r = factor(isa, x, eps);
    let mut sum = isa.splat(0.0);
    for at in (0..x.len()).step_by(I::LANES) {
        let g = isa.mul(load(isa, &dy[at..]), load(isa, &weight[at..]));
        sum = isa.fma(g, load(isa, &x[at..]), sum);
    }
    let pull = isa.splat(-r * r * r * (isa.reduce_sum(sum) / x.len() as f32));
    let r = isa.splat(r);
    for at in (0..x.len()).step_by(I::LANES) {
        let g = isa.mul(load(isa, &dy[at..]), load(isa, &weight[at..]));
        let v = isa.fma(r, g, isa.mul(pull, load(isa, &x[at..])));
        let tail = &mut dx[at..];
        store(isa, isa.add(load(isa, tail), v), tail);
    }
}

/// Columns `at..` of dweight, as many as it has; `x_dy` are `(rows, width)`, `factors` `(rows)`.
#[inline(always)]
pub(crate) fn strip_backward_weight<I: Isa>(
    isa: I,
    (x, dy): (&[f32], &[f32]),
    width: usize,
    at: usize,
    factors: &[f32],
    dweight: &mut [f32],
) {
    let len = dweight.len();
    for (row, factor) in factors.iter().enumerate() {
        let x = &x[row * width + at..][..len];
        let dy = &dy[row * width + at..][..len];
        let factor = isa.splat(*factor);
        for at in (0..len).step_by(I::LANES) {
            let tail = &mut dweight[at..];
            let normed = isa.mul(load(isa, &x[at..]), factor);
            store(isa, isa.fma(load(isa, &dy[at..]), normed, load(isa, tail)), tail);
        }
    }
}
