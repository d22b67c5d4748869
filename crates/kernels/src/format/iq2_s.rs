//! `iq2_s`: 256 weights, each 8 a vector of a grid of 1024 with its signs; each 16 have a scale.
//! In: 82 bytes. Out: `w[i] = (d * (0.5 + scale) * 0.25) * ±vector[i]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq_grid::{IQ2_S, scale_signed};
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2S {
    /// Scale of the scales.
    pub d: F16,
    /// Per 8 weights: low 8 bits of the index into the grid.
    pub qs: [u8; 32],
    /// Per 8 weights: bit `i` set where weight `i` is negative.
    pub signs: [u8; 32],
    /// Per 32 weights: high 2 bits of the four indices, lowest first.
    pub qh: [u8; 8],
    /// Per 32 weights: scale of the first 16 in the low half, of the others in the high half.
    pub scales: [u8; 8],
}

const _: () = assert!(super::layout_is_right::<Iq2S>());

impl Block for Iq2S {
    const FORMAT: Format = Format::Iq2S;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = self.scales[k / 4] >> (4 * (k / 2 % 2)) & 15;
            let scale = d * (0.5 + f32::from(scale)) * 0.25;
            let high = usize::from(self.qh[k / 4] >> (2 * (k % 4)) & 3);
            let index = usize::from(self.qs[k]) | high << 8;
            scale_signed(scale, &IQ2_S[index], self.signs[k], out);
        }
    }
}
