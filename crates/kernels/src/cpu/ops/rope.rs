//! Rotary position embedding, in place: `(a, b) -> (a cos - b sin, b cos + a sin)` for each pair
//! of a head; backward negates the angle. Products are rounded before they are added, as an
//! eager framework does it.

use super::rows_per_part;
use super::vector::{load, store};
use crate::cpu::isa::Isa;
use crate::cpu::{Cpu, CpuBuf};
use crate::{Dtype, RopeLayout, RopeTable};

/// Pairs that are taken apart at once in the interleaved layout.
const PAIRS: usize = 64;

/// How one head is rotated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    /// Pairing.
    pub(crate) layout: RopeLayout,
    /// Type of cos, sin, products and sums.
    pub(crate) dtype: Dtype,
    /// 1 forward, -1 backward.
    pub(crate) sign: f32,
}

/// Rotates x `(rows, row_len)`, heads of `head_dim`; `sign` is 1 forward and -1 backward.
pub(crate) fn rotate(
    cpu: &Cpu,
    x: &mut [f32],
    row_len: usize,
    head_dim: usize,
    table: &RopeTable<'_, CpuBuf>,
    sign: f32,
) {
    let half = table.rotary_dim / 2;
    let rotation = Rotation { layout: table.layout, dtype: table.dtype, sign };
    let chunk = rows_per_part(row_len);
    cpu.pool.for_each_chunk(x, chunk * row_len, |i, x| {
        for (r, x) in x.chunks_exact_mut(row_len).enumerate() {
            let at = (i * chunk + r) * half;
            let angles = (&table.cos[at..][..half], &table.sin[at..][..half]);
            (cpu.kernels.rope)(x, head_dim, angles, rotation);
        }
    });
}

/// Every head of one row; cos and sin `(rotary_dim / 2)`.
#[inline(always)]
pub(crate) fn row<I: Isa>(
    isa: I,
    x: &mut [f32],
    head_dim: usize,
    (cos, sin): (&[f32], &[f32]),
    rotation: Rotation,
) {
    let half = cos.len();
    for head in x.chunks_exact_mut(head_dim) {
        let rotated = &mut head[..2 * half];
        match rotation.layout {
            RopeLayout::HalfSplit => {
                let (a, b) = rotated.split_at_mut(half);
                pairs(isa, a, b, (cos, sin), rotation);
            }
            RopeLayout::Interleaved => interleaved(isa, rotated, (cos, sin), rotation),
        }
    }
}

#[inline(always)]
fn interleaved<I: Isa>(isa: I, x: &mut [f32], (cos, sin): (&[f32], &[f32]), rotation: Rotation) {
    let (mut a, mut b) = ([0.0; PAIRS], [0.0; PAIRS]);
    let angles = cos.chunks(PAIRS).zip(sin.chunks(PAIRS));
    for (x, angles) in x.chunks_mut(2 * PAIRS).zip(angles) {
        let len = x.len() / 2;
        for (i, pair) in x.chunks_exact(2).enumerate() {
            (a[i], b[i]) = (pair[0], pair[1]);
        }
        pairs(isa, &mut a[..len], &mut b[..len], angles, rotation);
        for (i, pair) in x.chunks_exact_mut(2).enumerate() {
            (pair[0], pair[1]) = (a[i], b[i]);
        }
    }
}

/// Rotates `(a[i], b[i])` by the angle of `cos[i]`, `sin[i]`.
#[inline(always)]
fn pairs<I: Isa>(
    isa: I,
    a: &mut [f32],
    b: &mut [f32],
    (cos, sin): (&[f32], &[f32]),
    rotation: Rotation,
) {
    let Rotation { dtype, sign, .. } = rotation;
    let sign = isa.splat(sign);
    for at in (0..a.len()).step_by(I::LANES) {
        let (va, vb) = (load(isa, &a[at..]), load(isa, &b[at..]));
        let cos = isa.round_to(dtype, load(isa, &cos[at..]));
        let sin = isa.mul(sign, isa.round_to(dtype, load(isa, &sin[at..])));
        let first = isa.sub(product(isa, dtype, va, cos), product(isa, dtype, vb, sin));
        let second = isa.add(product(isa, dtype, vb, cos), product(isa, dtype, va, sin));
        store(isa, isa.round_to(dtype, first), &mut a[at..]);
        store(isa, isa.round_to(dtype, second), &mut b[at..]);
    }
}

/// `a b`, rounded. A function and not a closure: only `inline(always)` keeps the instruction set.
#[inline(always)]
fn product<I: Isa>(isa: I, dtype: Dtype, a: I::F32, b: I::F32) -> I::F32 {
    isa.round_to(dtype, isa.mul(a, b))
}
