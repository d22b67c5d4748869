//! `f32`: one weight as it is, IEEE 754 binary32, little-endian. Also the scale of [`q8_k`].
//! In: 4 bytes. Out: `w = value`, bit for bit.
//!
//! [`q8_k`]: super::q8_k

use bytemuck::{Pod, Zeroable};

use super::{Block, Format};

/// One binary32 at any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F32(pub [u8; 4]);

const _: () = assert!(super::layout_is_right::<F32>());

impl F32 {
    /// The value.
    #[inline(always)]
    pub const fn to_f32(self) -> f32 {
        f32::from_le_bytes(self.0)
    }
}

impl Block for F32 {
    const FORMAT: Format = Format::F32;
    type Values = [f32; 1];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 1]) {
        out[0] = self.to_f32();
    }
}
