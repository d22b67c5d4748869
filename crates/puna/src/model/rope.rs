//! Frequencies and angles of rotary positions: a configuration enters, `inv_freq` and the cosines
//! and sines of given positions leave. With `d` rotated values in a head and `b = rope_theta`, the
//! default kind has `inv_freq[i] = b^(-2i/d)`, `i < d/2`; the other kinds stretch it.
//!
//! The order of operations and the rounding to `f32` are those of Transformers on PyTorch, because
//! an error of one unit in `inv_freq` is an error of 0.01 in the angle at position 100,000.

use std::borrow::Cow;
use std::f64::consts::PI;

use crate::config::{Llama3, LlamaConfig, LongRope, RopeKind, Yarn};

/// A configuration whose frequencies cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RopeError {
    /// The kind is none that Puna knows.
    #[error(
        "rope_type '{0}' is not known; Puna has default, linear, dynamic, yarn, longrope, llama3 and proportional"
    )]
    UnknownKind(String),
    /// The rotated part does not fit.
    #[error(
        "{rotary_dim} rotated values do not fit the rope_type '{kind}' in a head of {head_dim}"
    )]
    RotaryDim {
        /// Values of a head that should rotate.
        rotary_dim: usize,
        /// Width of a head.
        head_dim: usize,
        /// Name of the kind.
        kind: &'static str,
    },
    /// A list of divisors has the wrong length.
    #[error("{what} holds {got} divisors, but the heads rotate {expected} pairs")]
    FactorCount {
        /// Which list.
        what: &'static str,
        /// Pairs in a head.
        expected: usize,
        /// Length of the list.
        got: usize,
    },
    /// Explicit divisors, in a kind that has frequencies of its own for long sequences.
    #[error("rope_freqs.weight cannot be combined with the rope_type '{0}'; remove one of them")]
    Factors(&'static str),
    /// The factor on cos and sin came out infinite or not a number.
    #[error(
        "the RoPE parameters scale attention by {0}; correct factor or original_max_position_embeddings"
    )]
    Scaling(f32),
    /// A frequency came out infinite or not a number.
    #[error("the RoPE parameters give a frequency that is not finite (pair {pair})")]
    NotFinite {
        /// Which pair.
        pair: usize,
    },
}

/// The frequencies of a model, for sequences of any length.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Frequency of each pair in a sequence inside the trained context.
    inv_freq: Vec<f32>,
    /// Factor on cos and sin.
    attention_scaling: f32,
    /// Which frequencies depend on the sequence, and how.
    growth: Growth,
}

#[derive(Clone, Debug)]
enum Growth {
    None,
    /// The base grows with the sequence.
    Dynamic {
        base: f64,
        factor: f64,
        dim: usize,
        max_position: usize,
    },
    /// Another set of frequencies beyond the original context.
    LongRope {
        long: Vec<f32>,
        original_context: f64,
    },
}

impl Rope {
    /// Frequencies of a model. `factors` divide the frequencies one by one; GGUF files carry them
    /// as the tensor `rope_freqs.weight`.
    pub fn new(config: &LlamaConfig, factors: Option<&[f32]>) -> Result<Self, RopeError> {
        let parameters = &config.rope_parameters;
        let kind = parameters.kind();
        let base = parameters.theta();
        let dim = checked_dim(config)?;
        let divisors = factors.unwrap_or(&[]);
        if factors.is_some() && divisors.len() != dim.div_ceil(2) {
            return Err(count_error("rope_freqs.weight", dim, divisors.len()));
        }
        if let (Some(kind), Some(_)) = (kind_without_factors(kind), factors) {
            return Err(RopeError::Factors(kind));
        }
        let plain = || {
            let mut inv_freq = inverse(&powers(base, dim, dim));
            inv_freq.iter_mut().zip(divisors).for_each(|(f, divisor)| *f /= divisor);
            inv_freq
        };
        let max_position = config.max_position_embeddings;
        let mut growth = Growth::None;
        let mut attention_scaling = 1.0;
        let inv_freq = match kind {
            RopeKind::Default => plain(),
            RopeKind::Linear { factor } => divided(plain(), *factor),
            RopeKind::Proportional { factor } => {
                let partial = parameters.partial_rotary_factor().unwrap_or(1.0);
                divided(proportional(base, config.head_dim, partial), *factor)
            }
            RopeKind::Llama3(bands) => llama3(plain(), bands),
            RopeKind::Yarn(yarn) => {
                let factor = yarn
                    .factor
                    .unwrap_or_else(|| max_position as f64 / yarn.original_max_position_embeddings);
                attention_scaling = yarn_scaling(yarn, factor);
                let mut powers = powers(base, dim, dim);
                powers.iter_mut().zip(divisors).for_each(|(p, divisor)| *p *= divisor);
                yarn_blend(&powers, yarn, factor, base)
            }
            RopeKind::Dynamic { factor } => {
                let factor = *factor;
                growth = Growth::Dynamic { base, factor, dim, max_position };
                let length = max_position as f64;
                let stretch = (factor * length / length) - (factor - 1.0);
                inverse(&powers(base * stretch.powf(exponent(dim)), dim, dim))
            }
            RopeKind::LongRope(sets) => {
                attention_scaling = longrope_scaling(sets, max_position);
                let long = longrope(base, dim, &sets.long_factor, "long_factor")?;
                let original_context = sets.original_max_position_embeddings;
                growth = Growth::LongRope { long, original_context };
                longrope(base, dim, &sets.short_factor, "short_factor")?
            }
            RopeKind::Unknown(name) => return Err(RopeError::UnknownKind(name.clone())),
        };
        Self::finite(inv_freq, attention_scaling as f32, growth)
    }

    fn finite(
        inv_freq: Vec<f32>,
        attention_scaling: f32,
        growth: Growth,
    ) -> Result<Self, RopeError> {
        let long: &[f32] = if let Growth::LongRope { long, .. } = &growth { long } else { &[] };
        for frequencies in [&inv_freq, long] {
            if let Some(pair) = frequencies.iter().position(|f| !f.is_finite()) {
                return Err(RopeError::NotFinite { pair });
            }
        }
        if !attention_scaling.is_finite() {
            return Err(RopeError::Scaling(attention_scaling));
        }
        Ok(Self { inv_freq, attention_scaling, growth })
    }

    /// How many values of each head rotate.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Frequency of each pair in a sequence of `length` tokens, in radians for each position.
    pub fn inv_freq(&self, length: usize) -> Cow<'_, [f32]> {
        match &self.growth {
            Growth::LongRope { long, original_context } if length as f64 > *original_context => {
                Cow::Borrowed(long)
            }
            Growth::Dynamic { base, factor, dim, max_position } if length > *max_position => {
                let base = dynamic_base(*base, *factor, *dim, *max_position, length);
                Cow::Owned(inverse(&powers(base, *dim, *dim)))
            }
            _ => Cow::Borrowed(&self.inv_freq),
        }
    }

    /// Factor on cos and sin.
    pub fn attention_scaling(&self) -> f32 {
        self.attention_scaling
    }

    /// Whether the frequencies depend on the length of the sequence.
    pub fn is_dynamic(&self) -> bool {
        !matches!(self.growth, Growth::None)
    }

    /// The length whose frequencies Transformers takes for a forward over `positions`, where the
    /// forward before took those of `before` (0: there was none). Keys that are cached already
    /// keep the frequencies of their own forward.
    pub fn observe(&self, before: usize, positions: &[u32]) -> usize {
        let Some(last) = positions.iter().max() else { return before };
        let seq_len = *last as usize + 1;
        match self.growth {
            // Never shorter, but for a sequence inside the trained context.
            Growth::Dynamic { max_position, .. } if seq_len >= max_position => seq_len.max(before),
            _ => seq_len,
        }
    }

    /// Cosines and sines of `positions`, each `(positions, rotary_dim / 2)`, in sequences of
    /// `lengths` `(positions)`.
    pub fn cos_sin(&self, positions: &[u32], lengths: &[u32], cos: &mut [f32], sin: &mut [f32]) {
        let pairs = self.inv_freq.len();
        assert_eq!(positions.len(), lengths.len(), "a length for each position");
        assert!(cos.len() >= positions.len() * pairs, "cos is shorter than the positions");
        assert!(sin.len() >= positions.len() * pairs, "sin is shorter than the positions");
        let rows = cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs));
        let mut held = (0, self.inv_freq(0));
        for ((position, length), (cos_row, sin_row)) in positions.iter().zip(lengths).zip(rows) {
            if *length != held.0 {
                held = (*length, self.inv_freq(*length as usize));
            }
            for ((f, c), s) in held.1.iter().zip(cos_row).zip(sin_row) {
                let (sine, cosine) = (*position as f32 * f).sin_cos();
                *c = cosine * self.attention_scaling;
                *s = sine * self.attention_scaling;
            }
        }
    }
}

/// The name of a kind that explicit divisors say nothing of.
fn kind_without_factors(kind: &RopeKind) -> Option<&'static str> {
    match kind {
        RopeKind::Dynamic { .. } => Some("dynamic"),
        RopeKind::LongRope(_) => Some("longrope"),
        RopeKind::Proportional { .. } => Some("proportional"),
        _ => None,
    }
}

/// How many values of a head go into the exponents, once it is sure that they fit.
fn checked_dim(config: &LlamaConfig) -> Result<usize, RopeError> {
    let head_dim = config.head_dim;
    let (kind, least, even) = match config.rope_parameters.kind() {
        RopeKind::Default => ("default", 1, false),
        RopeKind::Linear { .. } => ("linear", 1, false),
        RopeKind::Llama3(_) => ("llama3", 1, false),
        // The exponent of the growing base is d / (d - 2).
        RopeKind::Dynamic { .. } => ("dynamic", 3, false),
        RopeKind::Yarn(_) => ("yarn", 1, true),
        RopeKind::LongRope(_) => ("longrope", 1, false),
        // Rotates the whole head, part of it by nothing.
        RopeKind::Proportional { .. } if head_dim.is_multiple_of(2) => return Ok(head_dim),
        RopeKind::Proportional { .. } => ("proportional", head_dim + 1, true),
        RopeKind::Unknown(name) => return Err(RopeError::UnknownKind(name.clone())),
    };
    let rotary_dim = config.rotary_dim();
    let whole = !even || rotary_dim.is_multiple_of(2);
    if rotary_dim < least || rotary_dim.next_multiple_of(2) > head_dim || !whole {
        return Err(RopeError::RotaryDim { rotary_dim, head_dim, kind });
    }
    Ok(rotary_dim)
}

fn count_error(what: &'static str, dim: usize, got: usize) -> RopeError {
    RopeError::FactorCount { what, expected: dim.div_ceil(2), got }
}

/// `base^(2i / width)` for the pairs of `dim` values.
fn powers(base: f64, dim: usize, width: usize) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f32 / width as f32;
    let exponents: Vec<f32> = (0..dim.div_ceil(2)).map(exponent).collect();
    super::pow::powers(base, &exponents)
}

fn inverse(powers: &[f32]) -> Vec<f32> {
    powers.iter().map(|p| 1.0 / p).collect()
}

fn divided(mut inv_freq: Vec<f32>, factor: f64) -> Vec<f32> {
    inv_freq.iter_mut().for_each(|f| *f /= factor as f32);
    inv_freq
}

/// The exponent on the stretch of the base.
fn exponent(dim: usize) -> f64 {
    dim as f64 / (dim as f64 - 2.0)
}

/// `base ((factor L / max) - (factor - 1))^(d / (d - 2))`. `L` is a tensor upstream, so that every
/// step is rounded to `f32`.
fn dynamic_base(base: f64, factor: f64, dim: usize, max_position: usize, seq_len: usize) -> f64 {
    let stretch = factor as f32 * seq_len as f32 / max_position as f32 - (factor - 1.0) as f32;
    let grown = f64::from(stretch).powf(exponent(dim)) as f32;
    f64::from(base as f32 * grown)
}

/// Exponents over the whole head; only the first `partial` of the pairs turns.
fn proportional(base: f64, head_dim: usize, partial: f64) -> Vec<f32> {
    let turning = ((partial * head_dim as f64 / 2.0).floor() as usize).min(head_dim / 2);
    let mut inv_freq = inverse(&powers(base, 2 * turning, head_dim));
    inv_freq.resize(head_dim / 2, 0.0);
    inv_freq
}

/// Wavelengths longer than `original / low` are divided by `factor`, shorter than
/// `original / high` kept, those between blended.
fn llama3(inv_freq: Vec<f32>, bands: &Llama3) -> Vec<f32> {
    let (low, high) = (bands.low_freq_factor, bands.high_freq_factor);
    let original = bands.original_max_position_embeddings;
    let (longest, shortest) = ((original / low) as f32, (original / high) as f32);
    let factor = bands.factor as f32;
    let stretch = |f: f32| {
        // A number over a tensor is the tensor's reciprocal times the number in PyTorch.
        let wavelength = (1.0 / f) * (2.0 * PI) as f32;
        if wavelength > longest {
            f / factor
        } else if wavelength < shortest {
            f
        } else {
            let smooth = ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    inv_freq.into_iter().map(stretch).collect()
}

/// `(f / factor) ramp + f (1 - ramp)`: fast pairs are kept, slow ones divided.
fn yarn_blend(powers: &[f32], yarn: &Yarn, factor: f64, base: f64) -> Vec<f32> {
    let d = 2.0 * powers.len() as f64;
    let context = yarn.original_max_position_embeddings;
    let pair_of = |rotations: f64| d * (context / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln());
    let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(d - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(i, power): (usize, &f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        1.0 / (factor as f32 * power) * (1.0 - keep) + 1.0 / power * keep
    };
    powers.iter().enumerate().map(blend).collect()
}

/// Factor on cos and sin of YaRN.
fn yarn_scaling(yarn: &Yarn, factor: f64) -> f64 {
    let m = |k: f64| if factor <= 1.0 { 1.0 } else { 0.1 * k * factor.ln() + 1.0 };
    match (yarn.attention_factor, yarn.mscale, yarn.mscale_all_dim) {
        (Some(given), _, _) => given,
        (None, Some(top), Some(bottom)) if top != 0.0 && bottom != 0.0 => m(top) / m(bottom),
        _ => m(1.0),
    }
}

/// `1 / (divisor b^(2i/d))`.
fn longrope(
    base: f64,
    dim: usize,
    divisors: &[f64],
    what: &'static str,
) -> Result<Vec<f32>, RopeError> {
    if divisors.len() != dim.div_ceil(2) {
        return Err(count_error(what, dim, divisors.len()));
    }
    let powers = powers(base, dim, dim);
    Ok(powers.iter().zip(divisors).map(|(p, divisor)| 1.0 / (*divisor as f32 * p)).collect())
}

/// Factor on cos and sin of LongRoPE: `sqrt(1 + ln(factor) / ln(original))`.
fn longrope_scaling(long: &LongRope, max_position: usize) -> f64 {
    let original = long.original_max_position_embeddings;
    let factor = long.factor.unwrap_or(max_position as f64 / original);
    match long.attention_factor {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    }
}
