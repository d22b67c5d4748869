//! Portable primitives: arrays of eight, which the compiler turns into whatever vectors the
//! target's baseline has. No fused multiply-add: in software it would be a hundred times slower.

use half::{bf16, f16};

use crate::cpu::isa::Isa;

/// Any processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

const LANES: usize = 8;

#[inline(always)]
fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Isa for Scalar {
    type F32 = [f32; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F32 {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> Self::F32 {
        std::array::from_fn(|i| src[..LANES][i])
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16]) -> Self::F32 {
        std::array::from_fn(|i| src[..LANES][i].to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> Self::F32 {
        std::array::from_fn(|i| src[..LANES][i].to_f32())
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
}
