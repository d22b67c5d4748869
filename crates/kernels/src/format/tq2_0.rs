//! `tq2_0`: 256 weights of -1, 0 or 1 (2, where a file holds it, is kept) in 2 bits under one
//! scale.
//! In: 66 bytes. Out: `w[i] = d * (q[i] - 1)`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tq2_0 {
    /// Byte `32 h + i`: weights `128 h + 32 k + i` for `k = 0..4`, two bits each, lowest first.
    pub qs: [u8; 64],
    /// Scale.
    pub d: F16,
}

const _: () = assert!(super::layout_is_right::<Tq2_0>());

impl Block for Tq2_0 {
    const FORMAT: Format = Format::Tq2_0;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let qs = &self.qs[32 * (group / 4)..][..32];
            for i in 0..32 {
                out[i] = d * f32::from((qs[i] >> (2 * (group % 4)) & 3) as i8 - 1);
            }
        }
    }
}
