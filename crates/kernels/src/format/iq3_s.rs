//! `iq3_s`: 256 weights, each 4 a vector of a grid of 512, with signs; each 32 have a scale.
//! In: 110 bytes. Out: `w[i] = (d * (1 + 2 scale)) * ±vector[i]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq_grid::{IQ3_S, scale_signed};
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq3S {
    /// Scale of the scales.
    pub d: F16,
    /// Per 4 weights: low 8 bits of the index into the grid.
    pub qs: [u8; 64],
    /// Per 32 weights: top bit of the eight indices, lowest first.
    pub qh: [u8; 8],
    /// Per 8 weights: bit `i` set where weight `i` is negative.
    pub signs: [u8; 32],
    /// Per 64 weights: scale of the first 32 in the low half, of the others in the high half.
    pub scales: [u8; 4],
}

const _: () = assert!(super::layout_is_right::<Iq3S>());

impl Block for Iq3S {
    const FORMAT: Format = Format::Iq3S;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (k, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let scale = self.scales[k / 16] >> (4 * (k / 8 % 2)) & 15;
            let scale = d * f32::from(1 + 2 * scale);
            let high = usize::from(self.qh[k / 8] >> (k % 8) & 1);
            let index = usize::from(self.qs[k]) | high << 8;
            scale_signed(scale, &IQ3_S[index], self.signs[k / 2] >> (4 * (k % 2)), out);
        }
    }
}
