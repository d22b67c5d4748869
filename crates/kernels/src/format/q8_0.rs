//! `q8_0`: 32 numbers of 8 bits under one scale; weights, and activations before an integer dot.
//! In: 34 bytes. Out: `w[i] = d * q[i]`.
//! Back: `d = max|x| / 127`, `q[i] = round(x[i] / d)`.

use bytemuck::{Pod, Zeroable};

use super::f16::F16;
use super::{Block, Format};

/// 32 weights or activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    /// Scale.
    pub d: F16,
    /// Weight `i` over the scale.
    pub qs: [i8; 32],
}

const _: () = assert!(super::layout_is_right::<Q8_0>());

impl Block for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    type Values = [f32; 32];

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = f32::from(q) * d;
        }
    }
}

/// Rounds as ggml's reference: `q[i]` with the exact scale, half away from zero; the scale is
/// then stored as binary16, infinite where `max|x|` is above `127 * 65504`. A NaN or an infinity
/// in `x` gives a scale that is not finite, so that no dot hides it.
#[inline(always)]
pub fn quantize(x: &[f32; 32]) -> Q8_0 {
    let d = super::max_magnitude(x) / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut qs = [0; 32];
    for i in 0..32 {
        let value = x[i] * inverse;
        let even = super::round_to_even(value);
        // Exact: both are below 2^7 and a tie is 0.5 off.
        let tie_to_zero = value - even == 0.5_f32.copysign(value);
        let away = if tie_to_zero { 1_f32.copysign(value) } else { 0.0 };
        qs[i] = super::low_byte(even + away);
    }
    Q8_0 { d: F16::from_f32(d), qs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_away_from_zero() {
        let mut x = [0.0; 32];
        x[..6].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, -2.5, 0.499]);
        let block = quantize(&x);
        assert_eq!(block.d, F16::from_f32(1.0));
        assert_eq!(block.qs[..7], [127, 1, -1, 2, -3, 0, 0]);
    }

    #[test]
    fn zeros_stay_zeros_and_faults_stay_visible() {
        assert_eq!(quantize(&[0.0; 32]), Q8_0::zeroed());
        let mut values = [1.0; 32];
        quantize(&[1e-44; 32]).dequantize(&mut values); // 1 / d is infinite
        assert_eq!(values, [0.0; 32]);
        for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 32];
            x[7] = fault;
            assert!(!quantize(&x).d.to_f32().is_finite(), "{fault}");
        }
    }
}
