//! `iq4_nl`: 32 weights of 4 bits that index a table of unevenly spaced values.
//! In: 18 bytes. Out: `w[i] = d * VALUES[q[i]]`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// ggml's table, denser around zero; `iq4_xs` shares it.
pub const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Nl {
    /// Scale.
    pub d: F16,
    /// Byte `i`: weight `i` in the low half, weight `i + 16` in the high half.
    pub qs: [u8; 16],
}

const _: () = assert!(super::layout_is_right::<Iq4Nl>());

impl Block for Iq4Nl {
    const FORMAT: Format = Format::Iq4Nl;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        look_up(self.d.to_f32(), &VALUES, &self.qs, out);
    }
}

/// `out[i] = scale * values[q[i]]` for 32 numbers of 4 bits, as every format with a table of 16
/// stores them.
#[inline(always)]
pub(super) fn look_up(scale: f32, values: &[i8; 16], qs: &[u8; 16], out: &mut [f32; 32]) {
    for i in 0..16 {
        out[i] = scale * f32::from(values[usize::from(qs[i] & 15)]);
        out[i + 16] = scale * f32::from(values[usize::from(qs[i] >> 4)]);
    }
}
