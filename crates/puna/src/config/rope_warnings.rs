//! Oddities of RoPE parameters that do not stop a model, in Transformers' words. Parameters enter,
//! warnings leave.

use serde_json::{Map, Value};

use super::error::{ConfigWarning, quote, repr};
use super::rope_parameters::{LongRope, ORIGINAL, RopeKind, RopeParameters, Yarn};

impl RopeParameters {
    /// Oddities that do not stop a model; `rotary_dim` is how many values of a head rotate.
    pub(crate) fn warnings(&self, max_position: usize, rotary_dim: usize) -> Vec<ConfigWarning> {
        let mut found = Warnings { keys: self.keys(), list: Vec::new() };
        found.unused(self.kind());
        match self.kind() {
            RopeKind::Default if self.partial_rotary_factor().is_some_and(|p| p != 1.0) => found.add(
                "`rope_parameters`'s partial_rotary_factor is honoured here, but Transformers 5 ignores it for a LLaMA \
                 whose rope_type is 'default'",
            ),
            RopeKind::Default => {}
            RopeKind::Linear { .. } | RopeKind::Dynamic { .. } => found.factor(),
            RopeKind::Yarn(yarn) => found.yarn(yarn, max_position),
            RopeKind::LongRope(long) => found.longrope(long, rotary_dim / 2),
            RopeKind::Llama3(_) => found.llama3(max_position),
            RopeKind::Proportional { .. } => {
                if self.partial_rotary_factor().is_none() {
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
            RopeKind::Llama3(_) => &["factor", ORIGINAL, "low_freq_factor", "high_freq_factor"],
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
