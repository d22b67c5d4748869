//! Portable primitives: arrays of eight, which the compiler turns into whatever vectors the
//! target's baseline has. No fused multiply-add: in software it would be a hundred times slower.

use crate::Dtype;
use crate::cpu::isa::{Isa, Piece};
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
fn map_bytes(a: [u8; 32], b: [u8; 32], f: impl Fn(u8, u8) -> u8) -> [u8; 32] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn widen<const N: usize>(src: &[u8], value: impl Fn([u8; N]) -> f32) -> [f32; LANES] {
    let values = &src.as_chunks::<N>().0[..LANES];
    std::array::from_fn(|i| value(values[i]))
}

/// Sums of four neighbouring products.
#[inline(always)]
fn dot_lanes(product: impl Fn(usize) -> i32) -> [f32; LANES] {
    std::array::from_fn(|lane| (4 * lane..4 * lane + 4).map(&product).sum::<i32>() as f32)
}

/// The number whose signed bytes are `high` and `low`.
#[inline(always)]
fn joined(high: u8, low: u8) -> i32 {
    128 * i32::from(high as i8) + i32::from(low as i8)
}

impl Isa for Scalar {
    type F32 = [f32; LANES];
    type Bytes = [u8; 32];
    const LANES: usize = LANES;
    const FOUR_ROWS: bool = false;

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
    fn f16(self, bits: u16) -> f32 {
        F16::from_bits(bits).to_f32()
    }
    #[inline(always)]
    fn splat_halves(self, low: f32, high: f32) -> Self::F32 {
        std::array::from_fn(|i| if i < LANES / 2 { low } else { high })
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::F32; 8]) -> [Self::F32; 8] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
    #[inline(always)]
    fn splat_byte(self, value: u8) -> Self::Bytes {
        [value; 32]
    }
    #[inline(always)]
    fn load_bytes(self, src: &[u8; 32]) -> Self::Bytes {
        *src
    }
    #[inline(always)]
    fn load_nibbles(self, src: &[u8; 16]) -> Self::Bytes {
        std::array::from_fn(|i| if i < 16 { src[i] & 15 } else { src[i - 16] >> 4 })
    }
    #[inline(always)]
    fn expand_bits(self, bits: u32) -> Self::Bytes {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { 255 } else { 0 })
    }
    #[inline(always)]
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        map_bytes(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        map_bytes(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shift_down<const N: i32>(self, v: Self::Bytes) -> Self::Bytes {
        v.map(|v| v >> N)
    }
    #[inline(always)]
    fn shift_up<const N: i32>(self, v: Self::Bytes) -> Self::Bytes {
        v.map(|v| v << N)
    }
    #[inline(always)]
    fn equal(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        map_bytes(a, b, |a, b| if a == b { 255 } else { 0 })
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], v: Self::Bytes) -> Self::Bytes {
        v.map(|v| table[usize::from(v & 15)] as u8)
    }
    #[inline(always)]
    fn narrow(self, src: &[f32; 32], dst: &mut [u8; 32]) {
        *dst = src.map(|v| v as i8 as u8);
    }
    #[inline(always)]
    fn dot_unsigned(self, u: Self::Bytes, high: Self::Bytes, low: Self::Bytes) -> Self::F32 {
        dot_lanes(|i| i32::from(u[i]) * joined(high[i], low[i]))
    }
    #[inline(always)]
    fn dot_signed(self, s: Self::Bytes, high: Self::Bytes, low: Self::Bytes) -> Self::F32 {
        dot_lanes(|i| i32::from(s[i] as i8) * joined(high[i], low[i]))
    }
}
