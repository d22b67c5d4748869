//! `mxfp4`: 32 weights of 4 bits (sign, two of exponent, one of fraction) under a power of two.
//! The element and scale types are those of the Open Compute Project's MX formats, version 1.0.
//! In: 17 bytes. Out: `w[i] = 2^(e - 128) * VALUES[q[i]]`, the values doubled to be whole.

use bytemuck::{Pod, Zeroable};

use super::iq4_nl::look_up;
use super::{Block, Format};

/// Twice the value of each element. The element "minus zero" counts as zero, as in ggml.
pub const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Mxfp4 {
    /// Exponent of the scale, biased by 127. 255, NaN in the standard, is `2^128` as in ggml.
    pub e: u8,
    /// Byte `i`: weight `i` in the low half, weight `i + 16` in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(super::layout_is_right::<Mxfp4>());

impl Mxfp4 {
    /// Half of the scale, `2^(e - 128)`: finite for every `e`, where the scale itself is not.
    #[inline(always)]
    pub const fn half_scale(&self) -> f32 {
        match self.e {
            // Below the normal numbers: 2^-128 and 2^-127.
            0 | 1 => f32::from_bits(0x0020_0000 << self.e),
            e => f32::from_bits((e as u32 - 1) << 23),
        }
    }
}

impl Block for Mxfp4 {
    const FORMAT: Format = Format::Mxfp4;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        look_up(self.half_scale(), &VALUES, &self.qs, out);
    }
}
