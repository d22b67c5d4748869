//! The RoPE keys of `config.json`, old (`rope_theta`, `rope_scaling`) and new
//! (`rope_parameters`), brought to the new form and read into a [`RopeKind`].
//!
//! Priority: keys inside `rope_parameters` (which `rope_scaling` replaces), then the keys of the
//! same name beside it, then defaults.

use serde_json::{Map, Value};

use super::error::{ConfigError, ConfigWarning, quote, repr};
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
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context before stretching.
        original_max_position_embeddings: f64,
    },
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

    /// Oddities that do not stop a model; `rotary_dim` is how many values of a head rotate.
    pub(crate) fn warnings(&self, max_position: usize, rotary_dim: usize) -> Vec<ConfigWarning> {
        let mut found = Warnings { keys: &self.keys, list: Vec::new() };
        found.unused(&self.kind);
        match &self.kind {
            RopeKind::Default if self.partial_rotary_factor.is_some_and(|p| p != 1.0) => found.add(
                "`rope_parameters`'s partial_rotary_factor is honoured here, but Transformers 5 ignores it for a LLaMA \
                 whose rope_type is 'default'",
            ),
            RopeKind::Default => {}
            RopeKind::Linear { .. } | RopeKind::Dynamic { .. } => found.factor(),
            RopeKind::Yarn(yarn) => found.yarn(yarn, max_position),
            RopeKind::LongRope(long) => found.longrope(long, rotary_dim / 2),
            RopeKind::Llama3 { .. } => found.llama3(max_position),
            RopeKind::Proportional { .. } => {
                if self.partial_rotary_factor.is_none() {
                    found.add(
                        "`rope_parameters`'s partial_rotary_factor is None. This will default to 1.0 in the \
                         computation, making this equivalent to the linear_scaling RoPE type. Provide a value in the \
                         range [0.0, 1.0) to make use of the proportional RoPE functionality.",
                    );
                }
            }
            RopeKind::Unknown(name) => found.add(format!(
                "Missing validation function in 'RotaryEmbeddingConfigMixin' for 'rope_type'='{name}'"
            )),
        }
        found.list
    }
}

impl Default for RopeParameters {
    fn default() -> Self {
        Self::with_theta(Self::DEFAULT_THETA)
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";
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
            "llama3" => RopeKind::Llama3 {
                factor: self.positive("factor")?,
                low_freq_factor: self.positive("low_freq_factor")?,
                high_freq_factor: self.positive("high_freq_factor")?,
                original_max_position_embeddings: self.positive(ORIGINAL)?,
            },
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

struct Warnings<'a> {
    keys: &'a Map<String, Value>,
    list: Vec<ConfigWarning>,
}

impl Warnings<'_> {
    fn add(&mut self, message: impl Into<String>) {
        self.list.push(ConfigWarning::new("rope_parameters", message));
    }

    fn show(&self, key: &str) -> String {
        self.keys.get(key).map_or_else(|| "None".to_owned(), repr)
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.keys.get(key).and_then(Value::as_f64)
    }

    /// Keys that the kind does not read.
    fn unused(&mut self, kind: &RopeKind) {
        let known: &[&str] = match kind {
            RopeKind::Default => &[],
            RopeKind::Linear { .. } | RopeKind::Dynamic { .. } => &["factor"],
            RopeKind::Yarn(_) => &[
                "factor",
                ORIGINAL,
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ],
            RopeKind::Llama3 { .. } => &["factor", ORIGINAL, "low_freq_factor", "high_freq_factor"],
            RopeKind::LongRope(_) => {
                &["short_factor", "long_factor", ORIGINAL, "attention_factor", "factor"]
            }
            RopeKind::Proportional { .. } => &["factor"],
            RopeKind::Unknown(_) => return,
        };
        let always = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        let mut unused: Vec<&String> = self.keys.keys().collect();
        unused.retain(|key| !known.contains(&key.as_str()) && !always.contains(&key.as_str()));
        unused.sort();
        if !unused.is_empty() {
            let name = self.keys.get("rope_type").and_then(Value::as_str).unwrap_or_default();
            let message = format!(
                "Unrecognized keys in `rope_parameters` for 'rope_type'='{name}': {{{}}}",
                quote(&unused)
            );
            self.add(message);
        }
    }

    fn factor(&mut self) {
        if self.number("factor").is_none_or(|factor| factor < 1.0) {
            let got = self.show("factor");
            self.add(format!(
                "`rope_parameters`'s factor field must be a float or int >= 1, got {got}"
            ));
        }
    }

    fn yarn(&mut self, yarn: &Yarn, max_position: usize) {
        self.factor();
        if yarn.attention_factor.is_some_and(|x| x < 0.0) {
            let got = self.show("attention_factor");
            self.add(format!(
                "`rope_parameters`'s attention_factor field must be a float greater than 0, got {got}"
            ));
        }
        if yarn.beta_fast < yarn.beta_slow {
            let (fast, slow) = (self.show("beta_fast"), self.show("beta_slow"));
            self.add(format!(
                "`rope_parameters`'s beta_fast field must be greater than beta_slow, got beta_fast={fast} \
                 (defaults to 32 if None) and beta_slow={slow} (defaults to 1 if None)"
            ));
        }
        let implicit = max_position as f64 / yarn.original_max_position_embeddings;
        if yarn.factor != Some(implicit) && implicit != 1.0 {
            let (factor, implicit) = (self.show("factor"), super::json::python_float(implicit));
            self.add(format!(
                "The explicitly set RoPE scaling factor (config.rope_parameters['factor'] = {factor}) does not match \
                 the ratio implicitly set by other parameters (implicit factor = post-yarn context length / pre-yarn \
                 context length = config.max_position_embeddings / \
                 config.rope_parameters['original_max_position_embeddings'] = {implicit}). Using the explicit factor \
                 ({factor}) in YaRN. This may cause unexpected behaviour in model usage, please correct the \
                 'original_max_position_embeddings' fields in the model config."
            ));
        }
    }

    fn longrope(&mut self, long: &LongRope, expected: usize) {
        for (key, len) in
            [("short_factor", long.short_factor.len()), ("long_factor", long.long_factor.len())]
        {
            if len != expected {
                self.add(format!(
                    "`rope_parameters`'s {key} field must have length {expected}, got {len}"
                ));
            }
        }
        match long.factor {
            None => self.add(
                "This model config has set a `rope_parameters['original_max_position_embeddings']` field, to be used \
                 together with `max_position_embeddings` to determine a scaling factor. Please set the `factor` field \
                 of `rope_parameters`with this ratio instead -- we recommend the use of this field over \
                 `original_max_position_embeddings`, as it is compatible with most model architectures.",
            ),
            Some(_) => self.factor(),
        }
        if long.attention_factor.is_some_and(|x| x < 0.0) {
            let got = self.show("attention_factor");
            self.add(format!(
                "`rope_parameters`'s attention_factor field must be a float or int greater than 0, got {got}"
            ));
        }
    }

    fn llama3(&mut self, max_position: usize) {
        self.factor();
        if self.number("high_freq_factor") <= self.number("low_freq_factor") {
            let (high, low) = (self.show("high_freq_factor"), self.show("low_freq_factor"));
            self.add(format!(
                "`rope_parameters`'s high_freq_factor field must be greater than low_freq_factor, got \
                 high_freq_factor={high} and low_freq_factor={low}"
            ));
        }
        if self.keys.get(ORIGINAL).is_none_or(|v| !v.is_u64()) {
            let got = self.show(ORIGINAL);
            self.add(format!(
                "`rope_parameters`'s original_max_position_embeddings field must be an integer, got {got}"
            ));
        }
        if self.number(ORIGINAL).is_some_and(|original| original >= max_position as f64) {
            let got = self.show(ORIGINAL);
            self.add(format!(
                "`rope_parameters`'s original_max_position_embeddings field must be less than max_position_embeddings, \
                 got {got} and max_position_embeddings={max_position}"
            ));
        }
    }
}
