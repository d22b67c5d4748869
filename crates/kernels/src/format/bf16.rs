//! `bf16`: one weight, the upper half of a binary32, little-endian.
//! In: 2 bytes. Out: `w = value`, bit for bit.

use bytemuck::{Pod, Zeroable};

use super::{Block, Format};

/// One bfloat16 at any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Bf16(pub [u8; 2]);

const _: () = assert!(super::layout_is_right::<Bf16>());

impl Bf16 {
    /// The value.
    #[inline(always)]
    pub const fn to_f32(self) -> f32 {
        f32::from_bits((u16::from_le_bytes(self.0) as u32) << 16)
    }
}

impl Block for Bf16 {
    const FORMAT: Format = Format::Bf16;
    type Values = [f32; 1];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 1]) {
        out[0] = self.to_f32();
    }
}
