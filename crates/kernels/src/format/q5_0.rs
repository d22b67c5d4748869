//! `q5_0`: 32 weights of 5 bits under one scale.
//! In: 22 bytes. Out: `w[i] = d * (q[i] - 16)`, `q[i]` of four bits in `qs` and the top in `qh`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_0 {
    /// Scale.
    pub d: F16,
    /// Little-endian mask; bit `i` is the top bit of weight `i`.
    pub qh: [u8; 4],
    /// Byte `i`: weight `i` in the low half, weight `i + 16` in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(super::layout_is_right::<Q5_0>());

impl Block for Q5_0 {
    const FORMAT: Format = Format::Q5_0;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (i, q) in unpack(self.qh, &self.qs).into_iter().enumerate() {
            out[i] = d * f32::from(q as i8 - 16);
        }
    }
}

/// The 32 numbers, 0 to 31, of a `q5_0` or `q5_1` block.
#[inline(always)]
pub(super) fn unpack(qh: [u8; 4], qs: &[u8; 16]) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..16 {
        out[i] = qs[i] & 15;
        out[i + 16] = qs[i] >> 4;
    }
    for (i, out) in out.iter_mut().enumerate() {
        *out |= u8::from(qh[i / 8] & 1 << (i % 8) != 0) << 4;
    }
    out
}
