//! `tq1_0`: 256 weights of -1, 0 or 1, five to a byte, under one scale.
//! In: 54 bytes. Out: `w[i] = d * (trit[i] - 1)`. A byte is the fraction `byte / 256` in base 3:
//! times `3^n`, modulo 1, the next digit stands before the point.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tq1_0 {
    /// Digit `n` of byte `i`: weight `32 n + i` for the first 32 bytes; weight
    /// `160 + 16 n + i - 32` for the other 16.
    pub qs: [u8; 48],
    /// Digit `n` of byte `i`: weight `240 + 4 n + i`; four digits each.
    pub qh: [u8; 4],
    /// Scale.
    pub d: F16,
}

const _: () = assert!(super::layout_is_right::<Tq1_0>());

impl Block for Tq1_0 {
    const FORMAT: Format = Format::Tq1_0;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (first, second) = self.qs.split_at(32);
        digits(d, first, &mut out[..160]);
        digits(d, second, &mut out[160..240]);
        digits(d, &self.qh, &mut out[240..]);
    }
}

/// `out[bytes.len() * n + i] = d * (digit n of bytes[i] - 1)`, as many digits as fit `out`.
#[inline(always)]
fn digits(d: f32, bytes: &[u8], out: &mut [f32]) {
    let mut power = 1_u8;
    for out in out.chunks_exact_mut(bytes.len()) {
        for (out, &byte) in out.iter_mut().zip(bytes) {
            let fraction = u16::from(byte.wrapping_mul(power));
            *out = d * f32::from(((fraction * 3) >> 8) as i8 - 1);
        }
        power = power.wrapping_mul(3);
    }
}
