//! A few rows of activations against rows of `f32`, `f16` or `bf16` weights: `y = Σ w x` in
//! `f32`. Weights lie at any address; each is read once for all rows of activations.

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
fn by_count<I: Isa, B: FloatBlock>(
    isa: I,
    weights: RowBytes<'_>,
    x: &[f32],
    y: &mut [&mut [f32]],
) {
    match y.len() {
        1 => rows_of::<I, B, 1, 2>(isa, weights, x, y),
        2 => rows_of::<I, B, 2, 2>(isa, weights, x, y),
        3 => rows_of::<I, B, 3, 1>(isa, weights, x, y),
        _ => rows_of::<I, B, 4, 1>(isa, weights, x, y),
    }
}

/// `N` rows of weights at a time, far apart in memory.
#[inline(always)]
fn rows_of<I: Isa, B: FloatBlock, const M: usize, const N: usize>(
    isa: I,
    weights: RowBytes<'_>,
    x: &[f32],
    y: &mut [&mut [f32]],
) {
    assert_eq!(y.len(), M);
    let cols = x.len() / M;
    assert_eq!(weights.stride, cols * size_of::<B>());
    let x: [&[f32]; M] = std::array::from_fn(|m| &x[m * cols..][..cols]);
    let streams = y[0].len() / N;
    for n in 0..streams {
        let at: [usize; N] = std::array::from_fn(|i| n + i * streams);
        let sums = dot::<I, B, M, N>(isa, at.map(|n| weights.row(n)), x);
        for (y, sums) in y.iter_mut().zip(sums) {
            for (at, sum) in at.into_iter().zip(sums) {
                y[at] = sum;
            }
        }
    }
    for n in N * streams..y[0].len() {
        let sums = dot::<I, B, M, 1>(isa, [weights.row(n)], x);
        for (y, sums) in y.iter_mut().zip(sums) {
            y[n] = sums[0];
        }
    }
}

/// `M` rows of activations times `N` rows of weights.
#[inline(always)]
fn dot<I: Isa, B: FloatBlock, const M: usize, const N: usize>(
    isa: I,
    w: [&[u8]; N],
    x: [&[f32]; M],
) -> [[f32; N]; M] {
    let cols = x[0].len();
    let mut sums = [[[isa.splat(0.0); CHAINS]; N]; M];
    let mut k = 0;
    let mut step = |k: usize, chain: usize| {
        let x = x.map(|x| isa.load(&x[k..]));
        for n in 0..N {
            let w = B::load(isa, &w[n][k * size_of::<B>()..]);
            for m in 0..M {
                sums[m][n][chain] = isa.fma(w, x[m], sums[m][n][chain]);
            }
        }
    };
    while k + CHAINS * I::LANES <= cols {
        for chain in 0..CHAINS {
            step(k + chain * I::LANES, chain);
        }
        k += CHAINS * I::LANES;
    }
    if k + I::LANES <= cols {
        step(k, 0);
        k += I::LANES;
    }
    std::array::from_fn(|m| {
        std::array::from_fn(|n| {
            let lanes = isa.reduce_sum(isa.add(sums[m][n][0], sums[m][n][1]));
            let rest = B::row(&w[n][k * size_of::<B>()..]).iter().zip(&x[m][k..]);
            rest.fold(lanes, |sum, (w, x)| sum + w.value() * x)
        })
    })
}
