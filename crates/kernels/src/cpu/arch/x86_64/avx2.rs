//! AVX2 with FMA and F16C: eight lanes. In and out: `f32` in `__m256`, dwords and bytes in
//! `__m256i`. Byte dots go through sums of 16 bits, of as many products as fit.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::cpu::isa::{Cache, Fours, Isa, Piece};

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
    type Ints = __m256i;
    const LANES: usize = LANES;
    const FOUR_ROWS: bool = true;
    const MANY_REGISTERS: bool = false;
    const BYTE_ZERO: i32 = 128;

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
    fn prefetch(self, cache: Cache, src: &[u8], range: Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            let line = src.as_ptr().wrapping_add(at).cast();
            // SAFETY: a prefetch reads nothing that a program can see and faults on no address.
            unsafe {
                match cache {
                    Cache::First => _mm_prefetch::<_MM_HINT_T0>(line),
                    Cache::Second => _mm_prefetch::<_MM_HINT_T1>(line),
                }
            }
            at += 64;
        }
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
    fn transpose(self, src: &[f32], from: usize, dst: &mut [f32], to: usize) {
        let row = |i: usize| self.load(&src[i * from..]);
        let [a, b, c, d] = [row(0), row(1), row(2), row(3)];
        let [e, f, g, h] = [row(4), row(5), row(6), row(7)];
        // SAFETY: the token proves avx.
        let columns = unsafe {
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
        };
        for i in 0..8 {
            self.store(columns[i], &mut dst[i * to..]);
        }
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    fn load_ints(self, src: &[u8]) -> __m256i {
        let src = &src[..4 * LANES];
        // SAFETY: the token proves avx2; `src` holds 32 bytes.
        unsafe { _mm256_loadu_si256(src.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_signed_bytes(self, src: &[u8]) -> __m256 {
        let src = &src[..LANES];
        // SAFETY: the token proves avx2; `src` holds eight bytes.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(src.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_wide_bytes(self, src: &[u8]) -> __m256i {
        let src = &src[..LANES];
        // SAFETY: the token proves avx2; `src` holds eight bytes.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_halves_of_bytes(self, src: &[u8]) -> (__m256, __m256) {
        let src = &src[..LANES];
        // SAFETY: the token proves avx2; `src` holds eight bytes.
        unsafe {
            let both = _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.as_ptr().cast()));
            let low = _mm256_and_si256(both, _mm256_set1_epi32(15));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(both)))
        }
    }
    #[inline(always)]
    fn bits<const FROM: i32, const N: i32>(self, v: __m256i) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe {
            let moved = _mm256_srli_epi32::<FROM>(v);
            _mm256_and_si256(moved, _mm256_set1_epi8((1 << N) - 1))
        }
    }
    #[inline(always)]
    fn or_bits<const FROM: i32, const TO: i32, const N: i32>(
        self,
        a: __m256i,
        b: __m256i,
    ) -> __m256i {
        // SAFETY: the token proves avx2.
        unsafe {
            // A count that is a constant becomes part of the instruction.
            let moved = if FROM < TO {
                _mm256_sll_epi32(b, _mm_cvtsi32_si128(TO - FROM))
            } else {
                _mm256_srl_epi32(b, _mm_cvtsi32_si128(FROM - TO))
            };
            let here = _mm256_set1_epi8((((1 << N) - 1) << TO) as i8);
            _mm256_or_si256(a, _mm256_and_si256(moved, here))
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], v: __m256i) -> __m256i {
        // SAFETY: the token proves avx2; `table` holds sixteen bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            let biased = _mm256_xor_si256(table, _mm256_set1_epi8(i8::MIN));
            _mm256_shuffle_epi8(biased, v)
        }
    }
    #[inline(always)]
    fn byte<const N: i32>(self, v: __m256i) -> __m256 {
        // SAFETY: the token proves avx2.
        unsafe {
            let moved = match N {
                0 => v,
                1 => _mm256_srli_epi32::<8>(v),
                2 => _mm256_srli_epi32::<16>(v),
                _ => _mm256_srli_epi32::<24>(v),
            };
            _mm256_cvtepi32_ps(_mm256_and_si256(moved, _mm256_set1_epi32(255)))
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
    fn dot<const MAX: i32, const N: usize>(
        self,
        codes: &[__m256i; N],
        x: Fours<'_, N>,
        add: i32,
    ) -> __m256 {
        // SAFETY: the token proves avx2.
        unsafe {
            let high = dot::<MAX, N>(codes, x.high, _mm256_setzero_si256());
            combine(high, dot::<MAX, N>(codes, x.low, _mm256_set1_epi32(add)))
        }
    }
    #[inline(always)]
    fn dot_bytes<const N: usize>(self, codes: &[__m256i; N], x: Fours<'_, N>, add: i32) -> __m256 {
        // SAFETY: the token proves avx2.
        unsafe {
            let high = dot_bytes(codes, x.high, _mm256_setzero_si256());
            combine(high, dot_bytes(codes, x.low, _mm256_set1_epi32(add)))
        }
    }
}

/// `sum + Σ codes · x` of codes that are at most `MAX`.
#[inline]
#[target_feature(enable = "avx2")]
fn dot<const MAX: i32, const N: usize>(
    codes: &[__m256i; N],
    x: &[[u8; 4]; N],
    mut sum: __m256i,
) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    // Each product of pairs is at most 2 * 127 * MAX: so many fit into sixteen bits.
    let fit = (32_767 / (254 * MAX)) as usize;
    let mut i = 0;
    while i < N {
        let mut pairs = _mm256_maddubs_epi16(codes[i], broadcast(x[i]));
        let end = if i + fit < N { i + fit } else { N };
        i += 1;
        while i < end {
            let more = _mm256_maddubs_epi16(codes[i], broadcast(x[i]));
            pairs = _mm256_add_epi16(pairs, more);
            i += 1;
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    sum
}

/// `sum + Σ (codes - 128) x`.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_bytes<const N: usize>(codes: &[__m256i; N], x: &[[u8; 4]; N], mut sum: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    for i in 0..N {
        let number = _mm256_xor_si256(codes[i], _mm256_set1_epi8(i8::MIN));
        // Magnitudes are at most 128, `x` at most 127: 2 * 128 * 127 fits.
        let x = _mm256_sign_epi8(broadcast(x[i]), number);
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(number), x);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    sum
}

/// `128 high + low` as `f32`.
#[inline]
#[target_feature(enable = "avx2")]
fn combine(high: __m256i, low: __m256i) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32::<7>(high), low))
}

/// The same dword in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(x: [u8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(x))
}
