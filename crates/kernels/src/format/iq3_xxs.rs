//! `iq3_xxs`: 256 weights, each 4 a vector of a grid of 256, with signs; each 32 have a scale.
//! In: 98 bytes. Out: `w[i] = (d * (0.5 + scale) * 0.5) * ±vector[i]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq_grid::{EVEN_SIGNS, IQ3_XXS, scale_signed};
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq3Xxs {
    /// Scale of the scales.
    pub d: F16,
    /// Per 4 weights: index into the grid.
    pub qs: [u8; 64],
    /// Per 32 weights a little-endian `u32`: four indices of 7 bits into [`EVEN_SIGNS`], lowest
    /// first, and the scale in the top 4 bits.
    pub scales_and_signs: [[u8; 4]; 8],
}

const _: () = assert!(super::layout_is_right::<Iq3Xxs>());

impl Block for Iq3Xxs {
    const FORMAT: Format = Format::Iq3Xxs;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (k, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let packed = u32::from_le_bytes(self.scales_and_signs[k / 8]);
            let scale = d * (0.5 + (packed >> 28) as f32) * 0.5;
            let signs = EVEN_SIGNS[(packed >> (7 * (k / 2 % 4)) & 127) as usize];
            let vector = &IQ3_XXS[usize::from(self.qs[k])];
            scale_signed(scale, vector, signs >> (4 * (k % 2)), out);
        }
    }
}
