//! AVX-512 with its byte dots (VNNI): sixteen lanes. `F`, `BW`, `VL`, `DQ` and `VNNI` come
//! together since Ice Lake and Zen 4; some processors, Zen 4 among them, multiply pairs of `bf16`
//! values as well.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::Avx2;
use crate::cpu::isa::{Cache, Fours, Isa, PairIsa, Piece};

/// A processor with `avx512f`, `avx512bw`, `avx512vl`, `avx512dq`, `avx512vnni`, and all of
/// [`Avx2`]; where `BF16` also with `avx512bf16`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WithAvx512<const BF16: bool>(Avx2);

pub(crate) type Avx512 = WithAvx512<false>;
pub(crate) type Avx512Bf16 = WithAvx512<true>;

impl Avx512 {
    /// The token, inside a function that was compiled for its features. Such a function can be
    /// entered only through `unsafe`, where the features were checked.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    #[inline]
    pub(crate) fn assume() -> Self {
        Self(Avx2::assume())
    }
}

impl Avx512Bf16 {
    /// As [`Avx512::assume`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    pub(crate) fn assume() -> Self {
        Self(Avx2::assume())
    }
}

const LANES: usize = 16;

impl<const BF16: bool> Isa for WithAvx512<BF16> {
    type F32 = __m512;
    type Ints = __m512i;
    const LANES: usize = LANES;
    const FOUR_ROWS: bool = true;
    const MANY_REGISTERS: bool = true;
    const BYTE_ZERO: i32 = 0;

    #[inline(always)]
    fn call<P: Piece>(self, piece: P) -> P::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        #[inline(never)]
        fn plain<P: Piece>(piece: P) -> P::Output {
            piece.run(Avx512::assume())
        }
        #[target_feature(
            enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
        )]
        #[inline(never)]
        fn with_bf16<P: Piece>(piece: P) -> P::Output {
            piece.run(Avx512Bf16::assume())
        }
        // SAFETY: the token proves the features.
        unsafe { if BF16 { with_bf16(piece) } else { plain(piece) } }
    }

    #[inline(always)]
    fn prefetch(self, cache: Cache, src: &[u8], range: Range<usize>) {
        self.0.prefetch(cache, src, range);
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> __m512 {
        let src = &src[..LANES];
        // SAFETY: the token proves avx512f; `src` holds sixteen values.
        unsafe { _mm512_loadu_ps(src.as_ptr()) }
    }
    #[inline(always)]
    fn load_f32_bytes(self, src: &[u8]) -> __m512 {
        let src = &src[..4 * LANES];
        // SAFETY: the token proves avx512f; `src` holds 64 bytes.
        unsafe { _mm512_loadu_ps(src.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16_bytes(self, src: &[u8]) -> __m512 {
        let src = &src[..2 * LANES];
        // SAFETY: the token proves avx512f; `src` holds 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16_bytes(self, src: &[u8]) -> __m512 {
        let src = &src[..2 * LANES];
        // SAFETY: the token proves avx512f; `src` holds 32 bytes.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn store(self, v: __m512, dst: &mut [f32]) {
        let dst = &mut dst[..LANES];
        // SAFETY: the token proves avx512f; `dst` holds sixteen values.
        unsafe { _mm512_storeu_ps(dst.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, v: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_sqrt_ps(v) }
    }
    #[inline(always)]
    fn select_gt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn round_f16(self, v: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    fn round_bf16(self, v: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            // The carry could turn a NaN into something else, so those are made quiet instead.
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let chosen = _mm512_mask_blend_epi32(nan, up, quiet);
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(chosen, upper))
        }
    }
    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    fn exp2_int(self, n: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn reduce_sum(self, v: __m512) -> f32 {
        // SAFETY: the token proves avx512f and dq.
        self.0.reduce_sum(unsafe { fold(v) })
    }
    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        // SAFETY: the token proves avx512f and dq.
        let halves = unsafe { (_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)) };
        self.0.reduce_max(self.0.max(halves.0, halves.1))
    }

    #[inline(always)]
    fn scale_exp2(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    fn transpose(self, src: &[f32], from: usize, dst: &mut [f32], to: usize) {
        self.0.transpose(src, from, dst, to);
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        // SAFETY: the token proves avx512f.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn load_ints(self, src: &[u8]) -> __m512i {
        let src = &src[..4 * LANES];
        // SAFETY: the token proves avx512f; `src` holds 64 bytes.
        unsafe { _mm512_loadu_si512(src.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_signed_bytes(self, src: &[u8]) -> __m512 {
        let src = &src[..LANES];
        // SAFETY: the token proves avx512f; `src` holds sixteen bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(src.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_wide_bytes(self, src: &[u8]) -> __m512i {
        let src = &src[..LANES];
        // SAFETY: the token proves avx512f; `src` holds sixteen bytes.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_halves_of_bytes(self, src: &[u8]) -> (__m512, __m512) {
        let src = &src[..LANES];
        // SAFETY: the token proves avx512f; `src` holds sixteen bytes.
        unsafe {
            let both = _mm512_cvtepu8_epi32(_mm_loadu_si128(src.as_ptr().cast()));
            let low = _mm512_and_si512(both, _mm512_set1_epi32(15));
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(both)))
        }
    }
    #[inline(always)]
    fn bits<const FROM: i32, const N: i32>(self, v: __m512i) -> __m512i {
        // SAFETY: the token proves avx512bw.
        unsafe {
            // The intrinsic wants an unsigned constant, which `FROM` cannot be turned into.
            let moved = match FROM {
                0 => v,
                1 => _mm512_srli_epi32::<1>(v),
                2 => _mm512_srli_epi32::<2>(v),
                3 => _mm512_srli_epi32::<3>(v),
                4 => _mm512_srli_epi32::<4>(v),
                5 => _mm512_srli_epi32::<5>(v),
                6 => _mm512_srli_epi32::<6>(v),
                _ => _mm512_srli_epi32::<7>(v),
            };
            _mm512_and_si512(moved, _mm512_set1_epi8((1 << N) - 1))
        }
    }
    #[inline(always)]
    fn or_bits<const FROM: i32, const TO: i32, const N: i32>(
        self,
        a: __m512i,
        b: __m512i,
    ) -> __m512i {
        // SAFETY: the token proves avx512bw.
        unsafe {
            // A count that is a constant becomes part of the instruction.
            let moved = if FROM < TO {
                _mm512_sll_epi32(b, _mm_cvtsi32_si128(TO - FROM))
            } else {
                _mm512_srl_epi32(b, _mm_cvtsi32_si128(FROM - TO))
            };
            let here = _mm512_set1_epi8((((1 << N) - 1) << TO) as i8);
            _mm512_or_si512(a, _mm512_and_si512(moved, here))
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], v: __m512i) -> __m512i {
        // SAFETY: the token proves avx512bw; `table` holds sixteen bytes.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            let biased = _mm512_xor_si512(table, _mm512_set1_epi8(i8::MIN));
            _mm512_shuffle_epi8(biased, v)
        }
    }
    #[inline(always)]
    fn byte<const N: i32>(self, v: __m512i) -> __m512 {
        // SAFETY: the token proves avx512f.
        unsafe {
            let moved = match N {
                0 => v,
                1 => _mm512_srli_epi32::<8>(v),
                2 => _mm512_srli_epi32::<16>(v),
                _ => _mm512_srli_epi32::<24>(v),
            };
            _mm512_cvtepi32_ps(_mm512_and_si512(moved, _mm512_set1_epi32(255)))
        }
    }
    #[inline(always)]
    fn narrow(self, src: &[f32; 32], dst: &mut [u8; 32]) {
        // SAFETY: the token proves avx512f; `src` holds two vectors, `dst` two of sixteen bytes.
        unsafe {
            for half in 0..2 {
                let ints = _mm512_cvtps_epi32(_mm512_loadu_ps(src.as_ptr().add(LANES * half)));
                let to = dst.as_mut_ptr().add(LANES * half);
                _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(ints));
            }
        }
    }
    #[inline(always)]
    fn dot<const MAX: i32, const N: usize>(
        self,
        codes: &[__m512i; N],
        x: Fours<'_, N>,
        add: i32,
    ) -> __m512 {
        self.dot_bytes(codes, x, add)
    }
    #[inline(always)]
    fn dot_bytes<const N: usize>(self, codes: &[__m512i; N], x: Fours<'_, N>, add: i32) -> __m512 {
        // SAFETY: the token proves avx512vnni. The dots do not saturate.
        unsafe {
            let four = |x: [u8; 4]| _mm512_set1_epi32(i32::from_le_bytes(x));
            let (x_high, x_low) = (x.high, x.low);
            let (mut high, mut low) = (_mm512_setzero_si512(), _mm512_set1_epi32(add));
            // In turn: each waits for its own sum.
            for i in 0..N {
                high = _mm512_dpbusd_epi32(high, codes[i], four(x_high[i]));
                low = _mm512_dpbusd_epi32(low, codes[i], four(x_low[i]));
            }
            _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<7>(high), low))
        }
    }
}

impl PairIsa for Avx512Bf16 {
    #[inline(always)]
    fn pair(self, low: __m512, high: __m512) -> __m512 {
        // SAFETY: the token proves avx512bf16 and avx512bw. Both are 512 bits.
        unsafe {
            let halves: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            // Word `i`: value `i` of the lower half, then of the upper half.
            let upper = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                _mm512_extracti64x4_epi64::<1>(halves),
            ));
            let lower = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves));
            _mm512_castsi512_ps(_mm512_or_si512(lower, upper))
        }
    }
    #[inline(always)]
    fn pair_up(self, src: &[f32]) -> __m512 {
        let src = &src[..2 * LANES];
        // SAFETY: the token proves avx512bf16; `src` holds two vectors. Both are 512 bits.
        unsafe {
            let (low, high) =
                (_mm512_loadu_ps(src.as_ptr()), _mm512_loadu_ps(src.as_ptr().add(LANES)));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: the token proves avx512bf16. All are 512 bits.
        unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a);
            _mm512_dpbf16_ps(sum, a, std::mem::transmute::<__m512, __m512bh>(b))
        }
    }
}

/// The sum of both halves.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold(v: __m512) -> __m256 {
    _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))
}
