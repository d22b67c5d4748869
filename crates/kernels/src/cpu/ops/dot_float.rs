//! A few rows of activations against rows of `f32`, `f16` or `bf16` weights: `y = Σ w x` in
//! `f32`. Weights lie at any address; each is read once for all rows of activations.

// Plain loops over constant ranges unroll, and sums stay in registers. Iterator adaptors and
// closures are compiled without the features of the instruction set, and may stay calls.
#![allow(clippy::needless_range_loop, reason = "see above")]

use crate::Format;
use crate::cpu::isa::Isa;
use crate::cpu::weight::RowBytes;
use crate::format::Block;
use crate::format::bf16::Bf16;
use crate::format::f16::F16;
use crate::format::f32::F32;

/// Rows of activations that one pass over the weights serves.
pub(crate) const MAX_ROWS: usize = 4;

/// Sums of one output that grow side by side, to hide the latency of the multiply-add.
const CHAINS: usize = 2;

/// A format of one weight per block.
trait FloatBlock: Block {
    /// `LANES` weights from the start of `bytes`.
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F32;
    /// One weight.
    fn value(self) -> f32;
}

impl FloatBlock for F32 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F32 {
        isa.load_f32_bytes(bytes)
    }
    #[inline(always)]
    fn value(self) -> f32 {
        self.to_f32()
    }
}

impl FloatBlock for F16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F32 {
        isa.load_f16_bytes(bytes)
    }
    #[inline(always)]
    fn value(self) -> f32 {
        self.to_f32()
    }
}

impl FloatBlock for Bf16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> I::F32 {
        isa.load_bf16_bytes(bytes)
    }
    #[inline(always)]
    fn value(self) -> f32 {
        self.to_f32()
    }
}

/// `y[m][n] = Σ_k weights[n][k] x[m][k]` for each row `n` of `weights`; `x` holds as many rows as
/// `y`, at most [`MAX_ROWS`].
#[inline(always)]
pub(crate) fn rows<I: Isa>(isa: I, weights: RowBytes<'_>, x: &[f32], y: &mut [&mut [f32]]) {
    match weights.format {
        Format::F32 => by_count::<I, F32>(isa, weights, x, y),
        Format::F16 => by_count::<I, F16>(isa, weights, x, y),
        Format::Bf16 => by_count::<I, Bf16>(isa, weights, x, y),
        format => unreachable!("{format} is dequantised first"),
    }
}

#[inline(always)]
fn by_count<I: Isa, B: FloatBlock>(isa: I, weights: RowBytes<'_>, x: &[f32], y: &mut [&mut [f32]]) {
    if !I::FOUR_ROWS {
        let cols = x.len() / y.len();
        for m in 0..y.len() {
            rows_of::<I, B, 1>(isa, weights, &x[m * cols..][..cols], &mut y[m..=m]);
        }
        return;
    }
    match y.len() {
        1 => rows_of::<I, B, 1>(isa, weights, x, y),
        2 => rows_of::<I, B, 2>(isa, weights, x, y),
        3 => rows_of::<I, B, 3>(isa, weights, x, y),
        _ => rows_of::<I, B, 4>(isa, weights, x, y),
    }
}

#[inline(always)]
fn rows_of<I: Isa, B: FloatBlock, const M: usize>(
    isa: I,
    weights: RowBytes<'_>,
    x: &[f32],
    y: &mut [&mut [f32]],
) {
    assert_eq!(y.len(), M);
    let cols = x.len() / M;
    assert_eq!(weights.stride, cols * size_of::<B>());
    let mut rows = [&x[..cols]; M];
    for m in 1..M {
        rows[m] = &x[m * cols..][..cols];
    }
    // Sums of two rows of weights for many rows do not fit into few registers.
    let two = I::MANY_REGISTERS || M <= 2;
    let half = if two { y[0].len() / 2 } else { 0 };
    for n in 0..half {
        let both = [weights.row(n), weights.row(half + n)];
        let [first, second] = dot::<I, B, M, 2>(isa, both, rows);
        for m in 0..M {
            (y[m][n], y[m][half + n]) = (first[m], second[m]);
        }
    }
    for n in 2 * half..y[0].len() {
        let [sums] = dot::<I, B, M, 1>(isa, [weights.row(n)], rows);
        for m in 0..M {
            y[m][n] = sums[m];
        }
    }
}

/// `M` rows of activations times `N` rows of weights, which share each vector of activations.
#[inline(always)]
fn dot<I: Isa, B: FloatBlock, const M: usize, const N: usize>(
    isa: I,
    w: [&[u8]; N],
    x: [&[f32]; M],
) -> [[f32; M]; N] {
    let cols = x[0].len();
    let mut sums = [[[isa.splat(0.0); CHAINS]; M]; N];
    let mut k = 0;
    while k + CHAINS * I::LANES <= cols {
        for chain in 0..CHAINS {
            step::<I, B, M, N>(isa, (&w, &x), k + chain * I::LANES, chain, &mut sums);
        }
        k += CHAINS * I::LANES;
    }
    if k + I::LANES <= cols {
        step::<I, B, M, N>(isa, (&w, &x), k, 0, &mut sums);
        k += I::LANES;
    }
    let mut out = [[0.0; M]; N];
    for n in 0..N {
        for m in 0..M {
            let lanes = isa.reduce_sum(isa.add(sums[n][m][0], sums[n][m][1]));
            let rest = B::row(&w[n][k * size_of::<B>()..]).iter().zip(&x[m][k..]);
            out[n][m] = rest.fold(lanes, |sum, (w, x)| sum + w.value() * x);
        }
    }
    out
}

/// `LANES` products of each sum, from `k` on.
#[inline(always)]
fn step<I: Isa, B: FloatBlock, const M: usize, const N: usize>(
    isa: I,
    (w, x): (&[&[u8]; N], &[&[f32]; M]),
    k: usize,
    chain: usize,
    sums: &mut [[[I::F32; CHAINS]; M]; N],
) {
    let mut weights = [isa.splat(0.0); N];
    for n in 0..N {
        weights[n] = B::load(isa, &w[n][k * size_of::<B>()..]);
    }
    for m in 0..M {
        let x = isa.load(&x[m][k..]);
        for n in 0..N {
            sums[n][m][chain] = isa.fma(weights[n], x, sums[n][m][chain]);
        }
    }
}
