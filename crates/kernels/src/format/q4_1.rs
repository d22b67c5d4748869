//! `q4_1`: 32 weights of 4 bits under one scale and one offset.
//! In: 20 bytes. Out: `w[i] = d * q[i] + m`; the product is exact, the sum rounds.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_1 {
    /// Scale.
    pub d: F16,
    /// Smallest weight.
    pub m: F16,
    /// Byte `i`: weight `i` in the low half, weight `i + 16` in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(super::layout_is_right::<Q4_1>());

impl Block for Q4_1 {
    const FORMAT: Format = Format::Q4_1;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = d * f32::from(q & 15) + m;
            out[i + 16] = d * f32::from(q >> 4) + m;
        }
    }
}
