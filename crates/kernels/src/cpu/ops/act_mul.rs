//! The gated product of the MLP: `y = act(gate) * up`; backward `dgate += dy up act'(gate)`,
//! `dup += dy act(gate)`. Where a curve has a corner, its slope there is PyTorch's.

use super::CHUNK;
use super::vector::{load, store};
use crate::cpu::Cpu;
use crate::cpu::isa::Isa;
use crate::{Activation, Dtype};

/// Fills y; all slices are of its length.
pub(crate) fn forward(
    cpu: &Cpu,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    dtype: Dtype,
    y: &mut [f32],
) {
    cpu.pool.for_each_chunk(y, CHUNK, |i, y| {
        let (gate, up) = (&gate[i * CHUNK..][..y.len()], &up[i * CHUNK..][..y.len()]);
        (cpu.kernels.act_mul)(activation, gate, up, dtype, y);
    });
}

/// Adds to dgate and dup; all slices are of one length.
pub(crate) fn backward(
    cpu: &Cpu,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    (dgate, dup): (&mut [f32], &mut [f32]),
) {
    cpu.pool.for_each_chunks([dgate, dup], CHUNK, |i, [dgate, dup]| {
        let part = |x: &'_ [f32]| i * CHUNK..x.len().min((i + 1) * CHUNK);
        let (gate, up, dy) = (&gate[part(gate)], &up[part(up)], &dy[part(dy)]);
        (cpu.kernels.act_mul_backward)(activation, gate, up, dy, (dgate, dup));
    });
}

/// One slice of the forward.
#[inline(always)]
pub(crate) fn slice<I: Isa>(
    isa: I,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    dtype: Dtype,
    y: &mut [f32],
) {
    for at in (0..y.len()).step_by(I::LANES) {
        let act = isa.round_to(dtype, value(isa, activation, load(isa, &gate[at..])));
        let v = isa.round_to(dtype, isa.mul(act, load(isa, &up[at..])));
        store(isa, v, &mut y[at..]);
    }
}

/// One slice of the backward.
#[inline(always)]
pub(crate) fn slice_backward<I: Isa>(
    isa: I,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    (dgate, dup): (&mut [f32], &mut [f32]),
) {
    for at in (0..dgate.len()).step_by(I::LANES) {
        let x = load(isa, &gate[at..]);
        let dy = load(isa, &dy[at..]);
        let dact = isa.mul(dy, load(isa, &up[at..]));
        let tail = &mut dgate[at..];
        store(isa, isa.fma(dact, slope(isa, activation, x), load(isa, tail)), tail);
        let tail = &mut dup[at..];
        store(isa, isa.fma(dy, value(isa, activation, x), load(isa, tail)), tail);
    }
}

const QUICK: f32 = 1.702;
const LEAK: f32 = 0.01;
const GELU_CUBIC: f32 = 0.044_715;
/// `sqrt(2 / π)`.
const GELU_ROOT: f32 = 0.797_884_6;
/// `1 / sqrt(2 π)`.
const NORMAL_PEAK: f32 = 0.398_942_3;
#[allow(clippy::approx_constant, reason = "the definition has six digits, not 1/√2")]
const LAPLACE_MEAN: f32 = 0.707_107;
const LAPLACE_DEVIATION: f32 = 0.282_095;

/// `act(x)`. The branch is the same for every vector of a slice, so it costs nothing.
#[inline(always)]
fn value<I: Isa>(isa: I, activation: Activation, x: I::F32) -> I::F32 {
    let zero = isa.splat(0.0);
    let six = isa.splat(6.0);
    match activation {
        Activation::Silu => x_sigmoid(isa, x, 1.0),
        Activation::Gelu => isa.mul(x, normal_cdf(isa, x)),
        Activation::Gelu10 => isa.min(isa.splat(10.0), isa.mul(x, normal_cdf(isa, x))),
        Activation::GeluTanh => {
            let half = isa.mul(isa.splat(0.5), x);
            isa.fma(half, tanh(isa, gelu_inner(isa, x)), half)
        }
        Activation::QuickGelu => x_sigmoid(isa, x, QUICK),
        Activation::Relu => isa.max(zero, x),
        Activation::Relu2 => isa.mul(isa.max(zero, x), isa.max(zero, x)),
        Activation::Relu6 => isa.min(six, isa.max(zero, x)),
        Activation::LeakyRelu => isa.select_gt(x, zero, x, isa.mul(isa.splat(LEAK), x)),
        Activation::Linear => x,
        Activation::Sigmoid => sigmoid(isa, x),
        Activation::Tanh => tanh(isa, x),
        Activation::Mish => isa.mul(x, tanh_softplus(isa, x)),
        Activation::HardSwish => {
            let clamped = isa.min(six, isa.max(zero, isa.add(x, isa.splat(3.0))));
            isa.div(isa.mul(x, clamped), six)
        }
        Activation::Laplace => normal_cdf(isa, laplace_inner(isa, x)),
    }
}

/// `act'(x)`.
#[inline(always)]
fn slope<I: Isa>(isa: I, activation: Activation, x: I::F32) -> I::F32 {
    let (zero, one, six) = (isa.splat(0.0), isa.splat(1.0), isa.splat(6.0));
    let positive = isa.select_gt(x, zero, one, zero);
    match activation {
        Activation::Silu => x_sigmoid_slope(isa, x, 1.0),
        Activation::Gelu => gelu_slope(isa, x),
        Activation::Gelu10 => {
            let y = value(isa, Activation::Gelu, x);
            isa.select_gt(y, isa.splat(10.0), zero, gelu_slope(isa, x))
        }
        Activation::GeluTanh => gelu_tanh_slope(isa, x),
        Activation::QuickGelu => x_sigmoid_slope(isa, x, QUICK),
        Activation::Relu => positive,
        Activation::Relu2 => isa.mul(isa.splat(2.0), isa.max(zero, x)),
        Activation::Relu6 => isa.select_gt(six, x, positive, zero),
        Activation::LeakyRelu => isa.select_gt(x, zero, one, isa.splat(LEAK)),
        Activation::Linear => one,
        Activation::Sigmoid => {
            let s = sigmoid(isa, x);
            isa.mul(s, isa.sub(one, s))
        }
        Activation::Tanh => {
            let t = tanh(isa, x);
            isa.sub(one, isa.mul(t, t))
        }
        Activation::Mish => {
            let t = tanh_softplus(isa, x);
            let dt = isa.mul(sigmoid(isa, x), isa.sub(one, isa.mul(t, t)));
            isa.fma(x, dt, t)
        }
        Activation::HardSwish => {
            let inner = isa.add(isa.div(x, isa.splat(3.0)), isa.splat(0.5));
            let inner = isa.select_gt(x, isa.splat(-3.0), inner, zero);
            isa.select_gt(isa.splat(3.0), x, inner, one)
        }
        Activation::Laplace => {
            let density = normal_density(isa, laplace_inner(isa, x));
            isa.div(density, isa.splat(LAPLACE_DEVIATION))
        }
    }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn sigmoid<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let one = isa.splat(1.0);
    isa.div(one, isa.add(one, isa.exp(isa.sub(isa.splat(0.0), x))))
}

/// `x sigmoid(k x)`.
#[inline(always)]
fn x_sigmoid<I: Isa>(isa: I, x: I::F32, k: f32) -> I::F32 {
    isa.div(x, isa.add(isa.splat(1.0), isa.exp(isa.mul(isa.splat(-k), x))))
}

/// `s + k x s (1 - s)` with `s = sigmoid(k x)`.
#[inline(always)]
fn x_sigmoid_slope<I: Isa>(isa: I, x: I::F32, k: f32) -> I::F32 {
    let kx = isa.mul(isa.splat(k), x);
    let s = sigmoid(isa, kx);
    isa.fma(isa.mul(kx, s), isa.sub(isa.splat(1.0), s), s)
}

/// `tanh(x) = t / (t + 2)` with `t = exp(2x) - 1`, which keeps small values exact.
#[inline(always)]
fn tanh<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let t = isa.exp_m1(isa.add(x, x));
    isa.div(t, isa.add(t, isa.splat(2.0)))
}

/// `tanh(ln(1 + e))` with `e = exp(x)`: `n / (n + 2)`, `n = e (e + 2)`. Beyond 20 it is 1.
#[inline(always)]
fn tanh_softplus<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let two = isa.splat(2.0);
    let e = isa.exp(isa.min(isa.splat(20.0), x));
    let n = isa.mul(e, isa.add(e, two));
    isa.div(n, isa.add(n, two))
}

#[inline(always)]
fn gelu_inner<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let cube = isa.mul(isa.mul(x, x), x);
    isa.mul(isa.splat(GELU_ROOT), isa.fma(isa.splat(GELU_CUBIC), cube, x))
}

/// `(1 + t)/2 + x/2 (1 - t²) root (1 + 3 cubic x²)`, `t = tanh(gelu_inner(x))`.
#[inline(always)]
fn gelu_tanh_slope<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let (half, one) = (isa.splat(0.5), isa.splat(1.0));
    let t = tanh(isa, gelu_inner(isa, x));
    let dinner = isa.fma(isa.splat(3.0 * GELU_CUBIC), isa.mul(x, x), one);
    let dt = isa.mul(isa.sub(one, isa.mul(t, t)), isa.mul(isa.splat(GELU_ROOT), dinner));
    isa.mul(half, isa.fma(x, dt, isa.add(one, t)))
}

/// `Φ(x) + x φ(x)`.
#[inline(always)]
fn gelu_slope<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    isa.fma(x, normal_density(isa, x), normal_cdf(isa, x))
}

#[inline(always)]
fn laplace_inner<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    isa.div(isa.sub(x, isa.splat(LAPLACE_MEAN)), isa.splat(LAPLACE_DEVIATION))
}

/// `φ(x) = exp(-x²/2) / sqrt(2π)`.
#[inline(always)]
fn normal_density<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    isa.mul(isa.splat(NORMAL_PEAK), isa.exp(isa.mul(isa.splat(-0.5), isa.mul(x, x))))
}

/// `Φ(x) = (1 + erf(x/√2)) / 2`, within 1e-6 of itself for |x| < 3 and to 1e-7 absolutely.
///
/// With `z = |x|/√2` and `t = 1/(1 + z/2)`, `erfc(z) = t exp(-z² + P(t))`; P is a Chebyshev fit
/// of degree 9 over `0 <= z <= 12`, good to 6e-8.
#[inline(always)]
fn normal_cdf<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    const POLY: [f32; 10] = [
        0.157_751_01,
        -0.750_181_56,
        1.318_653,
        -0.909_740_7,
        0.094_321_43,
        -0.090_255_66,
        0.065_232_65,
        0.380_354_14,
        0.999_348_1,
        -1.265_482_3,
    ];
    let (zero, one) = (isa.splat(0.0), isa.splat(1.0));
    let magnitude = isa.max(isa.sub(zero, x), x);
    let z = isa.mul(magnitude, isa.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = isa.div(one, isa.fma(isa.splat(0.5), z, one));
    let mut p = isa.splat(POLY[0]);
    for c in &POLY[1..] {
        p = isa.fma(p, t, isa.splat(*c));
    }
    let exponent = isa.sub(p, isa.mul(z, z));
    let tail = isa.mul(isa.mul(isa.splat(0.5), t), isa.exp(exponent));
    isa.select_gt(x, zero, isa.sub(one, tail), tail)
}
