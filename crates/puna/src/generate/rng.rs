//! Random numbers of a sequence: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, 2011).
//!
//! Counter-based: a draw is a function of `(seed, step)` and of nothing else, so a sequence draws
//! the same numbers alone, in a batch, after a restart, and on every machine.

/// A seeded function from a step to random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Philox {
    seed: u64,
}

impl Philox {
    /// The seed is the key of the cipher.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The seed it was made with.
    pub(super) fn seed(self) -> u64 {
        self.seed
    }

    /// A number in `[0, 1)` with 53 random bits: the first two words of the block whose counter
    /// is `step`.
    pub(super) fn uniform(self, step: u64) -> f64 {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let block = philox4x32_10([step as u32, (step >> 32) as u32, 0, 0], key);
        let bits = (u64::from(block[1]) << 32) | u64::from(block[0]);
        (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

/// Ten rounds of two multiplications, a swap and a key that moves by a Weyl sequence.
fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let first = u64::from(a) * u64::from(MULTIPLIERS[0]);
        let second = u64::from(c) * u64::from(MULTIPLIERS[1]);
        (a, b, c, d) = (
            (second >> 32) as u32 ^ b ^ k0,
            second as u32,
            (first >> 32) as u32 ^ d ^ k1,
            first as u32,
        );
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' Random123 library, version 1.09.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]),
            (
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xA409_3822, 0x299F_31D0],
                [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn uniforms_are_in_range_and_even() {
        let mut counts = [0_u32; 10];
        for step in 0..10_000 {
            let u = Philox::new(7).uniform(step);
            assert!((0.0..1.0).contains(&u));
            counts[(u * 10.0) as usize] += 1;
        }
        // 9 degrees of freedom: chi-square passes 27.9 once in a thousand; the seed is fixed.
        let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi2 < 27.9, "{chi2}: {counts:?}");
    }

    #[test]
    fn seed_and_step_both_matter() {
        assert_eq!(Philox::new(3).uniform(5), Philox::new(3).uniform(5));
        assert_ne!(Philox::new(3).uniform(5), Philox::new(3).uniform(6));
        assert_ne!(Philox::new(3).uniform(5), Philox::new(3 | (1 << 40)).uniform(5));
        assert_ne!(Philox::new(3).uniform(5), Philox::new(3).uniform(5 | (1 << 40)));
    }
}
