//! `q4_k`: 256 weights of 4 bits; each 32 have a scale and a minimum of 6 bits.
//! In: 144 bytes. Out: `w[i] = (d * scale) * q[i] - (dmin * min)`; both products are
//! exact, the difference rounds.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q4K {
    /// Scale of the scales.
    pub d: F16,
    /// Scale of the minima.
    pub dmin: F16,
    /// Eight scales and eight minima, see [`scales_and_mins`].
    pub scales: [u8; 12],
    /// Byte `32 k + i`: weight `64 k + i` in the low half, weight `64 k + 32 + i` in the high.
    pub qs: [u8; 128],
}

const _: () = assert!(super::layout_is_right::<Q4K>());

impl Block for Q4K {
    const FORMAT: Format = Format::Q4K;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (scales, mins) = scales_and_mins(&self.scales);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(scales[group]), dmin * f32::from(mins[group]));
            let qs = &self.qs[32 * (group / 2)..][..32];
            for i in 0..32 {
                out[i] = scale * f32::from(qs[i] >> (4 * (group % 2)) & 15) - min;
            }
        }
    }
}

/// The eight scales and eight minima, 0 to 63, of a `q4_k` or `q5_k` block. The first four of
/// each are the low six bits of bytes 0 to 3 and 4 to 7. The others have their low four bits in
/// the halves of bytes 8 to 11 and their high two in the top of bytes 0 to 3 and 4 to 7.
#[inline(always)]
pub const fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    let mut i = 0;
    while i < 4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[i + 4] & 63;
        scales[i + 4] = (packed[i + 8] & 15) | (packed[i] >> 6 << 4);
        mins[i + 4] = (packed[i + 8] >> 4) | (packed[i + 4] >> 6 << 4);
        i += 1;
    }
    (scales, mins)
}
