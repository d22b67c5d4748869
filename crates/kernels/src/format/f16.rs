//! `f16`: one weight, IEEE 754 binary16, little-endian. Also the scale of most other formats.
//! In: 2 bytes. Out: `w = value`, exactly; the payload of a NaN is kept.

use bytemuck::{Pod, Zeroable};

use super::{Block, Format};

/// One binary16 at any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F16(pub [u8; 2]);

const _: () = assert!(super::layout_is_right::<F16>());

impl F16 {
    /// The number whose sign, exponent and fraction are `bits`.
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits.to_le_bytes())
    }

    /// The value. Integer arithmetic and selects, so that a loop over many becomes vector code;
    /// `half` would branch on each and ask what the CPU can do.
    #[inline(always)]
    pub const fn to_f32(self) -> f32 {
        const EXPONENT_STEP: u32 = 112 << 23; // bias 127 - bias 15
        let bits = u16::from_le_bytes(self.0) as u32;
        let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
        // A fraction without exponent counts units of 2^-24, the last place of 0.5.
        let subnormal = (f32::from_bits(0x3f00_0000 | magnitude) - 0.5).to_bits();
        let normal = (magnitude << 13) + EXPONENT_STEP;
        let finite = if magnitude < 0x0400 { subnormal } else { normal };
        let value = if magnitude < 0x7c00 { finite } else { normal + EXPONENT_STEP };
        f32::from_bits(sign | value)
    }
}

impl Block for F16 {
    const FORMAT: Format = Format::F16;
    type Values = [f32; 1];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 1]) {
        out[0] = self.to_f32();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_as_half_reads_it() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (F16::from_bits(bits).to_f32(), half::f16::from_bits(bits));
            let same = ours.to_bits() == theirs.to_f32_const().to_bits();
            assert!(same || (ours.is_nan() && theirs.is_nan()), "{bits:#06x}: {ours}");
        }
    }
}
