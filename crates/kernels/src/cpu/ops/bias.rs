//! Bias of a linear layer. In: y or dy `(rows, width)`, bias `(width)`. Out: `y[r] += bias`,
//! rounded; backward `dbias += Σ_r dy[r]`, in the order of the rows.

use super::rows_per_part;
use super::vector::{load, store};
use crate::Dtype;
use crate::cpu::Cpu;
use crate::cpu::isa::Isa;

/// Columns of `dbias` that one part sums over all rows.
const STRIP: usize = 64;

/// Adds bias `(width)` to each row of y `(rows, width)`.
pub(crate) fn forward(cpu: &Cpu, y: &mut [f32], bias: &[f32], dtype: Dtype) {
    let width = bias.len();
    cpu.pool.for_each_chunk(y, rows_per_part(width) * width, |_, y| {
        for y in y.chunks_exact_mut(width) {
            (cpu.kernels.add_scaled)(y, bias, 1.0, dtype);
        }
    });
}

/// Adds the rows of dy `(rows, width)` to dbias `(width)`, in order.
pub(crate) fn backward(cpu: &Cpu, dy: &[f32], dbias: &mut [f32]) {
    let width = dbias.len();
    cpu.pool.for_each_chunk(dbias, STRIP, |i, dbias| {
        (cpu.kernels.sum_rows)(dy, width, i * STRIP, dbias);
    });
}

/// `sums += Σ_r x[r][at..]` over the rows of x `(rows, width)`.
#[inline(always)]
pub(crate) fn sum_rows<I: Isa>(isa: I, x: &[f32], width: usize, at: usize, sums: &mut [f32]) {
    let len = sums.len();
    for x in x.chunks_exact(width) {
        let x = &x[at..][..len];
        for at in (0..len).step_by(I::LANES) {
            let tail = &mut sums[at..];
            store(isa, isa.add(load(isa, tail), load(isa, &x[at..])), tail);
        }
    }
}
