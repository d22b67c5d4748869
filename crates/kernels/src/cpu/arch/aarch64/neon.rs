//! NEON with its byte dots (`dotprod`): eight lanes, two registers of 128 bits. In and out: `f32` in
//! pairs of `float32x4_t`, dwords and bytes in pairs of `uint8x16_t`. Most processors since 2018
//! have the dots, and since 2021 those of `bf16` pairs. The intrinsics of both, and of prefetching,
//! are unstable in Rust 1.95: one line of assembler each. (`smmla` of `i8mm` wants eight bytes of a
//! row side by side, where the packed weights have four.)

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use crate::cpu::isa::{Cache, Fours, Isa, PairIsa, Piece};

/// A processor with `neon` and `dotprod`; where `BF16` also with `bf16`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WithNeon<const BF16: bool>(());

pub(crate) type Neon = WithNeon<false>;
pub(crate) type NeonBf16 = WithNeon<true>;

impl Neon {
    /// The token, inside a function that was compiled for its features. Such a function can be
    /// entered only through `unsafe`, where the features were checked.
    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    pub(crate) fn assume() -> Self {
        Self(())
    }
}

impl NeonBf16 {
    /// As [`Neon::assume`].
    #[target_feature(enable = "neon,dotprod,bf16")]
    #[inline]
    pub(crate) fn assume() -> Self {
        Self(())
    }
}

type F32 = [float32x4_t; 2];
type Ints = [uint8x16_t; 2];

const LANES: usize = 8;

impl<const BF16: bool> WithNeon<BF16> {
    /// The dots of codes whose bits `flip` are turned over, and which are signed then.
    #[inline(always)]
    fn dot_signed<const N: usize>(
        self,
        codes: &[Ints; N],
        flip: u8,
        x: Fours<'_, N>,
        add: i32,
    ) -> F32 {
        const { assert!(N.is_multiple_of(4)) };
        // SAFETY: the token proves dotprod; four times four bytes of `x` are read at once.
        unsafe {
            let flip = vdupq_n_u8(flip);
            let signed = |code: Ints| [veorq_u8(code[0], flip), veorq_u8(code[1], flip)];
            let (mut high, mut low) = ([vdupq_n_s32(0); 2], [vdupq_n_s32(add); 2]);
            let mut i = 0;
            while i < N {
                let four = [0, 1, 2, 3].map(|j| signed(codes[i + j]));
                high = dot_four(high, four, vld1q_u8(x.high[i..i + 4].as_ptr().cast()));
                low = dot_four(low, four, vld1q_u8(x.low[i..i + 4].as_ptr().cast()));
                i += 4;
            }
            let sum =
                |half: usize| vcvtq_f32_s32(vaddq_s32(vshlq_n_s32::<7>(high[half]), low[half]));
            [sum(0), sum(1)]
        }
    }
}

impl<const BF16: bool> Isa for WithNeon<BF16> {
    type F32 = F32;
    type Ints = Ints;
    const LANES: usize = LANES;
    const FOUR_ROWS: bool = true;
    /// Thirty-two registers are sixteen vectors.
    const MANY_REGISTERS: bool = false;
    const BYTE_ZERO: i32 = 128;

    #[inline(always)]
    fn call<P: Piece>(self, piece: P) -> P::Output {
        #[target_feature(enable = "neon,dotprod")]
        #[inline(never)]
        fn plain<P: Piece>(piece: P) -> P::Output {
            piece.run(Neon::assume())
        }
        #[target_feature(enable = "neon,dotprod,bf16")]
        #[inline(never)]
        fn with_bf16<P: Piece>(piece: P) -> P::Output {
            piece.run(NeonBf16::assume())
        }
        // SAFETY: the token proves the features.
        unsafe { if BF16 { with_bf16(piece) } else { plain(piece) } }
    }

    #[inline(always)]
    fn prefetch(self, cache: Cache, src: &[u8], range: Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            let line = src.as_ptr().wrapping_add(at);
            // SAFETY: a prefetch reads nothing that a program can see and faults on no address.
            unsafe {
                match cache {
                    Cache::First => asm!(
                        "prfm pldl1keep, [{line}]",
                        line = in(reg) line,
                        options(nomem, nostack, preserves_flags)
                    ),
                    Cache::Second => asm!(
                        "prfm pldl2keep, [{line}]",
                        line = in(reg) line,
                        options(nomem, nostack, preserves_flags)
                    ),
                }
            }
            at += 64;
        }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vdupq_n_f32(value); 2] }
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> F32 {
        let src = &src[..LANES];
        // SAFETY: the token proves neon; `src` holds eight values.
        unsafe { [vld1q_f32(src.as_ptr()), vld1q_f32(src.as_ptr().add(4))] }
    }
    #[inline(always)]
    fn load_f32_bytes(self, src: &[u8]) -> F32 {
        let v = self.load_ints(src);
        // SAFETY: the token proves neon.
        unsafe { [vreinterpretq_f32_u8(v[0]), vreinterpretq_f32_u8(v[1])] }
    }
    #[inline(always)]
    fn load_f16_bytes(self, src: &[u8]) -> F32 {
        let src = &src[..2 * LANES];
        // SAFETY: the token proves neon; `src` holds sixteen bytes.
        unsafe {
            let v = vreinterpretq_f16_u8(vld1q_u8(src.as_ptr()));
            [vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)]
        }
    }
    #[inline(always)]
    fn load_bf16_bytes(self, src: &[u8]) -> F32 {
        let src = &src[..2 * LANES];
        // SAFETY: the token proves neon; `src` holds sixteen bytes.
        unsafe {
            let v = vreinterpretq_u16_u8(vld1q_u8(src.as_ptr()));
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(v)), vshll_high_n_u16::<16>(v));
            [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)]
        }
    }
    #[inline(always)]
    fn store(self, v: F32, dst: &mut [f32]) {
        let dst = &mut dst[..LANES];
        // SAFETY: the token proves neon; `dst` holds eight values.
        unsafe {
            vst1q_f32(dst.as_mut_ptr(), v[0]);
            vst1q_f32(dst.as_mut_ptr().add(4), v[1]);
        }
    }
    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: F32, b: F32, c: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        // The machine's own maximum is NaN where either is.
        self.select_gt(a, b, a, b)
    }
    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        self.select_gt(b, a, a, b)
    }
    #[inline(always)]
    fn sqrt(self, v: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vsqrtq_f32(v[0]), vsqrtq_f32(v[1])] }
    }
    #[inline(always)]
    fn select_gt(self, a: F32, b: F32, x: F32, y: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe {
            [
                vbslq_f32(vcgtq_f32(a[0], b[0]), x[0], y[0]),
                vbslq_f32(vcgtq_f32(a[1], b[1]), x[1], y[1]),
            ]
        }
    }
    #[inline(always)]
    fn round_f16(self, v: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vcvt_f32_f16(vcvt_f16_f32(v[0])), vcvt_f32_f16(vcvt_f16_f32(v[1]))] }
    }
    #[inline(always)]
    fn round_bf16(self, v: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [round_four_to_bf16(v[0]), round_four_to_bf16(v[1])] }
    }
    #[inline(always)]
    fn round(self, v: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe { [vrndnq_f32(v[0]), vrndnq_f32(v[1])] }
    }
    #[inline(always)]
    fn exp2_int(self, n: F32) -> F32 {
        // SAFETY: the token proves neon.
        unsafe {
            let bias = vdupq_n_s32(127);
            let low = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n[0]), bias));
            let high = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n[1]), bias));
            [vreinterpretq_f32_s32(low), vreinterpretq_f32_s32(high)]
        }
    }
    #[inline(always)]
    fn reduce_sum(self, v: F32) -> f32 {
        // SAFETY: the token proves neon.
        unsafe {
            let four = vaddq_f32(v[0], v[1]);
            vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: F32) -> f32 {
        // SAFETY: the token proves neon.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(v[0], v[1])) }
    }

    #[inline(always)]
    fn transpose(self, src: &[f32], from: usize, dst: &mut [f32], to: usize) {
        for half in 0..2 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| self.load(&src[(4 * half + i) * from..]));
            for columns in 0..2 {
                // SAFETY: the token proves neon.
                let four =
                    unsafe { transpose_four(a[columns], b[columns], c[columns], d[columns]) };
                for i in 0..4 {
                    let dst = &mut dst[(4 * columns + i) * to + 4 * half..][..4];
                    // SAFETY: the token proves neon; `dst` holds four values.
                    unsafe { vst1q_f32(dst.as_mut_ptr(), four[i]) };
                }
            }
        }
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> Ints {
        // SAFETY: the token proves neon.
        unsafe { [vreinterpretq_u8_s32(vdupq_n_s32(value)); 2] }
    }
    #[inline(always)]
    fn load_ints(self, src: &[u8]) -> Ints {
        let src = &src[..4 * LANES];
        // SAFETY: the token proves neon; `src` holds 32 bytes.
        unsafe { [vld1q_u8(src.as_ptr()), vld1q_u8(src.as_ptr().add(16))] }
    }
    #[inline(always)]
    fn load_signed_bytes(self, src: &[u8]) -> F32 {
        let src = &src[..LANES];
        // SAFETY: the token proves neon; `src` holds eight bytes.
        unsafe {
            let wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(src.as_ptr())));
            let (low, high) = (vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide));
            [vcvtq_f32_s32(low), vcvtq_f32_s32(high)]
        }
    }
    #[inline(always)]
    fn load_wide_bytes(self, src: &[u8]) -> Ints {
        let src = &src[..LANES];
        // SAFETY: the token proves neon; `src` holds eight bytes.
        unsafe {
            let wide = vmovl_u8(vld1_u8(src.as_ptr()));
            let (low, high) = (vmovl_u16(vget_low_u16(wide)), vmovl_high_u16(wide));
            [vreinterpretq_u8_u32(low), vreinterpretq_u8_u32(high)]
        }
    }
    #[inline(always)]
    fn load_halves_of_bytes(self, src: &[u8]) -> (F32, F32) {
        let both = self.load_wide_bytes(src);
        (self.byte::<0>(self.bits::<0, 4>(both)), self.byte::<0>(self.bits::<4, 4>(both)))
    }
    #[inline(always)]
    fn bits<const FROM: i32, const N: i32>(self, v: Ints) -> Ints {
        // SAFETY: the token proves neon.
        unsafe {
            // By minus `FROM` to the left: the shift to the right has no form for zero.
            let (shift, mask) = (vdupq_n_s8(-FROM as i8), vdupq_n_u8((1 << N) - 1));
            [vandq_u8(vshlq_u8(v[0], shift), mask), vandq_u8(vshlq_u8(v[1], shift), mask)]
        }
    }
    #[inline(always)]
    fn or_bits<const FROM: i32, const TO: i32, const N: i32>(self, a: Ints, b: Ints) -> Ints {
        // SAFETY: the token proves neon.
        unsafe {
            let (shift, here) = (vdupq_n_s8((TO - FROM) as i8), vdupq_n_u8(((1 << N) - 1) << TO));
            [
                vbslq_u8(here, vshlq_u8(b[0], shift), a[0]),
                vbslq_u8(here, vshlq_u8(b[1], shift), a[1]),
            ]
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], v: Ints) -> Ints {
        // SAFETY: the token proves neon; `table` holds sixteen bytes.
        unsafe {
            let table = vreinterpretq_u8_s8(vld1q_s8(table.as_ptr()));
            let biased = veorq_u8(table, vdupq_n_u8(128));
            [vqtbl1q_u8(biased, v[0]), vqtbl1q_u8(biased, v[1])]
        }
    }
    #[inline(always)]
    fn byte<const N: i32>(self, v: Ints) -> F32 {
        // SAFETY: the token proves neon.
        unsafe {
            let (shift, mask) = (vdupq_n_s32(-8 * N), vdupq_n_u32(255));
            let low = vandq_u32(vshlq_u32(vreinterpretq_u32_u8(v[0]), shift), mask);
            let high = vandq_u32(vshlq_u32(vreinterpretq_u32_u8(v[1]), shift), mask);
            [vcvtq_f32_u32(low), vcvtq_f32_u32(high)]
        }
    }
    #[inline(always)]
    fn narrow(self, src: &[f32; 32], dst: &mut [u8; 32]) {
        for at in (0..32).step_by(LANES) {
            let [low, high] = self.load(&src[at..]);
            let dst = &mut dst[at..at + LANES];
            // SAFETY: the token proves neon; `dst` holds eight bytes.
            unsafe {
                let low = vmovn_s32(vcvtq_s32_f32(low));
                let wide = vmovn_high_s32(low, vcvtq_s32_f32(high));
                vst1_u8(dst.as_mut_ptr(), vreinterpret_u8_s8(vmovn_s16(wide)));
            }
        }
    }
    #[inline(always)]
    fn dot<const MAX: i32, const N: usize>(
        self,
        codes: &[Ints; N],
        x: Fours<'_, N>,
        add: i32,
    ) -> F32 {
        const { assert!(MAX <= 127, "a code is a signed byte") };
        self.dot_signed(codes, 0, x, add)
    }
    #[inline(always)]
    fn dot_bytes<const N: usize>(self, codes: &[Ints; N], x: Fours<'_, N>, add: i32) -> F32 {
        self.dot_signed(codes, 128, x, add)
    }
}

impl PairIsa for NeonBf16 {
    #[inline(always)]
    fn pair(self, low: F32, high: F32) -> F32 {
        // SAFETY: the token proves bf16.
        unsafe {
            let zip = |low: float32x4_t, high: float32x4_t| {
                let low = vcombine_u16(narrow_to_bf16(low), vdup_n_u16(0));
                let high = vcombine_u16(narrow_to_bf16(high), vdup_n_u16(0));
                vreinterpretq_f32_u16(vzip1q_u16(low, high))
            };
            [zip(low[0], high[0]), zip(low[1], high[1])]
        }
    }
    #[inline(always)]
    fn pair_up(self, src: &[f32]) -> F32 {
        let (first, second) = (self.load(src), self.load(&src[LANES..]));
        // SAFETY: the token proves bf16.
        unsafe {
            let join = |v: F32| {
                let both = vcombine_u16(narrow_to_bf16(v[0]), narrow_to_bf16(v[1]));
                vreinterpretq_f32_u16(both)
            };
            [join(first), join(second)]
        }
    }
    /// Where the processor has no `ebf16`, both products, their sum and the result are rounded to
    /// odd and subnormal ones are zeros: up to twice the error of rounding to nearest, still far
    /// below that of a `bf16`.
    #[inline(always)]
    fn dot_pairs(self, a: F32, b: F32, sum: F32) -> F32 {
        // SAFETY: the token proves bf16.
        unsafe { [dot_four_pairs(a[0], b[0], sum[0]), dot_four_pairs(a[1], b[1], sum[1])] }
    }
}

/// Four dwords of signed codes with the four of `x`, added to `sum`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_four(sum: [int32x4_t; 2], codes: [Ints; 4], x: uint8x16_t) -> [int32x4_t; 2] {
    let sum = dot_lane::<1>(dot_lane::<0>(sum, codes[0], x), codes[1], x);
    dot_lane::<3>(dot_lane::<2>(sum, codes[2], x), codes[3], x)
}

/// The dot of four signed bytes of each dword of `codes` with dword `LANE` of `x`, added to `sum`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_lane<const LANE: i32>(
    mut sum: [int32x4_t; 2],
    codes: Ints,
    x: uint8x16_t,
) -> [int32x4_t; 2] {
    for half in 0..2 {
        // SAFETY: this function has dotprod; registers are all that the instruction touches.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{lane}]",
                sum = inlateout(vreg) sum[half],
                codes = in(vreg) codes[half],
                x = in(vreg) x,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
    }
    sum
}

/// Four values rounded to `bf16`, ties to even.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn narrow_to_bf16(v: float32x4_t) -> uint16x4_t {
    let out;
    // SAFETY: this function has bf16; registers are all that the instruction touches.
    unsafe {
        asm!(
            "bfcvtn {out:v}.4h, {v:v}.4s",
            out = lateout(vreg) out,
            v = in(vreg) v,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

/// `sum` with the products of both halves of each word.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn dot_four_pairs(a: float32x4_t, b: float32x4_t, mut sum: float32x4_t) -> float32x4_t {
    // SAFETY: this function has bf16; registers are all that the instruction touches.
    unsafe {
        asm!(
            "bfdot {sum:v}.4s, {a:v}.8h, {b:v}.8h",
            sum = inlateout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Four lanes of [`Isa::round_bf16`].
#[inline]
#[target_feature(enable = "neon")]
fn round_four_to_bf16(v: float32x4_t) -> float32x4_t {
    let bits = vreinterpretq_u32_f32(v);
    let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
    let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    // The carry could turn a NaN into something else, so those are made quiet instead.
    let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
    let chosen = vbslq_u32(vceqq_f32(v, v), up, quiet);
    vreinterpretq_f32_u32(vandq_u32(chosen, vdupq_n_u32(0xffff_0000)))
}

/// Columns of four rows of four.
#[inline]
#[target_feature(enable = "neon")]
fn transpose_four(
    a: float32x4_t,
    b: float32x4_t,
    c: float32x4_t,
    d: float32x4_t,
) -> [float32x4_t; 4] {
    // Even and odd columns in pairs of rows.
    let (even_ab, odd_ab) = (pairs(vtrn1q_f32(a, b)), pairs(vtrn2q_f32(a, b)));
    let (even_cd, odd_cd) = (pairs(vtrn1q_f32(c, d)), pairs(vtrn2q_f32(c, d)));
    [
        vreinterpretq_f32_u64(vtrn1q_u64(even_ab, even_cd)),
        vreinterpretq_f32_u64(vtrn1q_u64(odd_ab, odd_cd)),
        vreinterpretq_f32_u64(vtrn2q_u64(even_ab, even_cd)),
        vreinterpretq_f32_u64(vtrn2q_u64(odd_ab, odd_cd)),
    ]
}

/// Neighbouring lanes as one.
#[inline]
#[target_feature(enable = "neon")]
fn pairs(v: float32x4_t) -> uint64x2_t {
    vreinterpretq_u64_f32(v)
}
