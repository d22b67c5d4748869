//! `q3_k`: 256 weights of 3 bits; each 16 have a signed scale of 6 bits.
//! In: 110 bytes. Out: `w[i] = (d * (scale - 32)) * (q[i] - 4)`, `q[i]` of two bits in `qs` and
//! the top in `hmask`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q3K {
    /// Bit `k` of byte `i`: top bit of weight `32 k + i`.
    pub hmask: [u8; 32],
    /// Byte `32 h + i`: weights `128 h + 32 k + i` for `k = 0..4`, two bits each, lowest first.
    pub qs: [u8; 64],
    /// Sixteen scales of 6 bits, see [`scales`].
    pub scales: [u8; 12],
    /// Scale of the scales.
    pub d: F16,
}

const _: () = assert!(super::layout_is_right::<Q3K>());

/// The sixteen scales, -32 to 31, of a `q3_k` block: four low bits each in the first 8 bytes, low
/// halves before high halves; two high bits each in the last 4 bytes, lowest bits before higher.
#[inline(always)]
pub const fn scales(packed: &[u8; 12]) -> [i8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        let low = packed[i % 8] >> (4 * (i / 8)) & 15;
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        out[i] = (low | high << 4) as i8 - 32;
        i += 1;
    }
    out
}

impl Block for Q3K {
    const FORMAT: Format = Format::Q3K;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let scales = scales(&self.scales);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(scales[group]);
            let (half, pair, side) = (group / 8, group % 8 / 2, group % 2);
            let qs = &self.qs[32 * half + 16 * side..][..16];
            let hmask = &self.hmask[16 * side..][..16];
            for i in 0..16 {
                let top = hmask[i] >> (4 * half + pair) & 1;
                let q = (qs[i] >> (2 * pair) & 3) | top << 2;
                out[i] = scale * f32::from(q as i8 - 4);
            }
        }
    }
}
