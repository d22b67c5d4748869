//! Fresh weights: a seed and a tensor's name enter, normally distributed numbers leave. The name is
//! part of the seed, so that a tensor's values do not depend on what was loaded before it.
//! SplitMix64 (Steele, Lea and Flood, 2014) gives bits, the transform of Box and Muller (1958) the
//! distribution.

use crate::config::LlamaConfig;

/// Standard deviation where the configuration says 0, as in Transformers.
const DEFAULT_RANGE: f64 = 0.02;

/// Numbers of mean 0 and the configuration's `initializer_range`.
#[derive(Debug)]
pub(in crate::model) struct Normal {
    state: u64,
    deviation: f64,
    /// The second of each pair.
    spare: Option<f64>,
}

impl Normal {
    /// The numbers of one tensor.
    pub(in crate::model) fn new(seed: u64, name: &str, config: &LlamaConfig) -> Self {
        let range = config.initializer_range;
        Self::of_deviation(seed, name, if range == 0.0 { DEFAULT_RANGE } else { range })
    }

    /// The same with another standard deviation.
    pub(super) fn of_deviation(seed: u64, name: &str, deviation: f64) -> Self {
        // FNV-1a of the name.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        let mut normal = Self { state: seed, deviation, spare: None };
        normal.state = normal.bits() ^ hash;
        normal
    }

    /// The next number.
    pub(in crate::model) fn next(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare as f32;
        }
        // From (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * self.deviation;
        let (sine, cosine) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sine);
        (radius * cosine) as f32
    }

    fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bounds of five standard errors of each statistic for so many draws.
    #[test]
    fn numbers_have_the_moments_of_the_normal_distribution() {
        const DRAWS: usize = 100_000;
        let config = LlamaConfig::default();
        let mut normal = Normal::new(1, "a", &config);
        let drawn: Vec<f64> = (0..DRAWS).map(|_| f64::from(normal.next()) / 0.02).collect();
        let moment = |power: i32| drawn.iter().map(|x| x.powi(power)).sum::<f64>() / DRAWS as f64;
        let error = 5.0 / (DRAWS as f64).sqrt();
        assert!(moment(1).abs() < error);
        assert!((moment(2) - 1.0).abs() < error * 2.0_f64.sqrt());
        assert!(moment(3).abs() < error * 15.0_f64.sqrt());
        assert!((moment(4) - 3.0).abs() < error * 96.0_f64.sqrt());
    }

    #[test]
    fn seed_and_name_decide() {
        let config = LlamaConfig::default();
        let first = |seed, name| Normal::new(seed, name, &config).next();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }
}
