//! `generation_config.json`: how a model's makers want it sampled. Text enters; a
//! [`GenerationConfig`] with Transformers' defaults for what is absent or null leaves, and what
//! its user should know: fields that cannot be used, that have no effect, that nobody here acts
//! on.

use serde_json::{Map, Value};

use super::error::{ConfigError, ConfigWarning};
use super::fields::Fields;
use super::json::{self, python_float};
use super::{LlamaConfig, TokenIds};

/// When beam search stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// `false`: when no better candidate is likely.
    #[default]
    Heuristic,
    /// `true`: as soon as there are enough candidates.
    Enough,
    /// `"never"`: when no better candidate is possible.
    Never,
}

/// Settings of generation. Fields carry the names of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// Token that begins a text.
    pub bos_token_id: Option<i64>,
    /// Tokens that end a text.
    pub eos_token_id: Option<TokenIds>,
    /// Padding token.
    pub pad_token_id: Option<i64>,
    /// Longest text, prompt included; `max_new_tokens` wins over it.
    pub max_length: usize,
    /// Longest answer.
    pub max_new_tokens: Option<usize>,
    /// Shortest text, prompt included.
    pub min_length: usize,
    /// Shortest answer.
    pub min_new_tokens: Option<usize>,
    /// Sample, rather than take the likeliest token.
    pub do_sample: bool,
    /// Beams; 1 is no beam search.
    pub num_beams: usize,
    /// When beam search stops.
    pub early_stopping: EarlyStopping,
    /// Whether keys and values are kept.
    pub use_cache: bool,
    /// Divides the logits.
    pub temperature: f64,
    /// Keep so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens up to this mass.
    pub top_p: f64,
    /// Keep tokens at least this likely relative to the likeliest.
    pub min_p: Option<f64>,
    /// Keep the most typical tokens up to this mass.
    pub typical_p: f64,
    /// Cut below this probability.
    pub epsilon_cutoff: f64,
    /// Cut below this entropy-dependent probability.
    pub eta_cutoff: f64,
    /// Divides the logits of tokens already there.
    pub repetition_penalty: f64,
    /// Exponent on the length in a beam's score.
    pub length_penalty: f64,
    /// No sequence of so many tokens twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Answers for each prompt.
    pub num_return_sequences: usize,
    /// Tokens that a draft model proposes at once.
    pub num_assistant_tokens: usize,
    /// Keys that nobody here reads.
    pub extra: Map<String, Value>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
            max_length: 20,
            max_new_tokens: None,
            min_length: 0,
            min_new_tokens: None,
            do_sample: false,
            num_beams: 1,
            early_stopping: EarlyStopping::Heuristic,
            use_cache: true,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: None,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            length_penalty: 1.0,
            no_repeat_ngram_size: 0,
            num_return_sequences: 1,
            num_assistant_tokens: 20,
            extra: Map::new(),
        }
    }
}

impl GenerationConfig {
    /// The settings that a model without a file of its own has: its special tokens.
    pub fn from_model(config: &LlamaConfig) -> Self {
        Self {
            bos_token_id: config.bos_token_id,
            eos_token_id: config.eos_token_id.clone(),
            pad_token_id: config.pad_token_id,
            ..Self::default()
        }
    }

    /// Reads and checks the text of a `generation_config.json`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Self::take(Fields::parse(text)?)
    }

    /// The same, but a field that cannot be used is passed over with a warning: what the makers
    /// say about sampling is advice, and no reason to refuse a model.
    ///
    /// # Errors
    /// Where the text is no JSON object.
    pub fn from_json_with_warnings(text: &str) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let mut fields = Fields::parse(text)?;
        let mut warnings = Vec::new();
        loop {
            let error = match Self::take(fields.clone()) {
                Ok(config) => return Ok((config, warnings)),
                Err(error) => error,
            };
            // Every turn takes one field out, so that the loop ends.
            if fields.take(error.field()).is_none() {
                return Err(error);
            }
            let message = format!("generation_config.json: {error}; the field is passed over");
            warnings.push(ConfigWarning::new(error.field(), message));
        }
    }

    fn take(mut fields: Fields) -> Result<Self, ConfigError> {
        let d = Self::default();
        let config = Self {
            bos_token_id: fields.optional_integer("bos_token_id", None)?,
            eos_token_id: fields.token_ids("eos_token_id", None)?,
            pad_token_id: fields.optional_integer("pad_token_id", None)?,
            max_length: count(&mut fields, "max_length")?.unwrap_or(d.max_length),
            max_new_tokens: count(&mut fields, "max_new_tokens")?,
            min_length: count(&mut fields, "min_length")?.unwrap_or(d.min_length),
            min_new_tokens: count(&mut fields, "min_new_tokens")?,
            do_sample: fields.optional_boolean("do_sample", d.do_sample)?,
            num_beams: count(&mut fields, "num_beams")?.unwrap_or(d.num_beams),
            early_stopping: early_stopping(&mut fields)?,
            use_cache: fields.optional_boolean("use_cache", d.use_cache)?,
            temperature: fields.number("temperature", d.temperature)?,
            top_k: count(&mut fields, "top_k")?.unwrap_or(d.top_k),
            top_p: fields.number("top_p", d.top_p)?,
            min_p: optional_number(&mut fields, "min_p")?,
            typical_p: fields.number("typical_p", d.typical_p)?,
            epsilon_cutoff: fields.number("epsilon_cutoff", d.epsilon_cutoff)?,
            eta_cutoff: fields.number("eta_cutoff", d.eta_cutoff)?,
            repetition_penalty: fields.number("repetition_penalty", d.repetition_penalty)?,
            length_penalty: fields.number("length_penalty", d.length_penalty)?,
            no_repeat_ngram_size: count(&mut fields, "no_repeat_ngram_size")?
                .unwrap_or(d.no_repeat_ngram_size),
            num_return_sequences: count(&mut fields, "num_return_sequences")?
                .unwrap_or(d.num_return_sequences),
            num_assistant_tokens: count(&mut fields, "num_assistant_tokens")?
                .unwrap_or(d.num_assistant_tokens),
            extra: fields.rest(),
        };
        config.validate()?;
        config.read_stop_strings()?;
        Ok(config)
    }

    /// Texts that end an answer: `stop_strings`, one or a list, which [`GenerationConfig::extra`]
    /// keeps as it is spelt.
    pub fn stop_strings(&self) -> Vec<String> {
        self.read_stop_strings().unwrap_or_default()
    }

    fn read_stop_strings(&self) -> Result<Vec<String>, ConfigError> {
        const FIELD: &str = "stop_strings";
        match self.extra.get(FIELD) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(value) => value
                .as_array()
                .and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect())
                .ok_or_else(|| super::fields::mismatch(FIELD, "str or list[str]", value)),
        }
    }

    /// Names of fields that would change what is generated, differ from their default, and are
    /// not acted on.
    pub fn unheard(&self) -> Vec<&str> {
        let d = Self::default();
        let is_beam_search = self.num_beams != 1;
        let known = [
            ("num_beams", is_beam_search),
            ("early_stopping", is_beam_search && self.early_stopping != d.early_stopping),
            ("length_penalty", is_beam_search && self.length_penalty != d.length_penalty),
            ("num_return_sequences", self.num_return_sequences != 1),
            ("epsilon_cutoff", self.do_sample && self.epsilon_cutoff != d.epsilon_cutoff),
            ("eta_cutoff", self.do_sample && self.eta_cutoff != d.eta_cutoff),
        ];
        let known = known.into_iter().filter_map(|(field, is_set)| is_set.then_some(field));
        let others = UNHEARD.iter().filter(|(field, neutral)| {
            let value = self.extra.get(*field);
            value.is_some_and(|value| !is_neutral(value, *neutral))
        });
        known.chain(others.map(|(field, _)| *field)).collect()
    }

    /// Checks ranges. The reader calls this; call it again after changing fields.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("temperature", self.temperature, self.temperature >= 0.0),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0),
            ("length_penalty", self.length_penalty, self.length_penalty.is_finite()),
        ];
        let share = |field, x: f64| (field, x, (0.0..=1.0).contains(&x));
        let shares = [
            share("top_p", self.top_p),
            share("min_p", self.min_p.unwrap_or(0.0)),
            share("typical_p", self.typical_p),
            share("epsilon_cutoff", self.epsilon_cutoff),
            share("eta_cutoff", self.eta_cutoff),
        ];
        for (field, value, holds) in positive.into_iter().chain(shares) {
            if !(holds && value.is_finite()) {
                let got = python_float(value);
                let rule = "lies outside of its range; remove it or set it to its default";
                return Err(ConfigError::value(
                    field,
                    format!("Field '{field}' is {got}, which {rule}"),
                ));
            }
        }
        for (field, value) in
            [("num_beams", self.num_beams), ("num_return_sequences", self.num_return_sequences)]
        {
            if value == 0 {
                let message = format!("Field '{field}' must be at least 1, got 0");
                return Err(ConfigError::value(field, message));
            }
        }
        Ok(())
    }

    /// Sampling settings that have no effect, as Transformers words it.
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        if self.do_sample {
            return Vec::new();
        }
        let d = Self::default();
        let settings = [
            ("temperature", self.temperature, d.temperature),
            ("top_p", self.top_p, d.top_p),
            ("min_p", self.min_p.unwrap_or(0.0), 0.0),
            ("typical_p", self.typical_p, d.typical_p),
            ("top_k", self.top_k as f64, d.top_k as f64),
            ("epsilon_cutoff", self.epsilon_cutoff, d.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff, d.eta_cutoff),
        ];
        let changed = settings.into_iter().filter(|(_, value, default)| value != default);
        let warn = |(field, value, _): (&str, f64, f64)| {
            let got = if field == "top_k" { format!("{value}") } else { python_float(value) };
            let message = format!(
                "`do_sample` is not set to `True`. However, `{field}` is set to `{got}` -- this flag is only used in \
                 sample-based generation modes. You should set `do_sample=True` or unset `{field}`."
            );
            ConfigWarning::new(field, message)
        };
        changed.map(warn).collect()
    }

    /// The text of a `generation_config.json`: what differs from the defaults, and what nobody
    /// here reads.
    pub fn to_json(&self) -> String {
        let mut map = self.extra.clone();
        let d = Self::default();
        let mut put = |differs: bool, key: &str, value: Value| {
            if differs {
                map.insert(key.to_owned(), value);
            }
        };
        put(self.bos_token_id.is_some(), "bos_token_id", self.bos_token_id.into());
        let eos = self.eos_token_id.as_ref().map_or(Value::Null, TokenIds::to_json);
        put(self.eos_token_id.is_some(), "eos_token_id", eos);
        put(self.pad_token_id.is_some(), "pad_token_id", self.pad_token_id.into());
        put(self.max_new_tokens.is_some(), "max_new_tokens", self.max_new_tokens.into());
        put(self.min_new_tokens.is_some(), "min_new_tokens", self.min_new_tokens.into());
        put(self.do_sample, "do_sample", true.into());
        put(!self.use_cache, "use_cache", false.into());
        put(self.min_p.is_some(), "min_p", self.min_p.into());
        let stopping = match self.early_stopping {
            EarlyStopping::Heuristic => Value::Bool(false),
            EarlyStopping::Enough => Value::Bool(true),
            EarlyStopping::Never => "never".into(),
        };
        put(self.early_stopping != d.early_stopping, "early_stopping", stopping);
        for (key, value, default) in [
            ("max_length", self.max_length, d.max_length),
            ("min_length", self.min_length, d.min_length),
            ("num_beams", self.num_beams, d.num_beams),
            ("top_k", self.top_k, d.top_k),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size, d.no_repeat_ngram_size),
            ("num_return_sequences", self.num_return_sequences, d.num_return_sequences),
            ("num_assistant_tokens", self.num_assistant_tokens, d.num_assistant_tokens),
        ] {
            put(value != default, key, value.into());
        }
        for (key, value, default) in [
            ("temperature", self.temperature, d.temperature),
            ("top_p", self.top_p, d.top_p),
            ("typical_p", self.typical_p, d.typical_p),
            ("epsilon_cutoff", self.epsilon_cutoff, d.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff, d.eta_cutoff),
            ("repetition_penalty", self.repetition_penalty, d.repetition_penalty),
            ("length_penalty", self.length_penalty, d.length_penalty),
        ] {
            put(value != default, key, value.into());
        }
        json::to_text(&Value::Object(map))
    }
}

/// Fields of Transformers that act on generation and are nobody's here, each with the number that
/// switches it off.
const UNHEARD: [(&str, Option<f64>); 22] = [
    ("bad_words_ids", None),
    ("begin_suppress_tokens", None),
    ("constraints", None),
    ("diversity_penalty", Some(0.0)),
    ("dola_layers", None),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("exponential_decay_length_penalty", None),
    ("force_words_ids", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("guidance_scale", Some(1.0)),
    ("max_time", None),
    ("num_beam_groups", Some(1.0)),
    ("penalty_alpha", Some(0.0)),
    ("remove_invalid_values", None),
    ("renormalize_logits", None),
    ("sequence_bias", None),
    ("suppress_tokens", None),
    ("token_healing", None),
    ("top_h", Some(0.0)),
    ("watermarking_config", None),
];

/// Whether a value asks for nothing: null, false, an empty list or object, or the neutral number.
fn is_neutral(value: &Value, neutral: Option<f64>) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => neutral.is_some() && number.as_f64() == neutral,
        Value::Bool(true) | Value::String(_) => false,
    }
}

/// A count, or null.
fn count(fields: &mut Fields, field: &str) -> Result<Option<usize>, ConfigError> {
    // Longer than any text that a machine can hold.
    const MAX: i64 = 1 << 40;
    match fields.optional_integer(field, None)? {
        None => Ok(None),
        Some(x) if (0..=MAX).contains(&x) => Ok(usize::try_from(x).ok()),
        Some(x) => {
            let message = format!("Field '{field}' must be between 0 and {MAX}, got {x}");
            Err(ConfigError::value(field, message))
        }
    }
}

fn optional_number(fields: &mut Fields, field: &str) -> Result<Option<f64>, ConfigError> {
    if fields.peek(field).is_none_or(Value::is_null) {
        fields.take(field);
        return Ok(None);
    }
    fields.number(field, 0.0).map(Some)
}

fn early_stopping(fields: &mut Fields) -> Result<EarlyStopping, ConfigError> {
    match fields.take("early_stopping") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(EarlyStopping::Heuristic),
        Some(Value::Bool(true)) => Ok(EarlyStopping::Enough),
        Some(Value::String(s)) if s == "never" => Ok(EarlyStopping::Never),
        Some(other) => Err(super::fields::no_match("early_stopping", &other, &["bool", "str"])),
    }
}
