//! Sums and factors over buffers of one length, in place: `y += scale * x`, rounded once to the
//! type of the activations, and `y *= scale`.

use super::CHUNK;
use super::vector::{load, store};
use crate::Dtype;
use crate::cpu::Cpu;
use crate::cpu::isa::Isa;

/// `y += scale * x`, rounded to `dtype`.
pub(crate) fn add_scaled(cpu: &Cpu, y: &mut [f32], x: &[f32], scale: f32, dtype: Dtype) {
    cpu.pool.for_each_chunk(y, CHUNK, |i, y| {
        let x = &x[i * CHUNK..][..y.len()];
        (cpu.kernels.add_scaled)(y, x, scale, dtype);
    });
}

/// `y *= scale`; 0 clears, whatever `y` held.
pub(crate) fn scale(cpu: &Cpu, y: &mut [f32], scale: f32) {
    cpu.pool.for_each_chunk(y, CHUNK, |_, y| {
        if scale == 0.0 {
            y.fill(0.0);
        } else {
            (cpu.kernels.scale)(y, scale);
        }
    });
}

/// One slice of [`add_scaled`]; the product is not rounded by itself.
#[inline(always)]
pub(crate) fn add_scaled_slice<I: Isa>(isa: I, y: &mut [f32], x: &[f32], scale: f32, dtype: Dtype) {
    let scale = isa.splat(scale);
    for at in (0..y.len()).step_by(I::LANES) {
        let tail = &mut y[at..];
        let sum = isa.fma(scale, load(isa, &x[at..]), load(isa, tail));
        store(isa, isa.round_to(dtype, sum), tail);
    }
}

/// One slice of [`scale`].
#[inline(always)]
pub(crate) fn scale_slice<I: Isa>(isa: I, y: &mut [f32], scale: f32) {
    let scale = isa.splat(scale);
    for at in (0..y.len()).step_by(I::LANES) {
        let tail = &mut y[at..];
        store(isa, isa.mul(load(isa, tail), scale), tail);
    }
}
