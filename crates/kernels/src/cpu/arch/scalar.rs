//! Portable primitives: arrays of eight, which the compiler turns into whatever vectors the
//! target's baseline has. No fused multiply-add: in software it would be a hundred times slower.

use crate::Dtype;
use crate::cpu::isa::{Fours, Isa, Piece};
use crate::format::f16::F16;

/// Any processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

const LANES: usize = 8;

#[inline(always)]
fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn widen<const N: usize>(src: &[u8], value: impl Fn([u8; N]) -> f32) -> [f32; LANES] {
    let values = &src.as_chunks::<N>().0[..LANES];
    std::array::from_fn(|i| value(values[i]))
}

impl Isa for Scalar {
    type F32 = [f32; LANES];
    type Ints = [u32; LANES];
    const LANES: usize = LANES;
    const FOUR_ROWS: bool = false;
    const MANY_REGISTERS: bool = false;
    const BYTE_ZERO: i32 = 0;

    #[inline(never)]
    fn call<P: Piece>(self, piece: P) -> P::Output {
        piece.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F32 {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> Self::F32 {
        std::array::from_fn(|i| src[..LANES][i])
    }
    #[inline(always)]
    fn load_f32_bytes(self, src: &[u8]) -> Self::F32 {
        widen(src, f32::from_le_bytes)
    }
    #[inline(always)]
    fn load_f16_bytes(self, src: &[u8]) -> Self::F32 {
        widen(src, |bytes| F16(bytes).to_f32())
    }
    #[inline(always)]
    fn load_bf16_bytes(self, src: &[u8]) -> Self::F32 {
        widen(src, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
    }
    #[inline(always)]
    fn store(self, v: Self::F32, dst: &mut [f32]) {
        dst[..LANES].copy_from_slice(&v);
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, v: Self::F32) -> Self::F32 {
        v.map(f32::sqrt)
    }
    #[inline(always)]
    fn select_gt(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn round_f16(self, v: Self::F32) -> Self::F32 {
        v.map(|v| Dtype::F16.round(v))
    }
    #[inline(always)]
    fn round_bf16(self, v: Self::F32) -> Self::F32 {
        v.map(|v| Dtype::Bf16.round(v))
    }
    #[inline(always)]
    fn round(self, v: Self::F32) -> Self::F32 {
        // Adding and taking away 1.5 * 2^23 leaves the nearest integer, without a library call;
        // exact for |v| < 2^22, far beyond any exponent.
        const MAGIC: f32 = 12_582_912.0;
        v.map(|v| (v + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn exp2_int(self, n: Self::F32) -> Self::F32 {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn reduce_sum(self, v: Self::F32) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn reduce_max(self, v: Self::F32) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn transpose(self, src: &[f32], from: usize, dst: &mut [f32], to: usize) {
        for i in 0..8 {
            for j in 0..8 {
                dst[j * to + i] = src[i * from + j];
            }
        }
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::Ints {
        [value as u32; LANES]
    }
    #[inline(always)]
    fn load_ints(self, src: &[u8]) -> Self::Ints {
        let dwords = &src.as_chunks::<4>().0[..LANES];
        std::array::from_fn(|i| u32::from_le_bytes(dwords[i]))
    }
    #[inline(always)]
    fn load_signed_bytes(self, src: &[u8]) -> Self::F32 {
        std::array::from_fn(|i| f32::from(src[..LANES][i] as i8))
    }
    #[inline(always)]
    fn load_wide_bytes(self, src: &[u8]) -> Self::Ints {
        std::array::from_fn(|i| u32::from(src[..LANES][i]))
    }
    #[inline(always)]
    fn load_halves_of_bytes(self, src: &[u8]) -> (Self::F32, Self::F32) {
        let src = &src[..LANES];
        (
            std::array::from_fn(|i| f32::from(src[i] & 15)),
            std::array::from_fn(|i| f32::from(src[i] >> 4)),
        )
    }
    #[inline(always)]
    fn bits<const FROM: i32, const N: i32>(self, v: Self::Ints) -> Self::Ints {
        v.map(|v| v >> FROM & (0x0101_0101 * ((1 << N) - 1)))
    }
    #[inline(always)]
    fn or_bits<const FROM: i32, const TO: i32, const N: i32>(
        self,
        a: Self::Ints,
        b: Self::Ints,
    ) -> Self::Ints {
        let b = self.bits::<FROM, N>(b);
        std::array::from_fn(|i| a[i] | b[i] << TO)
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], v: Self::Ints) -> Self::Ints {
        v.map(|v| {
            u32::from_le_bytes(v.to_le_bytes().map(|b| table[usize::from(b & 15)] as u8 ^ 128))
        })
    }
    #[inline(always)]
    fn byte<const N: i32>(self, v: Self::Ints) -> Self::F32 {
        v.map(|v| (v >> (8 * N) & 255) as f32)
    }
    #[inline(always)]
    fn narrow(self, src: &[f32; 32], dst: &mut [u8; 32]) {
        *dst = src.map(|v| v as i8 as u8);
    }
    #[inline(always)]
    fn dot<const MAX: i32, const N: usize>(
        self,
        codes: &[Self::Ints; N],
        x: Fours<'_, N>,
        add: i32,
    ) -> Self::F32 {
        self.dot_bytes(codes, x, add)
    }
    #[inline(always)]
    fn dot_bytes<const N: usize>(
        self,
        codes: &[Self::Ints; N],
        x: Fours<'_, N>,
        add: i32,
    ) -> Self::F32 {
        let mut sums = [add; LANES];
        for (codes, (high, low)) in codes.iter().zip(x.high.iter().zip(x.low)) {
            for (sum, code) in sums.iter_mut().zip(codes) {
                for (code, (high, low)) in code.to_le_bytes().iter().zip(high.iter().zip(low)) {
                    let x = 128 * i32::from(*high as i8) + i32::from(*low as i8);
                    *sum += i32::from(*code) * x;
                }
            }
        }
        sums.map(|sum| sum as f32)
    }
}
