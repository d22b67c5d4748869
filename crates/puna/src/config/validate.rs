//! Checks of a whole configuration: a [`LlamaConfig`] enters, an error or a list of warnings
//! leaves. The reader has checked types; here values are held against each other.

use puna_kernels::{Activation, Dtype};
use serde_json::Value;

use super::error::{ConfigError, ConfigWarning, repr};
use super::fields::check_size;
use super::json::python_float;
use super::{LlamaConfig, ProblemType};

/// The largest value of a size that is believed: some ten times the largest LLaMA's.
pub(super) fn limit(field: &str) -> usize {
    match field {
        "vocab_size" => 1 << 24,
        "hidden_size" => 1 << 20,
        "intermediate_size" => 1 << 22,
        "num_hidden_layers" => 1 << 12,
        "max_position_embeddings" => 1 << 31,
        // Heads, head_dim, labels.
        _ => 1 << 16,
    }
}

/// The non-linearity of a name.
pub(super) fn activation(name: &str) -> Result<Activation, ConfigError> {
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_10" => Activation::Gelu10,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        "relu6" => Activation::Relu6,
        "leaky_relu" => Activation::LeakyRelu,
        "linear" => Activation::Linear,
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        "mish" => Activation::Mish,
        "hardswish" => Activation::HardSwish,
        "laplace" => Activation::Laplace,
        "prelu" => {
            return Err(ConfigError::value(
                "hidden_act",
                "hidden_act 'prelu' has a trained slope in each block, which Puna does not read",
            ));
        }
        other => {
            let got = repr(&other.into());
            return Err(ConfigError::value(
                "hidden_act",
                format!("hidden_act {got} is not known; LLaMA's own is 'silu'"),
            ));
        }
    })
}

impl LlamaConfig {
    /// Checks what must hold for a model to be built. The reader calls this; call it again after
    /// changing fields.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_sizes()?;
        self.check_heads()?;
        self.check_numbers()?;
        self.activation()?;
        if self.problem_type == Some(ProblemType::SingleLabelClassification)
            && self.num_labels() == 1
        {
            return Err(ConfigError::value(
                "problem_type",
                "`problem_type=\"single_label_classification\"` requires `num_labels > 1`. For binary classification \
                 use `num_labels=2`, or use `problem_type=\"regression\"` for a single-output regression head.",
            ));
        }
        if let Some(attention) = self.extra.get("attn_implementation").and_then(Value::as_str)
            && self.output_attentions
            && attention != "eager"
        {
            return Err(ConfigError::value(
                "output_attentions",
                format!(
                    "The `output_attentions` attribute is not supported when using the `attn_implementation` set to \
                     {attention}. Please set it to 'eager' instead."
                ),
            ));
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("num_labels", self.num_labels()),
        ] {
            check_size(field, i64::try_from(value).unwrap_or(i64::MAX), limit(field))?;
        }
        Ok(())
    }

    fn check_heads(&self) -> Result<(), ConfigError> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !self.hidden_size.is_multiple_of(heads) {
            let message = format!(
                "The hidden size ({}) is not a multiple of the number of attention heads ({heads}).",
                self.hidden_size
            );
            return Err(ConfigError::value("hidden_size", message));
        }
        if !heads.is_multiple_of(kv_heads) {
            let message = format!(
                "The number of attention heads ({heads}) is not a multiple of the number of key-value heads \
                 ({kv_heads})."
            );
            return Err(ConfigError::value("num_key_value_heads", message));
        }
        let partial = self.rope_parameters.partial_rotary_factor().unwrap_or(1.0);
        if self.head_dim > 4
            && !self.head_dim.is_multiple_of(2)
            && self.rotary_dim() == self.head_dim
        {
            let message = format!(
                "RoPE requires an even rotary dimension, but got `head_dim`={} with \
                 `partial_rotary_factor`={} for `full_attention`.",
                self.head_dim,
                python_float(partial)
            );
            return Err(ConfigError::value("head_dim", message));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.initializer_range) {
            let message = format!(
                "Value must be greater or equal to 0.0 and smaller or equal to 1.0, got {}.",
                python_float(self.initializer_range)
            );
            return Err(ConfigError::value("initializer_range", message));
        }
        for (field, value) in
            [("rms_norm_eps", self.rms_norm_eps), ("attention_dropout", self.attention_dropout)]
        {
            if !(0.0..1.0).contains(&value) {
                let got = python_float(value);
                let message = format!("Field '{field}' must be at least 0 and below 1, got {got}");
                return Err(ConfigError::value(field, message));
            }
        }
        Ok(())
    }

    /// How many values of a head rotate, before an odd count is rounded up to whole pairs.
    pub(crate) fn rotary_dim(&self) -> usize {
        let partial = self.rope_parameters.partial_rotary_factor().unwrap_or(1.0);
        (self.head_dim as f64 * partial) as usize
    }

    /// Oddities that do not stop the model: say them to the user.
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        let mut found = Vec::new();
        if let Some(asked) = self.extra.get("num_labels").and_then(Value::as_i64)
            && usize::try_from(asked) != Ok(self.num_labels())
        {
            let message = format!(
                "You passed `num_labels={asked}` which is incompatible to the `id2label` map of length `{}`.",
                self.num_labels()
            );
            found.push(ConfigWarning::new("num_labels", message));
        }
        found.extend(self.token_warnings());
        let rotary_dim = self.rotary_dim();
        found.extend(self.rope_parameters.warnings(self.max_position_embeddings, rotary_dim));
        if let Some(name) = &self.dtype
            && Dtype::from_name(name).is_none()
        {
            let message = format!(
                "dtype '{name}' is none of float32, float16, bfloat16; the weights' own types are used"
            );
            found.push(ConfigWarning::new("dtype", message));
        }
        found
    }

    fn token_warnings(&self) -> Vec<ConfigWarning> {
        let last = self.vocab_size - 1;
        let named = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let named = named.into_iter().filter_map(|(field, id)| id.map(|id| (field, id)));
        let ends = self.eos_token_id.iter().flat_map(|ids| ids.as_slice());
        named
            .chain(ends.map(|id| ("eos_token_id", *id)))
            .filter(|(_, id)| self.in_vocabulary(*id).is_none())
            .map(|(field, id)| {
                let message = format!(
                    "Model config: {field} must be `None` or an integer within the vocabulary (between 0 and {last}), \
                     got {id}. This may result in unexpected behavior."
                );
                ConfigWarning::new(field, message)
            })
            .collect()
    }
}
