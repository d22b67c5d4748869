//! `q5_k`: 256 weights of 5 bits; each 32 have a scale and a minimum of 6 bits.
//! In: 176 bytes. Out: `w[i] = (d * scale) * q[i] - (dmin * min)`; both products are exact, the
//! difference rounds. `q[i]` has four bits in `qs` and the top in `qh`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::q4_k::scales_and_mins;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q5K {
    /// Scale of the scales.
    pub d: F16,
    /// Scale of the minima.
    pub dmin: F16,
    /// Eight scales and eight minima, see [`scales_and_mins`].
    pub scales: [u8; 12],
    /// Bit `k` of byte `i`: top bit of weight `32 k + i`.
    pub qh: [u8; 32],
    /// Byte `32 k + i`: weight `64 k + i` in the low half, weight `64 k + 32 + i` in the high.
    pub qs: [u8; 128],
}

const _: () = assert!(super::layout_is_right::<Q5K>());

impl Block for Q5K {
    const FORMAT: Format = Format::Q5K;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (scales, mins) = scales_and_mins(&self.scales);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(scales[group]), dmin * f32::from(mins[group]));
            let qs = &self.qs[32 * (group / 2)..][..32];
            for i in 0..32 {
                let top = self.qh[i] >> group & 1;
                let q = (qs[i] >> (4 * (group % 2)) & 15) | top << 4;
                out[i] = scale * f32::from(q) - min;
            }
        }
    }
}
