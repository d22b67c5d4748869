//! `base^exponents` as PyTorch computes it in `f32` on a CPU with AVX-512, to the last bit. Whole
//! vectors of 32 values go through SLEEF's `pow` (`2^(y log2 x)` on pairs of floats, within one unit
//! of the last place); what is left goes through the C library's, which is all but correctly
//! rounded. A machine with narrower vectors differs from this in one value of some hundred.

/// Values that PyTorch takes at once: two registers of sixteen.
const AT_ONCE: usize = 32;

/// `base^y` for each `y` of `exponents`; `base` above 1, exponents from 0 to 1.
pub(super) fn powers(base: f64, exponents: &[f32]) -> Vec<f32> {
    let x = base as f32;
    let rounded = |y: &f32| f64::from(x).powf(f64::from(*y)) as f32;
    // Beyond, the scaling by a power of two would leave the range of `f32`.
    let in_range = (1.0..1e37).contains(&x);
    let whole = if in_range { exponents.len() / AT_ONCE * AT_ONCE } else { 0 };
    let (vectors, tail) = exponents.split_at(whole);
    let log = if in_range { log(x) } else { Pair(0.0, 0.0) };
    vectors.iter().map(|y| exp(log.scale(*y))).chain(tail.iter().map(rounded)).collect()
}

/// A number as the sum of a float and a much smaller one.
#[derive(Clone, Copy)]
struct Pair(f32, f32);

impl Pair {
    /// The exact sum of two floats.
    fn sum(a: f32, b: f32) -> Self {
        let sum = a + b;
        let part = sum - a;
        Self(sum, (a - (sum - part)) + (b - part))
    }

    /// The sum where `self` is the larger.
    fn add_smaller(self, other: Self) -> Self {
        let sum = self.0 + other.0;
        Self(sum, (((self.0 - sum) + other.0) + self.1) + other.1)
    }

    fn add(self, other: Self) -> Self {
        let Self(sum, rest) = Self::sum(self.0, other.0);
        Self(sum, rest + (self.1 + other.1))
    }

    fn add_float(self, other: f32) -> Self {
        let Self(sum, rest) = Self::sum(self.0, other);
        Self(sum, rest + self.1)
    }

    fn scale(self, factor: f32) -> Self {
        let product = self.0 * factor;
        Self(product, self.1.mul_add(factor, self.0.mul_add(factor, -product)))
    }

    fn times(self, other: Self) -> Self {
        let product = self.0 * other.0;
        let rest = self.1.mul_add(other.0, self.0.mul_add(other.0, -product));
        Self(product, self.0.mul_add(other.1, rest))
    }

    fn squared(self) -> Self {
        let product = self.0 * self.0;
        let rest = self.0.mul_add(self.0, -product);
        Self(product, (self.0 + self.0).mul_add(self.1, rest))
    }

    fn over(self, divisor: Self) -> Self {
        let inverse = 1.0 / divisor.0;
        let quotient = self.0 * inverse;
        let rest = inverse.mul_add(self.0, -quotient);
        let miss = (-divisor.1).mul_add(inverse, (-divisor.0).mul_add(inverse, 1.0));
        Self(quotient, quotient.mul_add(miss, self.1.mul_add(inverse, rest)))
    }

    fn normalized(self) -> Self {
        let sum = self.0 + self.1;
        Self(sum, (self.0 - sum) + self.1)
    }
}

/// `2^n` for `n` from -126 to 127.
fn two_to(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Natural logarithm: `e ln 2 + 2 atanh((m - 1) / (m + 1))`, `x = m 2^e`, `m` from 0.75 to 1.5.
fn log(x: f32) -> Pair {
    let exponent = ((x * (1.0 / 0.75)).to_bits() >> 23) as i32 - 127;
    let m = x * two_to(-exponent);
    let z = Pair::sum(-1.0, m).over(Pair::sum(1.0, m));
    let z2 = z.squared();
    let mut series: f32 = 0.240_320_35;
    for coefficient in [0.285_112_68, 0.400_008] {
        series = series.mul_add(z2.0, coefficient);
    }
    let series = z2.scale(series).add(Pair(0.666_666_6, 3.691_838_6e-9));
    let whole = Pair(std::f32::consts::LN_2, -1.904_654_3e-9).scale(exponent as f32);
    whole.add_smaller(Pair(z.0 * 2.0, z.1 * 2.0)).add_smaller(z2.times(z).times(series))
}

/// `2^q (1 + s + s² p(s))` with `s = x - q ln 2`.
fn exp(x: Pair) -> f32 {
    let q = ((x.0 + x.1) * std::f32::consts::LOG2_E).round_ties_even();
    let s = x.add_float(q * -0.693_145_75).add_float(q * -1.428_606_8e-6).normalized();
    let mut series: f32 = 0.001_363_246_5;
    for coefficient in [0.008_365_969, 0.041_671_082, 0.166_665_52, 0.499_999_85] {
        series = series.mul_add(s.0, coefficient);
    }
    let tail = s.add_smaller(s.squared().scale(series));
    let sum = 1.0 + tail.0;
    let rest = ((1.0 - sum) + tail.0) + tail.1;
    (sum + rest) * two_to(q as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One unit in the last place is the bound that SLEEF states.
    #[test]
    fn every_value_is_within_one_unit_of_the_true_one() {
        let exponents: Vec<f32> = (0..128).map(|i| i as f32 / 128.0).collect();
        for base in [1.5, 10_000.0, 500_000.0, 1e6, 27_391.2, 8.5e7, 1e30, 1e37, 1e38] {
            for (y, got) in exponents.iter().zip(powers(base, &exponents)) {
                let truth = f64::from(base as f32).powf(f64::from(*y));
                let unit = truth * f64::from(f32::EPSILON);
                assert!((f64::from(got) - truth).abs() <= unit, "{base}^{y}: {got}");
            }
        }
    }

    const PYTORCH_PAIR_37: u32 = 0x4537_eba2;

    /// Bits that PyTorch 2.15 gives where the correctly rounded value is another:
    /// `1e6 ** (torch.arange(0, 128, 2) / 128)`, pair 37.
    #[test]
    fn vectors_round_as_pytorch_does() {
        let exponents: Vec<f32> = (0..64).map(|i| (2 * i) as f32 / 128.0).collect();
        let truth = 1e6_f64.powf(f64::from(exponents[37])) as f32;
        let got = powers(1e6, &exponents)[37];
        assert_eq!(got.to_bits(), PYTORCH_PAIR_37);
        assert_ne!(got, truth);
        // In a tail the C library's value stands.
        assert_eq!(powers(1e6, &exponents[32..])[5].to_bits(), PYTORCH_PAIR_37);
        assert_eq!(powers(1e6, &exponents[36..])[1], truth);
    }
}
