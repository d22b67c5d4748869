//! `iq1_m`: 256 weights, each 8 a vector of -1, 0 and 1 out of 2048 with its shift; each 16 have
//! a scale.
//! In: 56 bytes. Out: `w[i] = (d * (1 + 2 scale)) * (vector[i] ± 0.125)`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq_grid::IQ1;
use super::iq1_s::{DELTA, scale_shifted};
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq1M {
    /// Per 8 weights: low 8 bits of the index into the grid.
    pub qs: [u8; 32],
    /// Per 8 weights 4 bits, low half first: high 3 bits of the index, and a top bit that makes
    /// the shift negative.
    pub qh: [u8; 16],
    /// Per 64 weights a little-endian `u16`: four scales of 3 bits, lowest first; the top 4 bits
    /// of the four make up `d`.
    pub scales: [[u8; 2]; 4],
}

const _: () = assert!(super::layout_is_right::<Iq1M>());

impl Iq1M {
    /// Scale of the scales, put together from the top bits, lowest four first.
    #[inline(always)]
    pub const fn d(&self) -> F16 {
        let mut bits = 0;
        let mut i = 0;
        while i < 4 {
            bits |= u16::from_le_bytes(self.scales[i]) >> 12 << (4 * i);
            i += 1;
        }
        F16::from_bits(bits)
    }
}

impl Block for Iq1M {
    const FORMAT: Format = Format::Iq1M;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d().to_f32();
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scales = u16::from_le_bytes(self.scales[k / 8]);
            let scale = d * f32::from(1 + 2 * (scales >> (3 * (k / 2 % 4)) & 7));
            let high = self.qh[k / 2] >> (4 * (k % 2)) & 15;
            let delta = if high & 8 == 0 { DELTA } else { -DELTA };
            let index = usize::from(self.qs[k]) | usize::from(high & 7) << 8;
            scale_shifted(scale, &IQ1[index], delta, out);
        }
    }
}
