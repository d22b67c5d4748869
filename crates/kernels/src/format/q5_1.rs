//! `q5_1`: 32 weights of 5 bits under one scale and one offset.
//! In: 24 bytes. Out: `w[i] = d * q[i] + m`; the product is exact, the sum rounds.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_1 {
    /// Scale.
    pub d: F16,
    /// Smallest weight.
    pub m: F16,
    /// Little-endian mask; bit `i` is the top bit of weight `i`.
    pub qh: [u8; 4],
    /// Byte `i`: weight `i` in the low half, weight `i + 16` in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(super::layout_is_right::<Q5_1>());

impl Block for Q5_1 {
    const FORMAT: Format = Format::Q5_1;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (i, q) in super::q5_0::unpack(self.qh, &self.qs).into_iter().enumerate() {
            out[i] = d * f32::from(q) + m;
        }
    }
}
