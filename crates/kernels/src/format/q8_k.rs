//! `q8_k`: 256 weights of 8 bits under one `f32` scale, with the sums of each 16.
//! In: 292 bytes. Out: `w[i] = d * q[i]`.

use bytemuck::{Pod, Zeroable};

use super::f32::F32;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q8K {
    /// Scale, of either sign.
    pub d: F32,
    /// Weight `i` over the scale.
    pub qs: [i8; 256],
    /// Sums of each 16 of `qs`, little-endian `i16`; [`Block::dequantize`] does not read them.
    pub bsums: [[u8; 2]; 16],
}

const _: () = assert!(super::layout_is_right::<Q8K>());

impl Block for Q8K {
    const FORMAT: Format = Format::Q8K;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = d * f32::from(q);
        }
    }
}
