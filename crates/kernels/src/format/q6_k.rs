//! `q6_k`: 256 weights of 6 bits; each 16 have a signed scale of 8 bits.
//! In: 210 bytes. Out: `w[i] = (d * scale) * (q[i] - 32)`, `q[i]` of four bits in `ql` and the
//! top two in `qh`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q6K {
    /// Byte `64 h + i`: weight `128 h + i` in the low half, weight `128 h + 64 + i` in the high.
    pub ql: [u8; 128],
    /// Byte `32 h + i`: weights `128 h + 32 k + i` for `k = 0..4`, two bits each, lowest first.
    pub qh: [u8; 64],
    /// Per 16 weights.
    pub scales: [i8; 16],
    /// Scale of the scales.
    pub d: F16,
}

const _: () = assert!(super::layout_is_right::<Q6K>());

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(self.scales[group]);
            let (half, part) = (group / 8, group % 8);
            let ql = &self.ql[64 * half + 16 * (part % 4)..][..16];
            let qh = &self.qh[32 * half + 16 * (part % 2)..][..16];
            for i in 0..16 {
                let low = ql[i] >> (4 * (part / 4)) & 15;
                let high = qh[i] >> (2 * (part / 2)) & 3;
                out[i] = scale * f32::from((low | high << 4) as i8 - 32);
            }
        }
    }
}
