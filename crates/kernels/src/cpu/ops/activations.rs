//! Rows of activations as whole numbers, each 32 under one scale. In: `x` `(rows, cols)`. Out:
//! `n = round(x / scale)`, `scale = max|x| / 16256`, as signed bytes `n = 128 high + low` in the
//! order of packed weights, and `Σ n` of each 16 for the formats whose weights have an offset.
//! Fifteen bits where eight are usual: a second dot costs little beside reading the weights, and
//! the result is that of `f32` activations to some 1e-5; eight bits move the perplexity of a small
//! model by up to 1 %.

// Plain loops, for the reason given in `dot_packed`.
#![allow(clippy::needless_range_loop, reason = "see above")]

use crate::cpu::isa::Isa;
use crate::cpu::packed::ORDER;

/// Activations that share one scale.
pub(crate) const GROUP: usize = 32;

/// Below this a group counts as zeros: its reciprocal scale would overflow.
const SMALLEST: f32 = 1e-30;

/// The largest number: `128 * 127`.
const LARGEST: f32 = 16_256.0;

/// Thirty-two numbers `128 high + low` in [`ORDER`], both signed bytes, four to a dword.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct Group {
    /// In `-127..=127`.
    pub(crate) high: [[u8; 4]; GROUP / 4],
    /// In `-64..=64`.
    pub(crate) low: [[u8; 4]; GROUP / 4],
    /// The step of the numbers.
    pub(crate) scale: f32,
    /// `Σ n` of the first and the second sixteen.
    pub(crate) totals: [i32; 2],
}

/// Quantised rows. The memory is kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct SplitRows {
    /// Groups in a row.
    per_row: usize,
    /// `(rows, per_row)`.
    groups: Vec<Group>,
}

impl SplitRows {
    /// Row `index`.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &[Group] {
        &self.groups[index * self.per_row..(index + 1) * self.per_row]
    }
}

/// Quantises `x` `(rows, cols)`; `cols` is a multiple of 32.
#[inline(always)]
pub(crate) fn quantize<I: Isa>(isa: I, x: &[f32], cols: usize, out: &mut SplitRows) {
    assert!(cols > 0 && cols.is_multiple_of(GROUP) && x.len().is_multiple_of(cols));
    out.per_row = cols / GROUP;
    out.groups.resize(x.len() / GROUP, Group::default());
    let x = x.as_chunks().0;
    for i in 0..x.len() {
        quantize_group(isa, &x[i], &mut out.groups[i]);
    }
}

#[inline(always)]
fn quantize_group<I: Isa>(isa: I, x: &[f32; GROUP], q: &mut Group) {
    let (mut top, mut poison) = (isa.splat(0.0), isa.splat(0.0));
    for at in (0..GROUP).step_by(I::LANES) {
        let x = isa.load(&x[at..]);
        top = isa.max(isa.max(x, isa.sub(isa.splat(0.0), x)), top);
        poison = isa.fma(x, isa.splat(0.0), poison);
    }
    let top = isa.reduce_max(top);
    // NaN where a value is not finite, else 0: bytes cannot hold it, the scale can.
    let poison = isa.reduce_sum(poison);
    let inverse = if top > SMALLEST { LARGEST / top } else { 0.0 };
    q.scale = poison + if top > SMALLEST { top / LARGEST } else { 0.0 };
    let (mut numbers, mut high, mut low) = ([0.0; GROUP], [0.0; GROUP], [0.0; GROUP]);
    for at in (0..GROUP).step_by(I::LANES) {
        let n = isa.round(isa.mul(isa.load(&x[at..]), isa.splat(inverse)));
        let top = isa.round(isa.mul(n, isa.splat(1.0 / 128.0)));
        isa.store(n, &mut numbers[at..]);
        isa.store(top, &mut high[at..]);
        isa.store(isa.fma(top, isa.splat(-128.0), n), &mut low[at..]);
    }
    q.high = narrow(isa, &high);
    q.low = narrow(isa, &low);
    // Whole numbers below 2^24: exact in any order.
    for half in 0..2 {
        let mut total = isa.splat(0.0);
        for at in (0..GROUP / 2).step_by(I::LANES) {
            total = isa.add(total, isa.load(&numbers[half * GROUP / 2 + at..]));
        }
        q.totals[half] = isa.reduce_sum(total) as i32;
    }
}

/// Whole numbers as signed bytes in [`ORDER`].
#[inline(always)]
fn narrow<I: Isa>(isa: I, numbers: &[f32; GROUP]) -> [[u8; 4]; GROUP / 4] {
    let mut bytes = [0; GROUP];
    isa.narrow(numbers, &mut bytes);
    let mut ordered = [[0; 4]; GROUP / 4];
    for p in 0..GROUP {
        ordered[p / 4][p % 4] = bytes[ORDER[p]];
    }
    ordered
}
