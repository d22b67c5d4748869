//! A few rows of activations against rows of quantised weights: `y = Σ w x` in whole numbers.
//!
//! Each 32 weights are `w = scale q + offset` (each 16, in some formats), their activations
//! `x = s n`. So a group adds `scale s Σ q n + offset Σ x`: the first sum in whole numbers, the
//! second ready beside the activations. Weights are unpacked once for all rows of activations.

// Plain loops over constant ranges unroll, and sums stay in registers. Iterator adaptors and
// closures are compiled without the features of the instruction set, and may stay calls.
#![allow(clippy::needless_range_loop, reason = "see above")]

use std::marker::PhantomData;

use super::activations::{GROUP, SplitRow, SplitRows};
use crate::Format;
use crate::cpu::isa::{Isa, Piece};
use crate::cpu::weight::RowBytes;
use crate::format::Block;
use crate::format::f16::F16;
use crate::format::iq4_nl::{self, Iq4Nl};
use crate::format::iq4_xs::Iq4Xs;
use crate::format::mxfp4::{self, Mxfp4};
use crate::format::q2_k::Q2K;
use crate::format::q3_k::Q3K;
use crate::format::q4_0::Q4_0;
use crate::format::q4_1::Q4_1;
use crate::format::q4_k::{Q4K, scales_and_mins};
use crate::format::q5_0::Q5_0;
use crate::format::q5_1::Q5_1;
use crate::format::q5_k::Q5K;
use crate::format::q6_k::Q6K;
use crate::format::q8_0::Q8_0;
use crate::format::tq2_0::Tq2_0;

/// Rows of activations that one pass over the weights serves.
pub(crate) const MAX_ROWS: usize = 4;

/// A format whose weights are small whole numbers under a scale.
trait IntegerBlock: Block {
    /// The numbers are signed bytes; else they are below 128 and not negative.
    const SIGNED: bool = false;
    /// There are offsets.
    const OFFSETS: bool = true;
    /// Scales and offsets hold for 16 weights, else for 32.
    const HALVES: bool = false;

    /// Writes the scales and offsets of the block, in order, over zeros.
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors);
    /// The numbers of the 32 weights of `group`.
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes;
}

/// Of a block. Scales: one for each 16 weights where [`IntegerBlock::HALVES`], else for each 32.
/// Offsets: the first alone in a block of 32 weights, else one for each 16.
#[derive(Clone, Copy)]
struct Factors {
    scales: [f32; 16],
    offsets: [f32; 16],
}

impl Factors {
    #[inline(always)]
    fn one(&mut self, scale: f32, offset: f32) {
        (self.scales[0], self.offsets[0]) = (scale, offset);
    }
}

/// Whether [`rows`] takes weights of this format.
pub(crate) const fn is_served(format: Format) -> bool {
    use Format::*;
    matches!(
        format,
        Q4_0 | Q4_1
            | Q5_0
            | Q5_1
            | Q8_0
            | Q2K
            | Q3K
            | Q4K
            | Q5K
            | Q6K
            | Iq4Nl
            | Iq4Xs
            | Tq2_0
            | Mxfp4
    )
}

/// `y[m][n] = Σ_k weights[n][k] x[first + m][k]` for each row `n` of `weights`; `y` holds at most
/// [`MAX_ROWS`] rows.
#[inline(always)]
pub(crate) fn rows<I: Isa>(
    isa: I,
    weights: RowBytes<'_>,
    x: &SplitRows,
    first: usize,
    y: &mut [&mut [f32]],
) {
    match weights.format {
        Format::Q4_0 => isa.call(Rows::<Q4_0>::new(weights, x, first, y)),
        Format::Q4_1 => isa.call(Rows::<Q4_1>::new(weights, x, first, y)),
        Format::Q5_0 => isa.call(Rows::<Q5_0>::new(weights, x, first, y)),
        Format::Q5_1 => isa.call(Rows::<Q5_1>::new(weights, x, first, y)),
        Format::Q8_0 => isa.call(Rows::<Q8_0>::new(weights, x, first, y)),
        Format::Q2K => isa.call(Rows::<Q2K>::new(weights, x, first, y)),
        Format::Q3K => isa.call(Rows::<Q3K>::new(weights, x, first, y)),
        Format::Q4K => isa.call(Rows::<Q4K>::new(weights, x, first, y)),
        Format::Q5K => isa.call(Rows::<Q5K>::new(weights, x, first, y)),
        Format::Q6K => isa.call(Rows::<Q6K>::new(weights, x, first, y)),
        Format::Iq4Nl => isa.call(Rows::<Iq4Nl>::new(weights, x, first, y)),
        Format::Iq4Xs => isa.call(Rows::<Iq4Xs>::new(weights, x, first, y)),
        Format::Tq2_0 => isa.call(Rows::<Tq2_0>::new(weights, x, first, y)),
        Format::Mxfp4 => isa.call(Rows::<Mxfp4>::new(weights, x, first, y)),
        format => unreachable!("{format} has no integer dot; `is_served` says so"),
    }
}

/// [`rows`] of one format.
struct Rows<'a, 'y, B> {
    weights: RowBytes<'a>,
    x: &'a SplitRows,
    first: usize,
    y: &'a mut [&'y mut [f32]],
    format: PhantomData<B>,
}

impl<'a, 'y, B: IntegerBlock> Rows<'a, 'y, B> {
    #[inline(always)]
    fn new(
        weights: RowBytes<'a>,
        x: &'a SplitRows,
        first: usize,
        y: &'a mut [&'y mut [f32]],
    ) -> Self {
        Self { weights, x, first, y, format: PhantomData }
    }
}

impl<B: IntegerBlock> Piece for Rows<'_, '_, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { weights, x, first, y, .. } = self;
        if !I::FOUR_ROWS {
            for m in 0..y.len() {
                rows_of::<I, B, 1>(isa, weights, x, first + m, &mut y[m..=m]);
            }
            return;
        }
        match y.len() {
            1 => rows_of::<I, B, 1>(isa, weights, x, first, y),
            2 => rows_of::<I, B, 2>(isa, weights, x, first, y),
            3 => rows_of::<I, B, 3>(isa, weights, x, first, y),
            _ => rows_of::<I, B, 4>(isa, weights, x, first, y),
        }
    }
}

#[inline(always)]
fn rows_of<I: Isa, B: IntegerBlock, const M: usize>(
    isa: I,
    weights: RowBytes<'_>,
    x: &SplitRows,
    first: usize,
    y: &mut [&mut [f32]],
) {
    assert_eq!(y.len(), M);
    let mut rows = [x.row(first); M];
    for m in 1..M {
        rows[m] = x.row(first + m);
    }
    for n in 0..y[0].len() {
        let sums = dot::<I, B, M>(isa, B::row(weights.row(n)), rows);
        for m in 0..M {
            y[m][n] = sums[m];
        }
    }
}

/// `M` rows of activations times one row of weights.
#[inline(always)]
fn dot<I: Isa, B: IntegerBlock, const M: usize>(isa: I, w: &[B], x: [SplitRow<'_>; M]) -> [f32; M] {
    let groups = const { B::LEN / GROUP };
    let mut sums = [isa.splat(0.0); M];
    let mut offsets = [Offset::new(isa); M];
    for b in 0..w.len() {
        let mut factors = Factors { scales: [0.0; 16], offsets: [0.0; 16] };
        w[b].factors(isa, &mut factors);
        for m in 0..M {
            if B::OFFSETS {
                let x = &x[m].sums[b * groups..][..groups];
                offsets[m].add::<B>(isa, &factors.offsets, x);
            }
        }
        for g in 0..groups {
            let q = w[b].quants(isa, g);
            for m in 0..M {
                let part = product::<I, B>(isa, q, &x[m], b * groups + g);
                let scale = scale::<I, B>(isa, &factors, g, x[m].scales[b * groups + g]);
                sums[m] = isa.fma(part, scale, sums[m]);
            }
        }
    }
    let mut out = [0.0; M];
    for m in 0..M {
        out[m] = isa.reduce_sum(sums[m]) + offsets[m].total(isa);
    }
    out
}

/// The whole-number products of one group.
#[inline(always)]
fn product<I: Isa, B: IntegerBlock>(isa: I, q: I::Bytes, x: &SplitRow<'_>, group: usize) -> I::F32 {
    let n = &x.quants[group];
    let (high, low) = (isa.load_bytes(&n.high), isa.load_bytes(&n.low));
    if B::SIGNED { isa.dot_signed(q, high, low) } else { isa.dot_unsigned(q, high, low) }
}

/// What they are multiplied by; `scale` is that of the activations.
#[inline(always)]
fn scale<I: Isa, B: IntegerBlock>(isa: I, factors: &Factors, group: usize, scale: f32) -> I::F32 {
    if B::HALVES {
        let (low, high) = (factors.scales[2 * group], factors.scales[2 * group + 1]);
        isa.splat_halves(low * scale, high * scale)
    } else {
        isa.splat(factors.scales[group] * scale)
    }
}

/// The running `Σ offset Σ x` of one output: in lanes where a block has sixteen offsets' worth of
/// weights, else a plain number.
#[derive(Clone, Copy)]
struct Offset<I: Isa> {
    lanes: I::F32,
    single: f32,
}

impl<I: Isa> Offset<I> {
    #[inline(always)]
    fn new(isa: I) -> Self {
        Self { lanes: isa.splat(0.0), single: 0.0 }
    }

    #[inline(always)]
    fn add<B: IntegerBlock>(&mut self, isa: I, offsets: &[f32; 16], sums: &[[f32; 2]]) {
        if B::LEN == GROUP {
            self.single += offsets[0] * (sums[0][0] + sums[0][1]);
            return;
        }
        let sums = sums.as_flattened();
        for i in 0..16 / I::LANES {
            let (offset, sum) = (&offsets[i * I::LANES..], &sums[i * I::LANES..]);
            self.lanes = isa.fma(isa.load(offset), isa.load(sum), self.lanes);
        }
    }

    #[inline(always)]
    fn total(self, isa: I) -> f32 {
        isa.reduce_sum(self.lanes) + self.single
    }
}

#[inline(always)]
fn f16<I: Isa>(isa: I, value: F16) -> f32 {
    isa.f16(u16::from_le_bytes(value.0))
}

/// Sixteen bytes of `qs`, both halves of each.
#[inline(always)]
fn nibbles<I: Isa>(isa: I, qs: &[u8], index: usize) -> I::Bytes {
    isa.load_nibbles(&qs.as_chunks().0[index])
}

/// The low or the high halves of 32 bytes of `qs`.
#[inline(always)]
fn half_bytes<I: Isa>(isa: I, qs: &[u8], index: usize, high: bool) -> I::Bytes {
    let all = isa.load_bytes(&qs.as_chunks().0[index]);
    if high { isa.shift_down::<4>(all) } else { isa.and(all, isa.splat_byte(15)) }
}

/// Two bits of each of 32 bytes of `qs`, pair `pair` from the bottom.
#[inline(always)]
fn bit_pairs<I: Isa>(isa: I, qs: &[u8], index: usize, pair: usize) -> I::Bytes {
    let all = isa.load_bytes(&qs.as_chunks().0[index]);
    let moved = match pair {
        0 => all,
        1 => isa.shift_down::<2>(all),
        2 => isa.shift_down::<4>(all),
        _ => isa.shift_down::<6>(all),
    };
    isa.and(moved, isa.splat_byte(3))
}

/// `value`, a power of two, in each byte of `mask` that has bit `bit`, else 0.
#[inline(always)]
fn where_bit<I: Isa>(isa: I, mask: &[u8; 32], bit: usize, value: u8) -> I::Bytes {
    let bit = isa.splat_byte(1 << bit);
    isa.and(isa.equal(isa.and(isa.load_bytes(mask), bit), bit), isa.splat_byte(value))
}

impl IntegerBlock for Q4_0 {
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        let d = f16(isa, self.d);
        out.one(d, -8.0 * d);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, _: usize) -> I::Bytes {
        nibbles(isa, &self.qs, 0)
    }
}

impl IntegerBlock for Q4_1 {
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        out.one(f16(isa, self.d), f16(isa, self.m));
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, _: usize) -> I::Bytes {
        nibbles(isa, &self.qs, 0)
    }
}

/// `q5_0` and `q5_1`.
#[inline(always)]
fn five_bits<I: Isa>(isa: I, qh: [u8; 4], qs: &[u8; 16]) -> I::Bytes {
    let high = isa.and(isa.expand_bits(u32::from_le_bytes(qh)), isa.splat_byte(16));
    isa.or(isa.load_nibbles(qs), high)
}

impl IntegerBlock for Q5_0 {
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        let d = f16(isa, self.d);
        out.one(d, -16.0 * d);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, _: usize) -> I::Bytes {
        five_bits(isa, self.qh, &self.qs)
    }
}

impl IntegerBlock for Q5_1 {
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        out.one(f16(isa, self.d), f16(isa, self.m));
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, _: usize) -> I::Bytes {
        five_bits(isa, self.qh, &self.qs)
    }
}

impl IntegerBlock for Q8_0 {
    const SIGNED: bool = true;
    const OFFSETS: bool = false;
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        out.one(f16(isa, self.d), 0.0);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, _: usize) -> I::Bytes {
        isa.load_bytes(bytemuck::cast_ref(&self.qs))
    }
}

impl IntegerBlock for Q2K {
    const HALVES: bool = true;
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        let (d, dmin) = (f16(isa, self.d), -f16(isa, self.dmin));
        for i in 0..16 {
            out.scales[i] = d * f32::from(self.scales[i] & 15);
            out.offsets[i] = dmin * f32::from(self.scales[i] >> 4);
        }
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes {
        bit_pairs(isa, &self.qs, group / 4, group % 4)
    }
}

impl IntegerBlock for Q3K {
    const HALVES: bool = true;
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        let (d, scales) = (f16(isa, self.d), self.scales());
        for i in 0..16 {
            out.scales[i] = d * f32::from(scales[i]);
            out.offsets[i] = -4.0 * out.scales[i];
        }
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes {
        let low = bit_pairs(isa, &self.qs, group / 4, group % 4);
        isa.or(low, where_bit(isa, &self.hmask, group, 4))
    }
}

impl IntegerBlock for Q4K {
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        super_scales((f16(isa, self.d), f16(isa, self.dmin)), &self.scales, out);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes {
        half_bytes(isa, &self.qs, group / 2, group % 2 == 1)
    }
}

/// `q4_k` and `q5_k`.
#[inline(always)]
fn super_scales((d, dmin): (f32, f32), packed: &[u8; 12], out: &mut Factors) {
    let (scales, mins) = scales_and_mins(packed);
    for i in 0..8 {
        out.scales[i] = d * f32::from(scales[i]);
        // For both halves of the group.
        out.offsets[2 * i] = -dmin * f32::from(mins[i]);
        out.offsets[2 * i + 1] = out.offsets[2 * i];
    }
}

impl IntegerBlock for Q5K {
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        super_scales((f16(isa, self.d), f16(isa, self.dmin)), &self.scales, out);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes {
        let low = half_bytes(isa, &self.qs, group / 2, group % 2 == 1);
        isa.or(low, where_bit(isa, &self.qh, group, 16))
    }
}

impl IntegerBlock for Q6K {
    const HALVES: bool = true;
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        let d = f16(isa, self.d);
        for i in 0..16 {
            out.scales[i] = d * f32::from(self.scales[i]);
            out.offsets[i] = -32.0 * out.scales[i];
        }
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes {
        let (half, part) = (group / 4, group % 4);
        let low = half_bytes(isa, &self.ql, 2 * half + part % 2, part >= 2);
        let high = bit_pairs(isa, &self.qh, half, part);
        isa.or(low, isa.shift_up::<4>(high))
    }
}

impl IntegerBlock for Iq4Nl {
    const SIGNED: bool = true;
    const OFFSETS: bool = false;
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        out.one(f16(isa, self.d), 0.0);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, _: usize) -> I::Bytes {
        isa.look_up(&iq4_nl::VALUES, nibbles(isa, &self.qs, 0))
    }
}

impl IntegerBlock for Iq4Xs {
    const SIGNED: bool = true;
    const OFFSETS: bool = false;
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        let (d, scales) = (f16(isa, self.d), self.scales());
        for i in 0..8 {
            out.scales[i] = d * f32::from(scales[i]);
        }
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes {
        isa.look_up(&iq4_nl::VALUES, nibbles(isa, &self.qs, group))
    }
}

impl IntegerBlock for Tq2_0 {
    #[inline(always)]
    fn factors<I: Isa>(&self, isa: I, out: &mut Factors) {
        let d = f16(isa, self.d);
        (out.scales, out.offsets) = ([d; 16], [-d; 16]);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, group: usize) -> I::Bytes {
        bit_pairs(isa, &self.qs, group / 4, group % 4)
    }
}

impl IntegerBlock for Mxfp4 {
    const SIGNED: bool = true;
    const OFFSETS: bool = false;
    #[inline(always)]
    fn factors<I: Isa>(&self, _: I, out: &mut Factors) {
        out.one(self.half_scale(), 0.0);
    }
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I, _: usize) -> I::Bytes {
        isa.look_up(&mxfp4::VALUES, nibbles(isa, &self.qs, 0))
    }
}
