//! `q6_k`: 256 weights of 6 bits; each 16 have a signed scale of 8 bits.
//! In: 210 bytes. Out: `w[i] = (d * scale) * (q[i] - 32)`, `q[i]` of four bits in `ql` and the
//! top two in `qh`.

use std::array::from_fn;

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
        let halves = self.ql.as_chunks::<64>().0.iter().zip(self.qh.as_chunks::<32>().0);
        let halves = halves.zip(self.scales.as_chunks::<8>().0);
        for (out, ((ql, qh), packed)) in out.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            for side in 0..2 {
                let scales: [f32; 4] = from_fn(|k| d * f32::from(packed[2 * k + side]));
                for i in 16 * side..16 * side + 16 {
                    let (first, second, high) = (ql[i], ql[i + 32], qh[i]);
                    out[i] = scales[0] * signed(first & 15, high);
                    out[i + 32] = scales[1] * signed(second & 15, high >> 2);
                    out[i + 64] = scales[2] * signed(first >> 4, high >> 4);
                    out[i + 96] = scales[3] * signed(second >> 4, high >> 6);
                }
            }
        }
    }
}

/// The number of 6 bits, less 32, from its low four and, below others, its high two.
#[inline(always)]
fn signed(low: u8, high: u8) -> f32 {
    f32::from((low | (high & 3) << 4) as i8 - 32)
}
