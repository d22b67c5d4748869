//! `iq2_xs`: 256 weights, each 8 a vector of a grid of 512 with its signs; each 16 have a scale.
//! In: 74 bytes. Out: `w[i] = (d * (0.5 + scale) * 0.25) * ±vector[i]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq_grid::{EVEN_SIGNS, IQ2_XS, scale_signed};
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2Xs {
    /// Scale of the scales.
    pub d: F16,
    /// Per 8 weights a little-endian `u16`: 9 bits of index into the grid, 7 of index into
    /// [`EVEN_SIGNS`].
    pub qs: [[u8; 2]; 32],
    /// Per 32 weights: scale of the first 16 in the low half, of the others in the high half.
    pub scales: [u8; 8],
}

const _: () = assert!(super::layout_is_right::<Iq2Xs>());

impl Block for Iq2Xs {
    const FORMAT: Format = Format::Iq2Xs;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = self.scales[k / 4] >> (4 * (k / 2 % 2)) & 15;
            let scale = d * (0.5 + f32::from(scale)) * 0.25;
            let q = usize::from(u16::from_le_bytes(self.qs[k]));
            scale_signed(scale, &IQ2_XS[q & 511], EVEN_SIGNS[q >> 9], out);
        }
    }
}
