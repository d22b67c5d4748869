//! AVX2 with FMA and F16C: eight lanes.

use std::arch::x86_64::*;

use crate::cpu::isa::{Isa, Piece};

/// A processor with `avx2`, `fma` and `f16c`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, inside a function that was compiled for its features. Such a function can be
    /// entered only through `unsafe`, where the features were checked.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(crate) fn assume() -> Self {
        Self(())
    }
}

const LANES: usize = 8;

impl Isa for Avx2 {
    type F32 = __m256;
    type Bytes = __m256i;
    const LANES: usize = LANES;
    const FOUR_ROWS: bool = true;

    #[inline(always)]
    fn call<P: Piece>(self, piece: P) -> P::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn outlined<P: Piece>(piece: P) -> P::Output {
            piece.run(Avx2::assume())
        }
        // SAFETY: the token proves the features.
        unsafe { outlined(piece) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> __m256 {
        let src = &src[..LANES];
        // SAFETY: the token proves avx; `src` holds eight values.
        unsafe { _mm256_loadu_ps(src.as_ptr()) }
    }
    #[inline(always)]
    fn load_f32_bytes(self, src: &[u8]) -> __m256 {
        let src = &src[..4 * LANES];
        // SAFETY: the token proves avx; `src` holds 32 bytes.
        unsafe { _mm256_loadu_ps(src.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16_bytes(self, src: &[u8]) -> __m256 {
        let src = &src[..2 * LANES];
        // SAFETY: the token proves f16c; `src` holds sixteen bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16_bytes(self, src: &[u8]) -> __m256 {
        let src = &src[..2 * LANES];
        // SAFETY: the token proves avx2; `src` holds sixteen bytes.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn store(self, v: __m256, dst: &mut [f32]) {
        let dst = &mut dst[..LANES];
        // SAFETY: the token proves avx; `dst` holds eight values.
        unsafe { _mm256_storeu_ps(dst.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves fma.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, v: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_sqrt_ps(v) }
    }
    #[inline(always)]
    fn select_gt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn round_f16(self, v: __m256) -> __m256 {
        // SAFETY: the token proves f16c.
        unsafe { _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    fn round_bf16(self, v: __m256) -> __m256 {
        // SAFETY: the token proves avx2.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            // The carry could turn a NaN into something else, so those are made quiet instead.
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
            let upper = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
            let chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
            _mm256_and_ps(chosen, upper)
        }
    }
    #[inline(always)]
    fn round(self, v: __m256) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    fn exp2_int(self, n: __m256) -> __m256 {
        // SAFETY: the token proves avx2.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn reduce_sum(self, v: __m256) -> f32 {
        // SAFETY: the token proves avx.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: __m256) -> f32 {
        // SAFETY: the token proves avx.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn reduce_sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: the token proves avx; `sums` holds four values.
        unsafe {
            let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let low = _mm256_castps256_ps128(halves);
            let four = _mm_add_ps(low, _mm256_extractf128_ps::<1>(halves));
            _mm_storeu_ps(sums.as_mut_ptr(), four);
        }
        sums
    }

    #[inline(always)]
    fn f16(self, bits: u16) -> f32 {
        // SAFETY: the token proves f16c.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    fn splat_halves(self, low: f32, high: f32) -> __m256 {
        // SAFETY: the token proves avx.
        unsafe { _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low)) }
    }
    #[inline(always)]
    fn transpose(self, [a, b, c, d, e, f, g, h]: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: the token proves avx.
        unsafe {
            // Columns in pairs of rows, then in fours of rows within 128-bit halves.
            let (ab, cd) = (
                [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)],
                [_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)],
            );
            let (ef, gh) = (
                [_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f)],
                [_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h)],
            );
            let top = [
                _mm256_shuffle_ps::<0x44>(ab[0], cd[0]),
                _mm256_shuffle_ps::<0xee>(ab[0], cd[0]),
                _mm256_shuffle_ps::<0x44>(ab[1], cd[1]),
                _mm256_shuffle_ps::<0xee>(ab[1], cd[1]),
            ];
            let bottom = [
                _mm256_shuffle_ps::<0x44>(ef[0], gh[0]),
                _mm256_shuffle_ps::<0xee>(ef[0], gh[0]),
                _mm256_shuffle_ps::<0x44>(ef[1], gh[1]),
                _mm256_shuffle_ps::<0xee>(ef[1], gh[1]),
            ];
            [
                _mm256_permute2f128_ps::<0x20>(top[0], bottom[0]),
                _mm256_permute2f128_ps::<0x20>(top[1], bottom[1]),
                _mm256_permute2f128_ps::<0x20>(top[2], bottom[2]),
                _mm256_permute2f128_ps::<0x20>(top[3], bottom[3]),
                _mm256_permute2f128_ps::<0x31>(top[0], bottom[0]),
                _mm256_permute2f128_ps::<0x31>(top[1], bottom[1]),
                _mm256_permute2f128_ps::<0x31>(top[2], bottom[2]),
                _mm256_permute2f128_ps::<0x31>(top[3], bottom[3]),
            ]
        }
    }
    #[inline(always)]
    fn splat_byte(self, value: u8) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe { _mm256_set1_epi8(value as i8) }
    }
    #[inline(always)]
    fn load_bytes(self, src: &[u8; 32]) -> __m256i {
        // SAFETY: the token proves avx2; `src` holds 32 bytes.
        unsafe { _mm256_loadu_si256(src.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_nibbles(self, src: &[u8; 16]) -> __m256i {
        // SAFETY: the token proves avx2; `src` holds sixteen bytes.
        unsafe {
            let low = _mm_loadu_si128(src.as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(low), low);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }
    #[inline(always)]
    fn expand_bits(self, bits: u32) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe {
            // Byte `i` takes the byte that holds bit `i`, and all its other bits are set.
            let from = _mm256_set_epi64x(
                0x0303_0303_0303_0303,
                0x0202_0202_0202_0202,
                0x0101_0101_0101_0101,
                0,
            );
            let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), from);
            let others = _mm256_set1_epi64x(0x7fbf_dfef_f7fb_fdfe);
            _mm256_cmpeq_epi8(_mm256_or_si256(spread, others), _mm256_set1_epi8(-1))
        }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn shift_down<const N: i32>(self, v: __m256i) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<N>(v), _mm256_set1_epi8((255u8 >> N) as i8)) }
    }
    #[inline(always)]
    fn shift_up<const N: i32>(self, v: __m256i) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe { _mm256_slli_epi16::<N>(v) }
    }
    #[inline(always)]
    fn equal(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe { _mm256_cmpeq_epi8(a, b) }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], v: __m256i) -> __m256i {
        // SAFETY: the token proves avx2; `table` holds sixteen bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, v)
        }
    }
    #[inline(always)]
    fn narrow(self, src: &[f32; 32], dst: &mut [u8; 32]) {
        // SAFETY: the token proves avx2; `src` holds four vectors, `dst` one.
        unsafe {
            let ints = |i: usize| _mm256_cvtps_epi32(_mm256_loadu_ps(src.as_ptr().add(8 * i)));
            let low = _mm256_packs_epi32(ints(0), ints(1));
            let high = _mm256_packs_epi32(ints(2), ints(3));
            // Packing works within 128-bit halves; the permutation puts the fours in order.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn dot_unsigned(self, u: __m256i, high: __m256i, low: __m256i) -> __m256 {
        // SAFETY: the token proves avx2.
        unsafe {
            // At most 2 * 127 * 127 in magnitude: the sixteen-bit sums do not saturate.
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(u, high), _mm256_set1_epi16(128));
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(u, low), _mm256_set1_epi16(1));
            _mm256_cvtepi32_ps(_mm256_add_epi32(high, low))
        }
    }
    #[inline(always)]
    fn dot_signed(self, s: __m256i, high: __m256i, low: __m256i) -> __m256 {
        // SAFETY: the token proves avx2.
        unsafe {
            // |s| is at most 128 as an unsigned byte, `high` at most 127: 2 * 128 * 127 fits.
            let (size, high) = (_mm256_sign_epi8(s, s), _mm256_sign_epi8(high, s));
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(size, high), _mm256_set1_epi16(128));
            let low = _mm256_maddubs_epi16(size, _mm256_sign_epi8(low, s));
            let low = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
            _mm256_cvtepi32_ps(_mm256_add_epi32(high, low))
        }
    }
}
