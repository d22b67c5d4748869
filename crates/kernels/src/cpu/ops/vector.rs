//! Reductions and loads over plain vectors, which the other operations are made of. Slices need
//! not be whole vectors: a short tail is padded, and treated exactly as the rest.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::cpu::isa::Isa;

/// More lanes than any instruction set has.
pub(crate) const MAX_LANES: usize = 16;

/// A number as buffers and caches store it.
pub(crate) trait Element: Pod + Send + Sync + std::fmt::Debug {
    /// The first `LANES` values of `src`; panics where it is shorter.
    fn load<I: Isa>(isa: I, src: &[Self]) -> I::F32;
    /// Exact.
    fn widen(self) -> f32;
    /// `src` rounded to the nearest, ties to even; `dst` is as long.
    fn narrow(src: &[f32], dst: &mut [Self]);
}

impl Element for f32 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, src: &[Self]) -> I::F32 {
        isa.load(src)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.copy_from_slice(src);
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, src: &[Self]) -> I::F32 {
        isa.load_f16_bytes(bytemuck::cast_slice(src))
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, src: &[Self]) -> I::F32 {
        isa.load_bf16_bytes(bytemuck::cast_slice(src))
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }
}

/// The first `LANES` values of `src`; where it is shorter, the other lanes are `fill`.
#[inline(always)]
pub(crate) fn load_or<I: Isa, T: Element>(isa: I, src: &[T], fill: f32) -> I::F32 {
    if src.len() >= I::LANES {
        return T::load(isa, src);
    }
    let mut wide = [fill; MAX_LANES];
    for (wide, v) in wide.iter_mut().zip(src) {
        *wide = v.widen();
    }
    isa.load(&wide)
}

/// The first `LANES` values of `src`; where it is shorter, the other lanes are 0.
#[inline(always)]
pub(crate) fn load<I: Isa>(isa: I, src: &[f32]) -> I::F32 {
    load_or(isa, src, 0.0)
}

/// Writes the first `LANES` values of `dst`, or all that it has.
#[inline(always)]
pub(crate) fn store<I: Isa>(isa: I, v: I::F32, dst: &mut [f32]) {
    if dst.len() >= I::LANES {
        return isa.store(v, dst);
    }
    let mut wide = [0.0; MAX_LANES];
    isa.store(v, &mut wide);
    let len = dst.len();
    dst.copy_from_slice(&wide[..len]);
}

/// `Σ a b`. Four accumulators hide the latency of the multiply-add; their order is fixed, so the
/// result depends on the length alone.
#[inline(always)]
pub(crate) fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut sums = [isa.splat(0.0); 4];
    let mut at = 0;
    while at + 4 * I::LANES <= a.len() {
        for (i, sum) in sums.iter_mut().enumerate() {
            let at = at + i * I::LANES;
            *sum = isa.fma(isa.load(&a[at..]), isa.load(&b[at..]), *sum);
        }
        at += 4 * I::LANES;
    }
    while at < a.len() {
        sums[0] = isa.fma(load(isa, &a[at..]), load(isa, &b[at..]), sums[0]);
        at += I::LANES;
    }
    isa.reduce_sum(isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])))
}

/// The largest value; `-inf` for none. A NaN is passed over or returned, as it falls.
#[inline(always)]
pub(crate) fn max<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let mut best = [isa.splat(f32::NEG_INFINITY); 2];
    let (pairs, tail) = x.split_at(x.len() - x.len() % (2 * I::LANES));
    for pair in pairs.chunks_exact(2 * I::LANES) {
        best[0] = isa.max(isa.load(pair), best[0]);
        best[1] = isa.max(isa.load(&pair[I::LANES..]), best[1]);
    }
    for at in (0..tail.len()).step_by(I::LANES) {
        best[0] = isa.max(load_or(isa, &tail[at..], f32::NEG_INFINITY), best[0]);
    }
    isa.reduce_max(isa.max(best[0], best[1]))
}

/// `x = exp(x - shift)`; the sum of the results. Zeros at the end do not change it.
#[inline(always)]
pub(crate) fn exp_sum<I: Isa>(isa: I, x: &mut [f32], shift: f32) -> f32 {
    let shift = isa.splat(shift);
    // Even and odd vectors.
    let mut sums = [isa.splat(0.0); 2];
    let (pairs, tail) = x.split_at_mut(x.len() - x.len() % (2 * I::LANES));
    for pair in pairs.chunks_exact_mut(2 * I::LANES) {
        let (even, odd) = pair.split_at_mut(I::LANES);
        let v = [isa.exp(isa.sub(isa.load(even), shift)), isa.exp(isa.sub(isa.load(odd), shift))];
        isa.store(v[0], even);
        isa.store(v[1], odd);
        sums = [isa.add(sums[0], v[0]), isa.add(sums[1], v[1])];
    }
    for at in (0..tail.len()).step_by(I::LANES) {
        let tail = &mut tail[at..];
        let v = isa.exp(isa.sub(load_or(isa, tail, f32::NEG_INFINITY), shift));
        store(isa, v, tail);
        let parity = at / I::LANES;
        sums[parity] = isa.add(sums[parity], v);
    }
    isa.reduce_sum(isa.add(sums[0], sums[1]))
}
