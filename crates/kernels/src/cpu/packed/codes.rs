//! Formats whose weights are small whole numbers under a scale: what packing takes from a block.
//! `w = d scale (code - ZERO) + min mins`, of which a format has some factors.

use crate::Format;
use crate::format::Block;
use crate::format::f16::F16;
use crate::format::iq4_nl::{self, Iq4Nl};
use crate::format::iq4_xs::Iq4Xs;
use crate::format::mxfp4::{self, Mxfp4};
use crate::format::q2_k::Q2K;
use crate::format::q3_k::{self, Q3K};
use crate::format::q4_0::Q4_0;
use crate::format::q4_1::Q4_1;
use crate::format::q4_k::{Q4K, scales_and_mins};
use crate::format::q5_0::Q5_0;
use crate::format::q5_1::Q5_1;
use crate::format::q5_k::Q5K;
use crate::format::q6_k::Q6K;
use crate::format::q8_0::Q8_0;
use crate::format::tq2_0::Tq2_0;

/// What the parts of a block have of their own, a byte for each row; `len` weights in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// Nothing.
    None,
    /// A signed scale.
    Scales {
        /// 16 or 32.
        len: usize,
    },
    /// Scales and minima of six bits in the twelve bytes of `q4_k`, for parts of 32.
    SixBits,
    /// Scales of six bits less 32 in the twelve bytes of `q3_k`, for parts of 16.
    SixBitsSigned,
    /// A scale in the low half, a minimum in the high half.
    Nibbles {
        /// 16 or 32.
        len: usize,
    },
}

/// The factors of one block.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Factors {
    /// Scale: an `f16`, then zeros, or an `f32`.
    pub(crate) d: [u8; 4],
    /// Scale of the minima, with the sign that it has in the sum: an `f16`.
    pub(crate) min: [u8; 2],
    /// As [`Parts`] says: a byte for each part, or twelve.
    pub(crate) scales: [u8; 16],
}

/// A format that is packed.
pub(crate) trait Coded: Block {
    /// Bits of a code.
    const BITS: usize;
    /// What is taken from a code to give the number.
    const ZERO: i32;
    /// Codes are places in a table of numbers; `ZERO` is 128, for the numbers are signed bytes.
    const TABLE: Option<[i8; 16]> = None;
    /// What parts of a block have.
    const PARTS: Parts = Parts::None;
    /// There are minima.
    const MINIMUM: bool = false;
    /// The scale needs an `f32`.
    const WIDE: bool = false;

    /// The factors.
    fn factors(&self) -> Factors;
    /// The codes of all weights, in order.
    fn codes(&self, out: &mut [u8]);
}

/// Work written once over every [`Coded`] format.
pub(crate) trait CodedVisitor {
    /// What the work gives.
    type Output;
    /// Does it for one format.
    fn visit<B: Coded>(self) -> Self::Output;
}

/// Hands the block type of `format` to `visitor`; `None` where the format is not packed.
#[inline(always)]
pub(crate) fn visit<V: CodedVisitor>(format: Format, visitor: V) -> Option<V::Output> {
    Some(match format {
        Format::Q4_0 => visitor.visit::<Q4_0>(),
        Format::Q4_1 => visitor.visit::<Q4_1>(),
        Format::Q5_0 => visitor.visit::<Q5_0>(),
        Format::Q5_1 => visitor.visit::<Q5_1>(),
        Format::Q8_0 => visitor.visit::<Q8_0>(),
        Format::Q2K => visitor.visit::<Q2K>(),
        Format::Q3K => visitor.visit::<Q3K>(),
        Format::Q4K => visitor.visit::<Q4K>(),
        Format::Q5K => visitor.visit::<Q5K>(),
        Format::Q6K => visitor.visit::<Q6K>(),
        Format::Iq4Nl => visitor.visit::<Iq4Nl>(),
        Format::Iq4Xs => visitor.visit::<Iq4Xs>(),
        Format::Tq2_0 => visitor.visit::<Tq2_0>(),
        Format::Mxfp4 => visitor.visit::<Mxfp4>(),
        _ => return None,
    })
}

/// The scale and the offset of part `part` of one row of a packed block.
#[inline(always)]
pub(super) fn part_factors<B: Coded>(
    block: &[u8],
    part: usize,
    row: usize,
    d: f32,
    min: f32,
) -> (f32, f32) {
    let byte = |i: usize| block[super::Layout::<B>::SCALES + super::GROUP_ROWS * i + row];
    let scale = || byte(part);
    let twelve = || std::array::from_fn(byte);
    match B::PARTS {
        Parts::None => (d, min),
        Parts::Scales { .. } => (d * f32::from(scale() as i8), min),
        Parts::SixBits => {
            let (scales, mins) = scales_and_mins(&twelve());
            (d * f32::from(scales[part]), min * f32::from(mins[part]))
        }
        Parts::SixBitsSigned => (d * f32::from(q3_k::scales(&twelve())[part]), min),
        Parts::Nibbles { .. } => (d * f32::from(scale() & 15), min * f32::from(scale() >> 4)),
    }
}

/// A scale that is an `f16`.
fn narrow(d: F16) -> [u8; 4] {
    [d.0[0], d.0[1], 0, 0]
}

/// The number of the other sign.
fn negated(value: F16) -> [u8; 2] {
    [value.0[0], value.0[1] ^ 0x80]
}

/// Sixteen bytes to 32 codes: low halves, then high halves.
fn nibbles(qs: &[u8], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in qs.iter().zip(low).zip(high) {
        (*low, *high) = (q & 15, q >> 4);
    }
}

/// `out |= bit << shift` for the bit `bit` of each byte of a mask.
fn add_bits(mask: &[u8], bit: usize, shift: u32, out: &mut [u8]) {
    for (mask, out) in mask.iter().zip(out) {
        *out |= (mask >> bit & 1) << shift;
    }
}

impl Coded for Q4_0 {
    const BITS: usize = 4;
    const ZERO: i32 = 8;
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        nibbles(&self.qs, out);
    }
}

impl Coded for Q4_1 {
    const BITS: usize = 4;
    const ZERO: i32 = 0;
    const MINIMUM: bool = true;
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), min: self.m.0, ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        nibbles(&self.qs, out);
    }
}

/// `q5_0` and `q5_1`.
fn five_bits(qh: [u8; 4], qs: &[u8; 16], out: &mut [u8]) {
    nibbles(qs, out);
    let high = u32::from_le_bytes(qh);
    for (i, out) in out.iter_mut().enumerate() {
        *out |= ((high >> i & 1) << 4) as u8;
    }
}

impl Coded for Q5_0 {
    const BITS: usize = 5;
    const ZERO: i32 = 16;
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        five_bits(self.qh, &self.qs, out);
    }
}

impl Coded for Q5_1 {
    const BITS: usize = 5;
    const ZERO: i32 = 0;
    const MINIMUM: bool = true;
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), min: self.m.0, ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        five_bits(self.qh, &self.qs, out);
    }
}

impl Coded for Q8_0 {
    const BITS: usize = 8;
    const ZERO: i32 = 128;
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        for (q, out) in self.qs.iter().zip(out) {
            *out = (*q as u8) ^ 128;
        }
    }
}

/// Two bits of each weight of 256: byte `32 h + i` has those of `128 h + 32 k + i`, `k < 4`.
fn bit_pairs(qs: &[u8; 64], out: &mut [u8]) {
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let qs = &qs[32 * (group / 4)..][..32];
        for (q, out) in qs.iter().zip(out) {
            *out = q >> (2 * (group % 4)) & 3;
        }
    }
}

impl Coded for Q2K {
    const BITS: usize = 2;
    const ZERO: i32 = 0;
    const PARTS: Parts = Parts::Nibbles { len: 16 };
    const MINIMUM: bool = true;
    fn factors(&self) -> Factors {
        let (d, min) = (narrow(self.d), negated(self.dmin));
        Factors { d, min, scales: self.scales }
    }
    fn codes(&self, out: &mut [u8]) {
        bit_pairs(&self.qs, out);
    }
}

impl Coded for Q3K {
    const BITS: usize = 3;
    const ZERO: i32 = 4;
    const PARTS: Parts = Parts::SixBitsSigned;
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), scales: padded(&self.scales), ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        bit_pairs(&self.qs, out);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            add_bits(&self.hmask, group, 2, out);
        }
    }
}

/// The factors of `q4_k` and `q5_k`.
fn super_factors((d, dmin): (F16, F16), packed: &[u8; 12]) -> Factors {
    Factors { d: narrow(d), min: negated(dmin), scales: padded(packed) }
}

/// The twelve bytes of scales, then zeros.
fn padded(packed: &[u8; 12]) -> [u8; 16] {
    let mut scales = [0; 16];
    scales[..12].copy_from_slice(packed);
    scales
}

/// Four bits of each weight of 256: byte `32 k + i` has those of `64 k + i` and `64 k + 32 + i`.
fn pairs_of_groups(qs: &[u8; 128], out: &mut [u8]) {
    for (qs, out) in qs.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        let (low, high) = out.split_at_mut(32);
        for ((q, low), high) in qs.iter().zip(low).zip(high) {
            (*low, *high) = (q & 15, q >> 4);
        }
    }
}

impl Coded for Q4K {
    const BITS: usize = 4;
    const ZERO: i32 = 0;
    const PARTS: Parts = Parts::SixBits;
    const MINIMUM: bool = true;
    fn factors(&self) -> Factors {
        super_factors((self.d, self.dmin), &self.scales)
    }
    fn codes(&self, out: &mut [u8]) {
        pairs_of_groups(&self.qs, out);
    }
}

impl Coded for Q5K {
    const BITS: usize = 5;
    const ZERO: i32 = 0;
    const PARTS: Parts = Parts::SixBits;
    const MINIMUM: bool = true;
    fn factors(&self) -> Factors {
        super_factors((self.d, self.dmin), &self.scales)
    }
    fn codes(&self, out: &mut [u8]) {
        pairs_of_groups(&self.qs, out);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            add_bits(&self.qh, group, 4, out);
        }
    }
}

impl Coded for Q6K {
    const BITS: usize = 6;
    const ZERO: i32 = 32;
    const PARTS: Parts = Parts::Scales { len: 16 };
    fn factors(&self) -> Factors {
        let scales = self.scales.map(|scale| scale as u8);
        Factors { d: narrow(self.d), scales, ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (half, part) = (group / 4, group % 4);
            let low = &self.ql[64 * half + 32 * (part % 2)..][..32];
            let high = &self.qh[32 * half..][..32];
            for ((low, high), out) in low.iter().zip(high).zip(out) {
                *out = (low >> (4 * (part / 2)) & 15) | (high >> (2 * part) & 3) << 4;
            }
        }
    }
}

impl Coded for Iq4Nl {
    const BITS: usize = 4;
    const ZERO: i32 = 128;
    const TABLE: Option<[i8; 16]> = Some(iq4_nl::VALUES);
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        nibbles(&self.qs, out);
    }
}

impl Coded for Iq4Xs {
    const BITS: usize = 4;
    const ZERO: i32 = 128;
    const TABLE: Option<[i8; 16]> = Some(iq4_nl::VALUES);
    const PARTS: Parts = Parts::Scales { len: 32 };
    fn factors(&self) -> Factors {
        let mut factors = Factors { d: narrow(self.d), ..Factors::default() };
        for (scale, out) in self.scales().iter().zip(&mut factors.scales) {
            *out = *scale as u8;
        }
        factors
    }
    fn codes(&self, out: &mut [u8]) {
        for (qs, out) in self.qs.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            nibbles(qs, out);
        }
    }
}

impl Coded for Tq2_0 {
    const BITS: usize = 2;
    const ZERO: i32 = 1;
    fn factors(&self) -> Factors {
        Factors { d: narrow(self.d), ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        bit_pairs(&self.qs, out);
    }
}

impl Coded for Mxfp4 {
    const BITS: usize = 4;
    const ZERO: i32 = 128;
    const TABLE: Option<[i8; 16]> = Some(mxfp4::VALUES);
    const WIDE: bool = true;
    fn factors(&self) -> Factors {
        Factors { d: self.half_scale().to_le_bytes(), ..Factors::default() }
    }
    fn codes(&self, out: &mut [u8]) {
        nibbles(&self.qs, out);
    }
}
