//! `q4_0`: 32 weights of 4 bits under one scale.
//! In: 18 bytes. Out: `w[i] = d * (q[i] - 8)`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_0 {
    /// Scale.
    pub d: F16,
    /// Byte `i`: weight `i` in the low half, weight `i + 16` in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(super::layout_is_right::<Q4_0>());

impl Block for Q4_0 {
    const FORMAT: Format = Format::Q4_0;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = d * f32::from((q & 15) as i8 - 8);
            out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
        }
    }
}
