//! `iq1_s`: 256 weights, each 8 a vector of -1, 0 and 1 out of 2048; each 32 have a scale and a
//! shift.
//! In: 50 bytes. Out: `w[i] = (d * (1 + 2 scale)) * (vector[i] ± 0.125)`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq_grid::IQ1;
use super::{Block, Format};

/// How far all weights of a group lie from whole steps; `iq1_m` shares it.
pub const DELTA: f32 = 0.125;

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq1S {
    /// Scale of the scales.
    pub d: F16,
    /// Per 8 weights: low 8 bits of the index into the grid.
    pub qs: [u8; 32],
    /// Per 32 weights a little-endian `u16`: high 3 bits of the four indices, lowest first, 3
    /// bits of scale, and a top bit that makes the shift negative.
    pub qh: [[u8; 2]; 8],
}

const _: () = assert!(super::layout_is_right::<Iq1S>());

impl Block for Iq1S {
    const FORMAT: Format = Format::Iq1S;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let packed = u16::from_le_bytes(self.qh[k / 4]);
            let scale = d * f32::from(1 + 2 * (packed >> 12 & 7));
            let delta = if packed >> 15 == 0 { DELTA } else { -DELTA };
            let high = usize::from(packed >> (3 * (k % 4)) & 7);
            let index = usize::from(self.qs[k]) | high << 8;
            scale_shifted(scale, &IQ1[index], delta, out);
        }
    }
}

/// `out[i] = scale * (vector[i] + delta)`.
#[inline(always)]
pub(super) fn scale_shifted(scale: f32, vector: &[i8; 8], delta: f32, out: &mut [f32; 8]) {
    for i in 0..8 {
        out[i] = scale * (f32::from(vector[i]) + delta);
    }
}
