//! `q2_k`: 256 weights of 2 bits; each 16 have a scale and a minimum of 4 bits.
//! In: 84 bytes. Out: `w[i] = (d * scale) * q[i] - (dmin * min)`, each step rounded.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q2K {
    /// Per 16 weights: scale in the low half, minimum in the high half.
    pub scales: [u8; 16],
    /// Byte `32 h + i`: weights `128 h + 32 k + i` for `k = 0..4`, two bits each, lowest first.
    pub qs: [u8; 64],
    /// Scale of the scales.
    pub d: F16,
    /// Scale of the minima.
    pub dmin: F16,
}

const _: () = assert!(super::layout_is_right::<Q2K>());

impl Block for Q2K {
    const FORMAT: Format = Format::Q2K;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(self.scales[group] & 15);
            let min = dmin * f32::from(self.scales[group] >> 4);
            let (half, pair, side) = (group / 8, group % 8 / 2, group % 2);
            let qs = &self.qs[32 * half + 16 * side..][..16];
            for i in 0..16 {
                out[i] = scale * f32::from(qs[i] >> (2 * pair) & 3) - min;
            }
        }
    }
}
