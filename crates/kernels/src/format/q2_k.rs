//! `q2_k`: 256 weights of 2 bits; each 16 have a scale and a minimum of 4 bits.
//! In: 84 bytes. Out: `w[i] = (d * scale) * q[i] - (dmin * min)`; both products are
//! exact, the difference rounds.

use std::array::from_fn;

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
        let halves = self.qs.as_chunks::<32>().0.iter().zip(self.scales.as_chunks::<8>().0);
        for (out, (qs, packed)) in out.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            for side in 0..2 {
                let scales: [f32; 4] = from_fn(|k| d * f32::from(packed[2 * k + side] & 15));
                let mins: [f32; 4] = from_fn(|k| dmin * f32::from(packed[2 * k + side] >> 4));
                for i in 16 * side..16 * side + 16 {
                    out[i] = scales[0] * f32::from(qs[i] & 3) - mins[0];
                    out[i + 32] = scales[1] * f32::from(qs[i] >> 2 & 3) - mins[1];
                    out[i + 64] = scales[2] * f32::from(qs[i] >> 4 & 3) - mins[2];
                    out[i + 96] = scales[3] * f32::from(qs[i] >> 6) - mins[3];
                }
            }
        }
    }
}
