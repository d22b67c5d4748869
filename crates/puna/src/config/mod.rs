//! `config.json` and `generation_config.json`: read in every spelling since 2023, checked, written
//! in the form of Transformers 5.
//!
//! Text enters, a [`LlamaConfig`] or a [`GenerationConfig`] leaves. Unknown keys are kept and
//! written again. Oddities that do not stop a model are values ([`ConfigWarning`]), never prints.

mod error;
mod fields;
mod generation;
mod json;
mod rope_parameters;
mod rope_warnings;
mod validate;

use std::collections::BTreeMap;

use puna_kernels::{Activation, Dtype};
use serde_json::{Map, Value, json};

pub use error::{ConfigError, ConfigWarning};
use fields::Fields;
pub use generation::{EarlyStopping, GenerationConfig};
pub(crate) use json::python_float;
pub use rope_parameters::{Llama3, LongRope, RopeKind, RopeParameters, Yarn};

/// Keys of [`LlamaConfig::extra`] that are checked and never written.
const NOT_WRITTEN: [&str; 2] = ["attn_implementation", "num_labels"];

/// One token id or several. Files hold ids outside the vocabulary too, such as -1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenIds {
    /// A number in the file.
    One(i64),
    /// A list in the file.
    Many(Vec<i64>),
}

impl TokenIds {
    /// The ids in the file's order.
    pub fn as_slice(&self) -> &[i64] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::One(id) => (*id).into(),
            Self::Many(ids) => ids.clone().into(),
        }
    }
}

/// What a classification head is trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemType {
    /// Mean squared error on each label.
    Regression,
    /// One label out of many.
    SingleLabelClassification,
    /// Any number of labels.
    MultiLabelClassification,
}

impl ProblemType {
    /// The name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Regression => "regression",
            Self::SingleLabelClassification => "single_label_classification",
            Self::MultiLabelClassification => "multi_label_classification",
        }
    }

    /// Reads [`ProblemType::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Regression, Self::SingleLabelClassification, Self::MultiLabelClassification]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// The shape of a LLaMA and what belongs to it. Fields carry the names of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// The gate's non-linearity, by its name in the file; [`LlamaConfig::activation`] reads it.
    pub hidden_act: String,
    /// Trained context.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Added to the mean of squares in each norm.
    pub rms_norm_eps: f64,
    /// Whether generation keeps keys and values.
    pub use_cache: bool,
    /// Padding token.
    pub pad_token_id: Option<i64>,
    /// Token that begins a text.
    pub bos_token_id: Option<i64>,
    /// Tokens that end a text.
    pub eos_token_id: Option<TokenIds>,
    /// Slices that Transformers 4 computed linear layers in; changes only rounding, and is kept
    /// for the file's sake.
    pub pretraining_tp: Option<i64>,
    /// Whether `lm_head` shares the embedding.
    pub tie_word_embeddings: bool,
    /// Rotary positions.
    pub rope_parameters: RopeParameters,
    /// Whether q, k, v and o have a bias.
    pub attention_bias: bool,
    /// Dropout on attention probabilities in training.
    pub attention_dropout: f64,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Class names, such as `LlamaForCausalLM`.
    pub architectures: Vec<String>,
    /// Type of the weights, as `float16`; [`LlamaConfig::dtype`] reads it.
    pub dtype: Option<String>,
    /// Names of the labels of a classification head.
    pub id2label: BTreeMap<u32, String>,
    /// The other way round; `None` where the file names only `id2label`.
    pub label2id: Option<BTreeMap<String, u32>>,
    /// What a classification head is trained for.
    pub problem_type: Option<ProblemType>,
    /// Whether models return hidden states unasked.
    pub output_hidden_states: bool,
    /// Whether models return attention probabilities unasked.
    pub output_attentions: bool,
    /// Whether models return named outputs.
    pub return_dict: bool,
    /// Version of Transformers that wrote the file.
    pub transformers_version: Option<String>,
    /// How the weights are quantised, if they are.
    pub quantization_config: Option<Value>,
    /// Keys that nobody here reads, and those of `attn_implementation` and `num_labels`, which are checked and
    /// never written.
    pub extra: Map<String, Value>,
}

impl Default for LlamaConfig {
    /// LLaMA 7B.
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            hidden_act: "silu".to_owned(),
            max_position_embeddings: 2048,
            initializer_range: 0.02,
            rms_norm_eps: 1e-6,
            use_cache: true,
            pad_token_id: None,
            bos_token_id: Some(1),
            eos_token_id: Some(TokenIds::One(2)),
            pretraining_tp: Some(1),
            tie_word_embeddings: false,
            rope_parameters: RopeParameters::default(),
            attention_bias: false,
            attention_dropout: 0.0,
            mlp_bias: false,
            architectures: Vec::new(),
            dtype: None,
            id2label: default_labels(2),
            label2id: Some(inverse(&default_labels(2))),
            problem_type: None,
            output_hidden_states: false,
            output_attentions: false,
            return_dict: true,
            transformers_version: None,
            quantization_config: None,
            extra: Map::new(),
        }
    }
}

impl LlamaConfig {
    /// Reads and checks the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::parse(text)?;
        match fields.text("model_type")? {
            Some(model_type) if model_type != "llama" => {
                return Err(ConfigError::NotALlama { model_type });
            }
            _ => {}
        }
        let mut config = Self::default();
        config.take_shape(&mut fields)?;
        config.take_tokens_and_flags(&mut fields)?;
        config.take_labels(&mut fields)?;
        config.rope_parameters = RopeParameters::take(&mut fields, config.max_position_embeddings)?;
        // Where it was saved from; Transformers drops these too.
        for key in ["_name_or_path", "name_or_path", "_commit_hash"] {
            fields.take(key);
        }
        config.extra = fields.rest();
        config.validate()?;
        Ok(config)
    }

    fn take_shape(&mut self, fields: &mut Fields) -> Result<(), ConfigError> {
        use validate::limit;
        let mut size = |field, default| fields.size(field, default, limit(field));
        self.vocab_size = size("vocab_size", self.vocab_size)?;
        self.hidden_size = size("hidden_size", self.hidden_size)?;
        self.intermediate_size = size("intermediate_size", self.intermediate_size)?;
        self.num_hidden_layers = size("num_hidden_layers", self.num_hidden_layers)?;
        self.num_attention_heads = size("num_attention_heads", self.num_attention_heads)?;
        self.max_position_embeddings =
            size("max_position_embeddings", self.max_position_embeddings)?;
        let mut optional = |field| fields.optional_size(field, limit(field));
        self.num_key_value_heads =
            optional("num_key_value_heads")?.unwrap_or(self.num_attention_heads);
        self.head_dim =
            optional("head_dim")?.unwrap_or(self.hidden_size / self.num_attention_heads);
        if let Some(name) = fields.take("hidden_act") {
            self.hidden_act = match name {
                Value::String(name) => name,
                other => return Err(fields::mismatch("hidden_act", "str", &other)),
            };
        }
        self.initializer_range = fields.float("initializer_range", self.initializer_range)?;
        self.rms_norm_eps = fields.float("rms_norm_eps", self.rms_norm_eps)?;
        self.attention_bias = fields.boolean("attention_bias", self.attention_bias)?;
        self.attention_dropout = fields.number("attention_dropout", self.attention_dropout)?;
        self.mlp_bias = fields.boolean("mlp_bias", self.mlp_bias)?;
        self.tie_word_embeddings =
            fields.boolean("tie_word_embeddings", self.tie_word_embeddings)?;
        Ok(())
    }

    fn take_tokens_and_flags(&mut self, fields: &mut Fields) -> Result<(), ConfigError> {
        self.use_cache = fields.boolean("use_cache", self.use_cache)?;
        self.pad_token_id = fields.optional_integer("pad_token_id", self.pad_token_id)?;
        self.bos_token_id = fields.optional_integer("bos_token_id", self.bos_token_id)?;
        self.eos_token_id = fields.token_ids("eos_token_id", self.eos_token_id.take())?;
        self.pretraining_tp = fields.optional_integer("pretraining_tp", self.pretraining_tp)?;
        self.architectures = fields.texts("architectures")?;
        // The old spelling yields to the new one.
        let old = fields.text("torch_dtype")?;
        self.dtype = fields.text("dtype")?.or(old);
        if let Some(name) = &mut self.dtype
            && let Some(short) = name.strip_prefix("torch.")
        {
            *name = short.to_owned();
        }
        self.output_hidden_states = fields.optional_boolean("output_hidden_states", false)?;
        self.output_attentions = fields.optional_boolean("output_attentions", false)?;
        self.return_dict = fields.optional_boolean("return_dict", true)?;
        self.transformers_version = fields.text("transformers_version")?;
        self.quantization_config = fields.take("quantization_config").filter(|v| !v.is_null());
        Ok(())
    }

    fn take_labels(&mut self, fields: &mut Fields) -> Result<(), ConfigError> {
        let num_labels = fields.optional_integer("num_labels", None)?;
        let label2id = fields.take("label2id").filter(|v| !v.is_null());
        match fields.take("id2label").filter(|v| !v.is_null()) {
            None => {
                let count = num_labels.unwrap_or(2);
                let count = fields::check_size("num_labels", count, validate::limit("num_labels"))?;
                self.id2label = default_labels(count);
                self.label2id = Some(inverse(&self.id2label));
            }
            Some(value) => {
                self.id2label = read_id2label(&value)?;
                self.label2id = label2id.as_ref().map(read_label2id).transpose()?;
                // Kept for the warning where the two disagree.
                if let Some(count) = num_labels {
                    fields.put("num_labels", count.into());
                }
            }
        }
        if let Some(name) = fields.text("problem_type")? {
            let unknown = || {
                ConfigError::value(
                    "problem_type",
                    format!(
                        "Field 'problem_type' must be one of 'regression', 'single_label_classification', \
                         'multi_label_classification', got '{name}'"
                    ),
                )
            };
            self.problem_type = Some(ProblemType::from_name(&name).ok_or_else(unknown)?);
        }
        Ok(())
    }

    /// Labels of a classification head.
    pub fn num_labels(&self) -> usize {
        self.id2label.len()
    }

    /// The type that the file names for the weights; `None` where it names none or another one.
    pub fn dtype(&self) -> Option<Dtype> {
        self.dtype.as_deref().and_then(Dtype::from_name)
    }

    /// The non-linearity that [`LlamaConfig::hidden_act`] names.
    pub fn activation(&self) -> Result<Activation, ConfigError> {
        validate::activation(&self.hidden_act)
    }

    /// The end-of-text ids that lie inside the vocabulary.
    pub fn eos_ids(&self) -> Vec<u32> {
        let ids = self.eos_token_id.as_ref().map_or(&[][..], TokenIds::as_slice);
        ids.iter().filter_map(|id| self.in_vocabulary(*id)).collect()
    }

    /// `id` where it lies inside the vocabulary.
    pub fn in_vocabulary(&self, id: i64) -> Option<u32> {
        let inside = usize::try_from(id).is_ok_and(|id| id < self.vocab_size);
        if inside { u32::try_from(id).ok() } else { None }
    }

    /// The text of a `config.json`, in the form of Transformers 5.
    pub fn to_json(&self) -> String {
        let mut map = self.extra.clone();
        map.retain(|key, _| !NOT_WRITTEN.contains(&key.as_str()));
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("model_type", "llama".into());
        put("vocab_size", self.vocab_size.into());
        put("hidden_size", self.hidden_size.into());
        put("intermediate_size", self.intermediate_size.into());
        put("num_hidden_layers", self.num_hidden_layers.into());
        put("num_attention_heads", self.num_attention_heads.into());
        put("num_key_value_heads", self.num_key_value_heads.into());
        put("head_dim", self.head_dim.into());
        put("hidden_act", self.hidden_act.as_str().into());
        put("max_position_embeddings", self.max_position_embeddings.into());
        put("initializer_range", self.initializer_range.into());
        put("rms_norm_eps", self.rms_norm_eps.into());
        put("use_cache", self.use_cache.into());
        put("pad_token_id", self.pad_token_id.into());
        put("bos_token_id", self.bos_token_id.into());
        put("eos_token_id", self.eos_token_id.as_ref().map_or(Value::Null, TokenIds::to_json));
        put("pretraining_tp", self.pretraining_tp.into());
        put("tie_word_embeddings", self.tie_word_embeddings.into());
        put("rope_parameters", Value::Object(self.rope_parameters.keys().clone()));
        put("attention_bias", self.attention_bias.into());
        put("attention_dropout", self.attention_dropout.into());
        put("mlp_bias", self.mlp_bias.into());
        self.put_inherited(&mut map);
        json::to_text(&Value::Object(map))
    }

    /// Keys that are written only where they differ from their default.
    fn put_inherited(&self, map: &mut Map<String, Value>) {
        let mut put = |differs: bool, key: &str, value: Value| {
            if differs {
                map.insert(key.to_owned(), value);
            }
        };
        put(!self.architectures.is_empty(), "architectures", self.architectures.clone().into());
        put(self.dtype.is_some(), "dtype", self.dtype.clone().into());
        let labels = default_labels(2);
        let label2id = self.label2id.as_ref();
        put(self.id2label != labels, "id2label", json!(self.id2label));
        put(label2id != Some(&inverse(&labels)), "label2id", json!(label2id));
        put(
            self.problem_type.is_some(),
            "problem_type",
            self.problem_type.map(ProblemType::name).into(),
        );
        put(self.output_hidden_states, "output_hidden_states", true.into());
        put(self.output_attentions, "output_attentions", true.into());
        put(!self.return_dict, "return_dict", false.into());
        put(
            self.transformers_version.is_some(),
            "transformers_version",
            self.transformers_version.clone().into(),
        );
        put(
            self.quantization_config.is_some(),
            "quantization_config",
            self.quantization_config.clone().unwrap_or_default(),
        );
    }
}

fn default_labels(count: usize) -> BTreeMap<u32, String> {
    (0..count as u32).map(|i| (i, format!("LABEL_{i}"))).collect()
}

fn inverse(labels: &BTreeMap<u32, String>) -> BTreeMap<String, u32> {
    labels.iter().map(|(id, label)| (label.clone(), *id)).collect()
}

fn read_id2label(value: &Value) -> Result<BTreeMap<u32, String>, ConfigError> {
    let map = value.as_object().ok_or_else(|| fields::mismatch("id2label", "dict", value))?;
    let entry = |(key, label): (&String, &Value)| {
        let id = key.trim().parse().map_err(|_| {
            let message = format!("Field 'id2label' must have numbers as keys, got '{key}'");
            ConfigError::value("id2label", message)
        })?;
        // A label may be a number in the file; it names a class all the same.
        let label = label.as_str().map_or_else(|| label.to_string(), str::to_owned);
        Ok((id, label))
    };
    map.iter().map(entry).collect()
}

fn read_label2id(value: &Value) -> Result<BTreeMap<String, u32>, ConfigError> {
    let map = value.as_object().ok_or_else(|| fields::mismatch("label2id", "dict", value))?;
    let entry = |(label, id): (&String, &Value)| {
        // Some files quote the ids.
        let number = id.as_u64().or_else(|| id.as_str().and_then(|s| s.parse().ok()));
        let number = number.and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or_else(|| fields::mismatch("label2id", "int", id))?;
        Ok((label.clone(), number))
    };
    map.iter().map(entry).collect()
}
