//! `exp` and `ln` that give the same bits on every machine.
//!
//! The standard library's are the platform's own and differ in the last bit. These use only
//! additions, multiplications and one division, which IEEE 754 rounds the same everywhere, so a
//! seed draws the same ids on every machine. Error: below 2 units in the last place.

/// `ln 2` split so that `n * LN_2_HIGH` is exact for every exponent `n` of an `f64`.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// `1 / k!` for `k` from 13 down to 0; the next term is below 1e-17 for `|r| <= ln 2 / 2`.
const EXP_TERMS: [f64; 14] = {
    let mut terms = [1.0; 14];
    let mut factorial = 1.0;
    let mut k = 1;
    while k < 14 {
        factorial *= k as f64;
        terms[13 - k] = 1.0 / factorial;
        k += 1;
    }
    terms
};

/// `e^x` for `x <= 0`; values below the smallest normal number (`x < -708`) are 0.
pub(super) fn exp(x: f64) -> f64 {
    /// Adding 1.5 * 2^52 leaves the nearest integer in the low bits of the sum.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    debug_assert!(x <= 0.0);
    if x < -708.0 {
        return 0.0;
    }
    let shifted = x * std::f64::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = 0.0;
    for term in EXP_TERMS {
        sum = sum * r + term;
    }
    let exponent = i64::from(shifted.to_bits() as i32) + 1023;
    sum * f64::from_bits((exponent as u64) << 52)
}

/// `ln x` for normal `x > 0`, by `ln m = 2 artanh((m - 1) / (m + 1))` of the mantissa.
pub(super) fn ln(x: f64) -> f64 {
    debug_assert!(x.is_normal() && x > 0.0);
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as f64 - 1023.0;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    // z <= 0.0295, so that the twelfth term is below 1e-18.
    let mut series = 0.0;
    for k in (0..12).rev() {
        series = series * z + 1.0 / f64::from(2 * k + 1);
    }
    exponent * LN_2_HIGH + (2.0 * s * series + exponent * LN_2_LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 units in the last place: ours has 2, the platform's up to 1.
    const RELATIVE: f64 = 4.0 * f64::EPSILON;

    #[test]
    fn exp_follows_the_platform() {
        for i in 0..200_000 {
            let x = -f64::from(i) * 0.003_537;
            let (ours, theirs) = (exp(x), x.exp());
            assert!((ours - theirs).abs() <= RELATIVE * theirs, "exp({x}) = {ours}, not {theirs}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-708.5), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
    }

    #[test]
    fn ln_follows_the_platform() {
        for i in 0..200_000 {
            let x = 1.0 + f64::from(i) * 0.731 + f64::from(i % 97) * 1e-3;
            let (ours, theirs) = (ln(x), x.ln());
            assert!((ours - theirs).abs() <= RELATIVE * theirs.abs(), "ln({x}) = {ours}");
        }
        assert_eq!(ln(1.0), 0.0);
        for x in [1e-300, 0.1, 0.999_999, 1.000_001, 1e300] {
            assert!((ln(x) - x.ln()).abs() <= RELATIVE * x.ln().abs(), "ln({x})");
        }
    }

    /// Bits recorded on x86-64; another machine must give the same.
    #[test]
    fn bits_are_pinned() {
        let mut digest = 0_u64;
        for i in 0..10_000 {
            let x = f64::from(i) * 0.07;
            for bits in [exp(-x).to_bits(), ln(1.0 + x).to_bits()] {
                digest = digest.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ bits;
            }
        }
        assert_eq!(digest, 1_639_329_387_074_389_935);
    }
}
