//! Reductions and maps over plain vectors, which the other operations are made of.

use crate::cpu::isa::Isa;

/// `Σ a b`. Four accumulators hide the latency of the multiply-add; their order is fixed, so the
/// result depends on the length alone.
#[inline(always)]
pub(crate) fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let (a_wide, b_wide) = (a.chunks_exact(4 * I::LANES), b.chunks_exact(4 * I::LANES));
    let (a_rest, b_rest) = (a_wide.remainder(), b_wide.remainder());
    let mut sums = [isa.splat(0.0); 4];
    for (a, b) in a_wide.zip(b_wide) {
        for (i, sum) in sums.iter_mut().enumerate() {
            let at = i * I::LANES;
            *sum = isa.fma(isa.load(&a[at..]), isa.load(&b[at..]), *sum);
        }
    }
    let (a_one, b_one) = (a_rest.chunks_exact(I::LANES), b_rest.chunks_exact(I::LANES));
    let (a_tail, b_tail) = (a_one.remainder(), b_one.remainder());
    for (a, b) in a_one.zip(b_one) {
        sums[0] = isa.fma(isa.load(a), isa.load(b), sums[0]);
    }
    let total = isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3]));
    a_tail.iter().zip(b_tail).fold(isa.reduce_sum(total), |sum, (a, b)| sum + a * b)
}
