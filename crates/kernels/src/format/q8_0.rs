//! `q8_0`: 32 weights of 8 bits under one scale.
//! In: 34 bytes. Out: `w[i] = d * q[i]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    /// Scale.
    pub d: F16,
    /// Weight `i` over the scale.
    pub qs: [i8; 32],
}

const _: () = assert!(super::layout_is_right::<Q8_0>());

impl Block for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = f32::from(q) * d;
        }
    }
}
