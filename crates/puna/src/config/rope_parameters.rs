//! The RoPE keys of `config.json`, old (`rope_theta`, `rope_scaling`) and new
//! (`rope_parameters`), brought to the new form and read into a [`RopeKind`].
//!
//! Priority: keys inside `rope_parameters` (which `rope_scaling` replaces), then the keys of the
//! same name beside it, then defaults.

use serde_json::{Map, Value};

use super::error::{ConfigError, repr};
use super::fields::{Fields, no_match};

/// How the frequencies of the default kind are stretched. The formulas are in
/// [`crate::model::rope`].
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// `theta^(-2i/d)`.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// NTK-aware: the base grows with the sequence.
    Dynamic {
        /// Stretch beyond the trained context.
        factor: f64,
    },
    /// YaRN (Peng and others, 2023).
    Yarn(Yarn),
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3(Llama3),
    /// LongRoPE (Ding and others, 2024): a divisor for each frequency, one set for short and one
    /// for long sequences.
    LongRope(LongRope),
    /// The exponents run over the whole head, and only the first part of the pairs rotates.
    Proportional {
        /// Divisor.
        factor: f64,
    },
    /// A name that Puna does not know; building a model with it is an error.
    Unknown(String),
}

/// Numbers of Llama 3.1's kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are low frequencies.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are high frequencies.
    pub high_freq_factor: f64,
    /// Context before stretching.
    pub original_max_position_embeddings: f64,
}

/// Numbers of YaRN.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Stretch; `None` stands for `max_position_embeddings / original`.
    pub factor: Option<f64>,
    /// Context before stretching.
    pub original_max_position_embeddings: f64,
    /// Factor on cos and sin, in place of the computed one.
    pub attention_factor: Option<f64>,
    /// Rotations above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided.
    pub beta_slow: f64,
    /// Numerator's weight in the computed attention factor.
    pub mscale: Option<f64>,
    /// Denominator's weight.
    pub mscale_all_dim: Option<f64>,
    /// Whether the ramp's ends are rounded to whole dimensions.
    pub truncate: bool,
}

/// Numbers of LongRoPE.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Divisors up to the original context.
    pub short_factor: Vec<f64>,
    /// Divisors beyond it.
    pub long_factor: Vec<f64>,
    /// Context before stretching.
    pub original_max_position_embeddings: f64,
    /// Stretch; `None` stands for `max_position_embeddings / original`.
    pub factor: Option<f64>,
    /// Factor on cos and sin, in place of the computed one.
    pub attention_factor: Option<f64>,
}

/// The RoPE part of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeParameters {
    keys: Map<String, Value>,
    theta: f64,
    partial_rotary_factor: Option<f64>,
    kind: RopeKind,
}

/// Frequencies in the longest list that is read; a head has at most twice as many values.
const MAX_FACTORS: usize = 1 << 16;

impl RopeParameters {
    /// The default kind with this base.
    pub fn with_theta(theta: f64) -> Self {
        let mut keys = Map::new();
        keys.insert("rope_theta".to_owned(), theta.into());
        keys.insert("rope_type".to_owned(), "default".into());
        Self { keys, theta, partial_rotary_factor: None, kind: RopeKind::Default }
    }

    /// Reads the keys of `rope_parameters` in their new form.
    /// `max_position_embeddings` stands in for an absent original context.
    pub fn from_keys(
        keys: Map<String, Value>,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        standardised(keys, max_position_embeddings)
    }

    /// Takes the RoPE keys of a file, in either form.
    pub(crate) fn take(
        fields: &mut Fields,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        let scaling = take_object(fields, "rope_scaling")?;
        let parameters = take_object(fields, "rope_parameters")?;
        let mut keys = if scaling.is_empty() { parameters } else { scaling };
        let theta = fields.take("rope_theta").unwrap_or_else(|| Self::DEFAULT_THETA.into());
        keys.entry("rope_theta").or_insert(theta);
        if let Some(factor) = fields.take("partial_rotary_factor").filter(|v| !v.is_null()) {
            keys.entry("partial_rotary_factor").or_insert(factor);
        }
        if let Some(original) = fields.peek(ORIGINAL)
            && STRETCHED.contains(&rope_type(&keys)?.as_str())
        {
            keys.insert(ORIGINAL.to_owned(), original.clone());
        }
        standardised(keys, max_position_embeddings)
    }

    /// Base where a file names none.
    pub const DEFAULT_THETA: f64 = 10_000.0;

    /// Base of the frequencies.
    pub fn theta(&self) -> f64 {
        self.theta
    }

    /// Which part of each head rotates; all of it where this is `None`.
    pub fn partial_rotary_factor(&self) -> Option<f64> {
        self.partial_rotary_factor
    }

    /// How the frequencies are stretched.
    pub fn kind(&self) -> &RopeKind {
        &self.kind
    }

    /// The keys as the new form writes them.
    pub fn keys(&self) -> &Map<String, Value> {
        &self.keys
    }
}

impl Default for RopeParameters {
    fn default() -> Self {
        Self::with_theta(Self::DEFAULT_THETA)
    }
}

pub(super) const ORIGINAL: &str = "original_max_position_embeddings";
/// Kinds that need the context before stretching.
const STRETCHED: [&str; 3] = ["llama3", "yarn", "longrope"];

/// An object; null, an empty one and no key at all are the same.
fn take_object(fields: &mut Fields, field: &str) -> Result<Map<String, Value>, ConfigError> {
    match fields.take(field) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(value) => Err(no_match(field, &value, &["dict", "NoneType"])),
    }
}

fn rope_type(keys: &Map<String, Value>) -> Result<String, ConfigError> {
    match keys.get("rope_type").or_else(|| keys.get("type")) {
        None => Ok("default".to_owned()),
        Some(Value::String(name)) => Ok(name.clone()),
        Some(value) => Err(super::fields::mismatch("rope_type", "str", value)),
    }
}

fn standardised(
    mut keys: Map<String, Value>,
    max_position_embeddings: usize,
) -> Result<RopeParameters, ConfigError> {
    let name = rope_type(&keys)?;
    keys.entry("rope_type").or_insert_with(|| name.as_str().into());
    keys.entry("rope_theta").or_insert(RopeParameters::DEFAULT_THETA.into());
    if STRETCHED.contains(&name.as_str()) {
        keys.entry(ORIGINAL).or_insert(max_position_embeddings.into());
    }
    let read = Reader { keys: &keys };
    read.require(&name)?;
    let theta = read.positive("rope_theta")?;
    if theta <= 1.0 {
        return Err(read.fault("rope_theta", "must be a number above 1"));
    }
    let partial_rotary_factor = read.optional("partial_rotary_factor")?;
    if partial_rotary_factor.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        return Err(read.fault("partial_rotary_factor", "must be above 0 and at most 1"));
    }
    let kind = read.kind(&name)?;
    Ok(RopeParameters { theta, partial_rotary_factor, kind, keys })
}

struct Reader<'a> {
    keys: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn require(&self, name: &str) -> Result<(), ConfigError> {
        let required: &[&'static str] = match name {
            "linear" | "dynamic" | "yarn" => &["factor"],
            "longrope" => &["short_factor", "long_factor"],
            "llama3" => &["factor", "high_freq_factor", "low_freq_factor"],
            _ => &[],
        };
        let absent = |key: &&&str| !self.keys.contains_key(**key);
        let keys: Vec<&'static str> = required.iter().filter(absent).copied().collect();
        if keys.is_empty() {
            return Ok(());
        }
        Err(ConfigError::MissingRopeKeys { rope_type: name.to_owned(), keys })
    }

    fn kind(&self, name: &str) -> Result<RopeKind, ConfigError> {
        Ok(match name {
            "default" => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: self.positive("factor")? },
            "dynamic" => RopeKind::Dynamic { factor: self.positive("factor")? },
            "proportional" => {
                RopeKind::Proportional { factor: self.optional_positive("factor")?.unwrap_or(1.0) }
            }
            "yarn" => RopeKind::Yarn(self.yarn()?),
            "longrope" => RopeKind::LongRope(self.longrope()?),
            "llama3" => RopeKind::Llama3(Llama3 {
                factor: self.positive("factor")?,
                low_freq_factor: self.positive("low_freq_factor")?,
                high_freq_factor: self.positive("high_freq_factor")?,
                original_max_position_embeddings: self.positive(ORIGINAL)?,
            }),
            other => RopeKind::Unknown(other.to_owned()),
        })
    }

    fn yarn(&self) -> Result<Yarn, ConfigError> {
        // A zero counts as absent, as in Python's `or`.
        let or = |x: Option<f64>, default| x.filter(|x| *x != 0.0).unwrap_or(default);
        Ok(Yarn {
            factor: self.optional_positive("factor")?,
            original_max_position_embeddings: self.positive(ORIGINAL)?,
            attention_factor: self.optional("attention_factor")?,
            beta_fast: or(self.optional("beta_fast")?, 32.0),
            beta_slow: or(self.optional("beta_slow")?, 1.0),
            mscale: self.optional("mscale")?,
            mscale_all_dim: self.optional("mscale_all_dim")?,
            truncate: match self.keys.get("truncate") {
                None => true,
                Some(Value::Null) => false,
                Some(Value::Bool(x)) => *x,
                Some(_) => return Err(self.fault("truncate", "must be a boolean")),
            },
        })
    }

    fn longrope(&self) -> Result<LongRope, ConfigError> {
        Ok(LongRope {
            short_factor: self.numbers("short_factor")?,
            long_factor: self.numbers("long_factor")?,
            original_max_position_embeddings: self.positive(ORIGINAL)?,
            factor: self.optional_positive("factor")?,
            attention_factor: self.optional("attention_factor")?,
        })
    }

    fn fault(&self, key: &str, rule: &str) -> ConfigError {
        let got = self.keys.get(key).map_or_else(|| "nothing".to_owned(), repr);
        ConfigError::value(
            &format!("rope_parameters.{key}"),
            format!("`rope_parameters`'s {key} field {rule}, got {got}"),
        )
    }

    fn optional(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() => Ok(Some(x)),
                _ => Err(self.fault(key, "must be a float or int")),
            },
        }
    }

    fn optional_positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.optional(key)? {
            Some(x) if x <= 0.0 => Err(self.fault(key, "must be above 0")),
            other => Ok(other),
        }
    }

    fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        self.optional_positive(key)?.ok_or_else(|| self.fault(key, "must be a float or int"))
    }

    fn numbers(&self, key: &str) -> Result<Vec<f64>, ConfigError> {
        let fault = || self.fault(key, "must be a list of numbers above 0");
        let items = self.keys.get(key).and_then(Value::as_array).ok_or_else(fault)?;
        if items.len() > MAX_FACTORS {
            return Err(fault());
        }
        let number = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        items.iter().map(number).collect::<Option<_>>().ok_or_else(fault)
    }
}
