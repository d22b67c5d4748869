//! `q8_k`: 256 numbers of 8 bits under one `f32` scale, with the sums of each 16; activations
//! before an integer dot with a K or IQ format.
//! In: 292 bytes. Out: `w[i] = d * q[i]`.
//! Back: `1/d = -127 / x[m]` where `x[m]` has the largest magnitude, `q[i] = round(x[i] / d)`.

use bytemuck::{Pod, Zeroable};

use super::f32::F32;
use super::{Block, Format};

/// 256 weights or activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q8K {
    /// Scale; its sign is opposite to that of the value with the largest magnitude.
    pub d: F32,
    /// Weight `i` over the scale.
    pub qs: [i8; 256],
    /// Sums of each 16 of `qs`, little-endian `i16`; [`Block::dequantize`] does not read them.
    pub bsums: [[u8; 2]; 16],
}

const _: () = assert!(super::layout_is_right::<Q8K>());

impl Q8K {
    /// Sum of `qs[16 * group..][..16]`.
    #[inline(always)]
    pub const fn bsum(&self, group: usize) -> i16 {
        i16::from_le_bytes(self.bsums[group])
    }
}

impl Block for Q8K {
    const FORMAT: Format = Format::Q8K;
    type Values = [f32; 256];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = d * f32::from(q);
        }
    }
}

/// Rounds as ggml's reference: half to even, the first of equal magnitudes decides the sign of
/// the scale, zeros give a block of zeros. A NaN or an infinity in `x` gives a scale that is not
/// finite, so that no dot hides it.
#[inline(always)]
pub fn quantize(x: &[f32; 256]) -> Q8K {
    let magnitude = super::max_magnitude(x).to_bits();
    if magnitude == 0 {
        return Q8K::zeroed();
    }
    let largest = x.iter().find(|value| value.abs().to_bits() == magnitude);
    let inverse = -127.0 / largest.copied().unwrap_or(f32::NAN);
    let mut qs = [0; 256];
    for i in 0..256 {
        qs[i] = super::low_byte(x[i] * inverse);
    }
    let mut bsums = [[0; 2]; 16];
    for (sum, group) in bsums.iter_mut().zip(qs.as_chunks::<16>().0) {
        *sum = group.iter().map(|&q| i16::from(q)).sum::<i16>().to_le_bytes();
    }
    Q8K { d: F32::from_f32(1.0 / inverse), qs, bsums }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even_under_the_first_largest() {
        let mut x = [0.0; 256];
        x[..6].copy_from_slice(&[0.5, 127.0, -127.0, 1.5, -2.5, 3.0]);
        let block = quantize(&x);
        assert_eq!(block.d, F32::from_f32(-1.0));
        assert_eq!(block.qs[..7], [0, -127, 127, -2, 2, -3, 0]);
        assert_eq!((block.bsum(0), block.bsum(1)), (-3, 0));
    }

    #[test]
    fn zeros_stay_zeros_and_faults_stay_visible() {
        assert_eq!(quantize(&[-0.0; 256]), Q8K::zeroed());
        let mut values = [1.0; 256];
        quantize(&[1e-44; 256]).dequantize(&mut values); // 1 / d is infinite
        assert_eq!(values, [0.0; 256]);
        for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 256];
            x[70] = fault;
            assert!(!quantize(&x).d.to_f32().is_finite(), "{fault}");
        }
    }
}
