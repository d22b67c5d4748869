//! `iq2_xxs`: 256 weights, each 8 a vector of a grid of 256 with its signs; each 32 have a scale.
//! In: 66 bytes. Out: `w[i] = (d * (0.5 + scale) * 0.25) * ±vector[i]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq_grid::{EVEN_SIGNS, IQ2_XXS, scale_signed};
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2Xxs {
    /// Scale of the scales.
    pub d: F16,
    /// Per 32 weights: four indices into the grid, then a little-endian `u32` of four indices of
    /// 7 bits into [`EVEN_SIGNS`], lowest first, and the scale in its top 4 bits.
    pub qs: [[u8; 8]; 8],
}

const _: () = assert!(super::layout_is_right::<Iq2Xxs>());

impl Block for Iq2Xxs {
    const FORMAT: Format = Format::Iq2Xxs;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (out, qs) in out.as_chunks_mut::<32>().0.iter_mut().zip(self.qs) {
            let [i0, i1, i2, i3, tail @ ..] = qs;
            let tail = u32::from_le_bytes(tail);
            let scale = d * (0.5 + (tail >> 28) as f32) * 0.25;
            for (k, (index, out)) in
                [i0, i1, i2, i3].into_iter().zip(out.as_chunks_mut::<8>().0).enumerate()
            {
                let signs = EVEN_SIGNS[(tail >> (7 * k) & 127) as usize];
                scale_signed(scale, &IQ2_XXS[usize::from(index)], signs, out);
            }
        }
    }
}
