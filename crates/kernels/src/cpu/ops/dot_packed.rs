//! A few rows of activations against groups of packed weights: `y = Σ w x` in whole numbers.
//!
//! Each part of a block has `w = scale (code - zero) + offset`, its activations `x = s n`. So a
//! part adds `scale s (Σ code n - zero Σ n) + offset Σ x`: the first sum in whole numbers, the
//! other two ready beside the activations. A vector holds one number of each of its rows, so that
//! scales need no spreading and sums no reduction. Weights are unpacked once for all rows of `x`.

// Plain loops over constant ranges unroll, and sums stay in registers. Iterator adaptors and
// closures are compiled without the features of the instruction set, and may stay calls.
#![allow(clippy::needless_range_loop, reason = "see above")]

use std::marker::PhantomData;

use super::activations::{Group, SplitRows};
use crate::Format;
use crate::cpu::isa::{Cache, Fours, Isa, Piece};
use crate::cpu::packed::codes::{self, Coded, CodedVisitor, Parts};
use crate::cpu::packed::{GROUP_ROWS, Layout};

/// Rows of activations that one pass over the weights serves.
pub(crate) const MAX_ROWS: usize = 4;

/// How far before its use a weight is asked for, in bytes, and to which cache. Where memory is the
/// limit the processor follows the stream by itself, and needs but a push; the more there is to
/// compute, the less it looks ahead. The best of 512 bytes to 8 KiB and both caches on Zen 4, on
/// huge pages.
const fn ahead<B: Coded>(rows: usize) -> (Cache, usize) {
    match rows {
        1 if Layout::<B>::PART_LEN > 16 => (Cache::Second, 512),
        1 => (Cache::First, 2048),
        _ => (Cache::First, 4096),
    }
}

/// Some groups of sixteen rows of a packed weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups<'a> {
    /// Encoding.
    pub(crate) format: Format,
    /// The groups, one after the other.
    pub(crate) bytes: &'a [u8],
    /// Bytes of one.
    pub(crate) stride: usize,
}

/// `y[m][n] = Σ_k weights[n][k] x[first + m][k]` for the rows `n` of `weights` that `y` has; `y`
/// holds at most [`MAX_ROWS`] rows of equal length.
#[inline(always)]
pub(crate) fn rows<I: Isa>(
    isa: I,
    weights: Groups<'_>,
    x: &SplitRows,
    first: usize,
    y: &mut [&mut [f32]],
) {
    let done = codes::visit(weights.format, Rows { isa, weights, x, first, y });
    debug_assert!(done.is_some(), "a packed format");
}

struct Rows<'a, 'y, I> {
    isa: I,
    weights: Groups<'a>,
    x: &'a SplitRows,
    first: usize,
    y: &'a mut [&'y mut [f32]],
}

impl<I: Isa> CodedVisitor for Rows<'_, '_, I> {
    type Output = ();

    #[inline(always)]
    fn visit<B: Coded>(self) {
        let Self { isa, weights, x, first, y } = self;
        isa.call(RowsOf::<B> { weights, x, first, y, format: PhantomData });
    }
}

/// [`rows`] of one format.
struct RowsOf<'a, 'y, B> {
    weights: Groups<'a>,
    x: &'a SplitRows,
    first: usize,
    y: &'a mut [&'y mut [f32]],
    format: PhantomData<B>,
}

impl<B: Coded> Piece for RowsOf<'_, '_, B> {
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
fn rows_of<I: Isa, B: Coded, const M: usize>(
    isa: I,
    weights: Groups<'_>,
    x: &SplitRows,
    first: usize,
    y: &mut [&mut [f32]],
) {
    assert_eq!(y.len(), M);
    let mut rows = [x.row(first); M];
    for m in 1..M {
        rows[m] = x.row(first + m);
    }
    for (group, bytes) in weights.bytes.chunks_exact(weights.stride).enumerate() {
        let sums = dot::<I, B, M>(isa, bytes, rows);
        for m in 0..M {
            let y = &mut y[m][group * GROUP_ROWS..];
            let n = y.len().min(GROUP_ROWS);
            y[..n].copy_from_slice(&sums[m][..n]);
        }
    }
}

/// `M` rows of activations times the sixteen rows of a group.
#[inline(always)]
fn dot<I: Isa, B: Coded, const M: usize>(
    isa: I,
    group: &[u8],
    x: [&[Group]; M],
) -> [[f32; GROUP_ROWS]; M] {
    let groups = Layout::<B>::GROUPS;
    let mut sums = [[isa.splat(0.0); M]; 2];
    for b in 0..group.len() / Layout::<B>::BYTES {
        let block = &group[b * Layout::<B>::BYTES..][..Layout::<B>::BYTES];
        let mut here = x;
        for m in 0..M {
            here[m] = &x[m][b * groups..][..groups];
        }
        for v in 0..GROUP_ROWS / I::LANES {
            add_block::<I, B, M>(isa, (block, v), here, &mut sums[v]);
        }
    }
    let mut out = [[0.0; GROUP_ROWS]; M];
    for m in 0..M {
        for v in 0..GROUP_ROWS / I::LANES {
            isa.store(sums[v][m], &mut out[m][v * I::LANES..]);
        }
    }
    out
}

/// What one block of the rows of vector `v` adds to their sums.
#[inline(always)]
fn add_block<I: Isa, B: Coded, const M: usize>(
    isa: I,
    (block, v): (&[u8], usize),
    x: [&[Group]; M],
    sums: &mut [I::F32; M],
) {
    let lane = v * I::LANES;
    let factors = Factors::load::<B>(isa, block, lane);
    for g in 0..Layout::<B>::GROUPS {
        if v == 0 {
            let (cache, ahead) = const { ahead::<B>(M) };
            let from = ahead + Layout::<B>::CODES + g * Layout::<B>::GROUP_BYTES;
            isa.prefetch(cache, block, from..from + Layout::<B>::GROUP_BYTES);
        }
        let codes = unpack::<I, B>(isa, planes::<B>(block, g), lane);
        if Layout::<B>::PART_LEN == 16 {
            let parts = [factors.part::<B>(isa, 2 * g), factors.part::<B>(isa, 2 * g + 1)];
            for m in 0..M {
                let x = &x[m][g];
                sums[m] = add_part::<I, B, 4>(isa, half(&codes, 0), parts[0], (x, 0), sums[m]);
                sums[m] = add_part::<I, B, 4>(isa, half(&codes, 1), parts[1], (x, 1), sums[m]);
            }
        } else {
            let part = factors.part::<B>(isa, g);
            for m in 0..M {
                sums[m] = add_part::<I, B, 8>(isa, &codes, part, (&x[m][g], 0), sums[m]);
            }
        }
    }
}

/// Half `index` of eight.
#[inline(always)]
fn half<T>(eight: &[T; 8], index: usize) -> &[T; 4] {
    &eight.as_chunks().0[index]
}

/// What the `4 N` weights of a part, of each row, add to `sum`.
#[inline(always)]
fn add_part<I: Isa, B: Coded, const N: usize>(
    isa: I,
    codes: &[I::Ints; N],
    (scales, offsets): (I::F32, I::F32),
    (x, part): (&Group, usize),
    sum: I::F32,
) -> I::F32 {
    let (high, low) = (&x.high.as_chunks::<N>().0[part], &x.low.as_chunks::<N>().0[part]);
    let total = if N == 8 { x.totals[0] + x.totals[1] } else { x.totals[part] };
    let number = dot_codes::<I, B, N>(isa, codes, Fours { high, low }, -zero::<I, B>() * total);
    let sum = isa.fma(isa.mul(number, isa.splat(x.scale)), scales, sum);
    if !B::MINIMUM {
        return sum;
    }
    isa.fma(isa.splat(x.scale * total as f32), offsets, sum)
}

/// Whether codes need all eight bits of a byte.
const fn is_wide<B: Coded>() -> bool {
    B::BITS == 8 || B::TABLE.is_some()
}

/// What is still to be taken from each code after a dot.
#[inline(always)]
fn zero<I: Isa, B: Coded>() -> i32 {
    if is_wide::<B>() { B::ZERO - I::BYTE_ZERO } else { B::ZERO }
}

#[inline(always)]
fn dot_codes<I: Isa, B: Coded, const N: usize>(
    isa: I,
    codes: &[I::Ints; N],
    x: Fours<'_, N>,
    add: i32,
) -> I::F32 {
    if is_wide::<B>() {
        return isa.dot_bytes(codes, x, add);
    }
    match B::BITS {
        2..=4 => isa.dot::<15, N>(codes, x, add),
        5 => isa.dot::<31, N>(codes, x, add),
        _ => isa.dot::<63, N>(codes, x, add),
    }
}

/// The planes of 32 weights.
#[inline(always)]
pub(super) fn planes<B: Coded>(block: &[u8], g: usize) -> &[u8] {
    &block[Layout::<B>::CODES + g * Layout::<B>::GROUP_BYTES..][..Layout::<B>::GROUP_BYTES]
}

/// The codes of 32 weights of the rows from `lane` on, or the numbers of a table plus 128.
#[inline(always)]
pub(super) fn unpack<I: Isa, B: Coded>(isa: I, planes: &[u8], lane: usize) -> [I::Ints; 8] {
    let plane = |index: usize| isa.load_ints(&planes[4 * (GROUP_ROWS * index + lane)..]);
    let mut out = [isa.splat_int(0); 8];
    match B::BITS {
        8 => {
            for i in 0..8 {
                out[i] = plane(i);
            }
        }
        bits if bits < 4 => {
            two_bits(isa, plane(0), &mut out, 0);
            two_bits(isa, plane(1), &mut out, 4);
            if bits == 3 {
                one_bit::<I, 2>(isa, plane(2), &mut out);
            }
        }
        bits => {
            for t in 0..4 {
                let both = plane(t);
                out[2 * t] = isa.bits::<0, 4>(both);
                out[2 * t + 1] = isa.bits::<4, 4>(both);
            }
            if bits == 5 {
                one_bit::<I, 4>(isa, plane(4), &mut out);
            }
            if bits == 6 {
                two_bits_above(isa, plane(4), &mut out, 0);
                two_bits_above(isa, plane(5), &mut out, 4);
            }
        }
    }
    if let Some(table) = &B::TABLE {
        for i in 0..8 {
            out[i] = isa.look_up(table, out[i]);
        }
    }
    out
}

/// Four dwords of codes from the pairs of bits of one.
#[inline(always)]
fn two_bits<I: Isa>(isa: I, dword: I::Ints, out: &mut [I::Ints; 8], first: usize) {
    out[first] = isa.bits::<0, 2>(dword);
    out[first + 1] = isa.bits::<2, 2>(dword);
    out[first + 2] = isa.bits::<4, 2>(dword);
    out[first + 3] = isa.bits::<6, 2>(dword);
}

/// Adds them above the four bits of four codes.
#[inline(always)]
fn two_bits_above<I: Isa>(isa: I, dword: I::Ints, out: &mut [I::Ints; 8], first: usize) {
    out[first] = isa.or_bits::<0, 4, 2>(out[first], dword);
    out[first + 1] = isa.or_bits::<2, 4, 2>(out[first + 1], dword);
    out[first + 2] = isa.or_bits::<4, 4, 2>(out[first + 2], dword);
    out[first + 3] = isa.or_bits::<6, 4, 2>(out[first + 3], dword);
}

/// Adds the bits of one dword at bit `AT` of eight dwords of codes.
#[inline(always)]
fn one_bit<I: Isa, const AT: i32>(isa: I, dword: I::Ints, out: &mut [I::Ints; 8]) {
    out[0] = isa.or_bits::<0, AT, 1>(out[0], dword);
    out[1] = isa.or_bits::<1, AT, 1>(out[1], dword);
    out[2] = isa.or_bits::<2, AT, 1>(out[2], dword);
    out[3] = isa.or_bits::<3, AT, 1>(out[3], dword);
    out[4] = isa.or_bits::<4, AT, 1>(out[4], dword);
    out[5] = isa.or_bits::<5, AT, 1>(out[5], dword);
    out[6] = isa.or_bits::<6, AT, 1>(out[6], dword);
    out[7] = isa.or_bits::<7, AT, 1>(out[7], dword);
}

/// The factors of one block for the rows of one vector.
pub(super) struct Factors<'a, I: Isa> {
    d: I::F32,
    min: I::F32,
    block: &'a [u8],
    lane: usize,
}

impl<'a, I: Isa> Factors<'a, I> {
    #[inline(always)]
    pub(super) fn load<B: Coded>(isa: I, block: &'a [u8], lane: usize) -> Self {
        let d = match B::WIDE {
            true => isa.load_f32_bytes(&block[4 * lane..]),
            false => isa.load_f16_bytes(&block[2 * lane..]),
        };
        let min = match B::MINIMUM {
            true => isa.load_f16_bytes(&block[Layout::<B>::MIN + 2 * lane..]),
            false => d,
        };
        Self { d, min, block, lane }
    }

    /// Scale and offset of one part; the offset says nothing in a format without minima.
    #[inline(always)]
    pub(super) fn part<B: Coded>(&self, isa: I, part: usize) -> (I::F32, I::F32) {
        let byte = |i: usize| &self.block[Layout::<B>::SCALES + GROUP_ROWS * i + self.lane..];
        let scales = || byte(part);
        match B::PARTS {
            Parts::None => (self.d, self.min),
            Parts::Scales { .. } => (isa.mul(self.d, isa.load_signed_bytes(scales())), self.min),
            Parts::SixBits => {
                let (scale, min) = six_bits(isa, byte(0), part);
                (isa.mul(self.d, isa.byte::<0>(scale)), isa.mul(self.min, isa.byte::<0>(min)))
            }
            Parts::SixBitsSigned => {
                let number = six_bits_signed(isa, byte(0), part);
                let scale = isa.sub(isa.byte::<0>(number), isa.splat(32.0));
                (isa.mul(self.d, scale), self.min)
            }
            Parts::Nibbles { .. } => {
                let (low, high) = isa.load_halves_of_bytes(scales());
                (isa.mul(self.d, low), isa.mul(self.min, high))
            }
        }
    }
}

/// Scale and minimum of a part of `q4_k` and `q5_k`, from the bytes that
/// [`scales_and_mins`](crate::format::q4_k::scales_and_mins) describes, sixteen rows of each.
#[inline(always)]
fn six_bits<I: Isa>(isa: I, bytes: &[u8], part: usize) -> (I::Ints, I::Ints) {
    if part < 4 {
        let min = byte_of_rows(isa, bytes, part + 4);
        return (isa.bits::<0, 6>(byte_of_rows(isa, bytes, part)), isa.bits::<0, 6>(min));
    }
    let low = byte_of_rows(isa, bytes, part + 4);
    (
        isa.or_bits::<6, 4, 2>(isa.bits::<0, 4>(low), byte_of_rows(isa, bytes, part - 4)),
        isa.or_bits::<6, 4, 2>(isa.bits::<4, 4>(low), byte_of_rows(isa, bytes, part)),
    )
}

/// Scale of a part of `q3_k`, 32 too large, from the bytes that
/// [`scales`](crate::format::q3_k::scales) describes, sixteen rows of each.
#[inline(always)]
fn six_bits_signed<I: Isa>(isa: I, bytes: &[u8], part: usize) -> I::Ints {
    let low = byte_of_rows(isa, bytes, part % 8);
    let low = if part < 8 { isa.bits::<0, 4>(low) } else { isa.bits::<4, 4>(low) };
    let high = byte_of_rows(isa, bytes, 8 + part % 4);
    match part / 4 {
        0 => isa.or_bits::<0, 4, 2>(low, high),
        1 => isa.or_bits::<2, 4, 2>(low, high),
        2 => isa.or_bits::<4, 4, 2>(low, high),
        _ => isa.or_bits::<6, 4, 2>(low, high),
    }
}

/// Byte `index` of the scales of each row, one to a dword.
#[inline(always)]
fn byte_of_rows<I: Isa>(isa: I, bytes: &[u8], index: usize) -> I::Ints {
    isa.load_wide_bytes(&bytes[GROUP_ROWS * index..])
}
