//! `iq4_xs`: 256 weights of 4 bits that index the table of `iq4_nl`; each 32 have a signed scale
//! of 6 bits.
//! In: 136 bytes. Out: `w[i] = (d * (scale - 32)) * VALUES[q[i]]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::iq4_nl::{VALUES, look_up};
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Xs {
    /// Scale of the scales.
    pub d: F16,
    /// High two bits of each scale, little-endian `u16`, first scale lowest.
    pub scales_h: [u8; 2],
    /// Low four bits of each scale, first of a pair in the low half.
    pub scales_l: [u8; 4],
    /// Byte `16 k + i`: weight `32 k + i` in the low half, weight `32 k + 16 + i` in the high.
    pub qs: [u8; 128],
}

const _: () = assert!(super::layout_is_right::<Iq4Xs>());

impl Iq4Xs {
    /// The scales, -32 to 31.
    #[inline(always)]
    pub const fn scales(&self) -> [i8; 8] {
        let all_high = u16::from_le_bytes(self.scales_h);
        let mut out = [0; 8];
        let mut i = 0;
        while i < 8 {
            let low = self.scales_l[i / 2] >> (4 * (i % 2)) & 15;
            let high = (all_high >> (2 * i) & 3) as u8;
            out[i] = (low | high << 4) as i8 - 32;
            i += 1;
        }
        out
    }
}

impl Block for Iq4Xs {
    const FORMAT: Format = Format::Iq4Xs;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let scales = self.scales();
        let groups = out.as_chunks_mut::<32>().0.iter_mut().zip(self.qs.as_chunks::<16>().0);
        for ((out, qs), scale) in groups.zip(scales) {
            look_up(d * f32::from(scale), &VALUES, qs, out);
        }
    }
}
