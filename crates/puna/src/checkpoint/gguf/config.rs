//! The configuration that a GGUF file's metadata describes. Keys `llama.*` and tensor shapes
//! enter, a checked [`LlamaConfig`] leaves. A file whose keys ask for another computation than
//! LLaMA's is refused.

use serde_json::{Map, Value, json};

use super::super::TensorMap;
use super::super::error::{CheckpointError, Fault};
use super::super::tensor::Encoding;
use super::metadata::Metadata;
use super::tokenizer::token_id;
use crate::config::{ConfigError, LlamaConfig, RopeParameters, TokenIds};

/// Keys that change the computation when they are not zero.
const NOT_LLAMA: [&str; 9] = [
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.attention.scale",
    "llama.attention.sliding_window",
    "llama.attention.clamp_kqv",
    "llama.attention.max_alibi_bias",
    "llama.logit_scale",
    "llama.embedding_scale",
    "llama.residual_scale",
];

pub(super) fn read(
    metadata: &Metadata,
    tensors: &TensorMap,
) -> Result<LlamaConfig, CheckpointError> {
    check_architecture(metadata)?;
    let mut config = LlamaConfig {
        hidden_size: required(metadata, "embedding_length")?,
        intermediate_size: required(metadata, "feed_forward_length")?,
        num_hidden_layers: required(metadata, "block_count")?,
        num_attention_heads: required(metadata, "attention.head_count")?,
        max_position_embeddings: required(metadata, "context_length")?,
        rms_norm_eps: required_float(metadata, "attention.layer_norm_rms_epsilon")?,
        architectures: vec!["LlamaForCausalLM".to_owned()],
        tie_word_embeddings: !tensors.contains_key("output.weight"),
        attention_bias: has_bias(tensors, ".attn_"),
        mlp_bias: has_bias(tensors, ".ffn_"),
        ..LlamaConfig::default()
    };
    let heads = config.num_attention_heads;
    config.num_key_value_heads = size(metadata, "attention.head_count_kv")?.unwrap_or(heads);
    config.head_dim = head_dim(metadata, &config)?;
    config.vocab_size = vocab_size(metadata, tensors)?;
    let id = |name| token_id(metadata, name).map(|id| id.map(i64::from));
    config.bos_token_id = id("bos")?;
    config.pad_token_id = id("padding")?;
    config.eos_token_id = ends(id("eos")?, id("eot")?);
    config.dtype = dtype(tensors).map(str::to_owned);
    config.rope_parameters = rope(metadata, tensors, &config)?;
    config.validate().map_err(|error| config_error(metadata, error))?;
    Ok(config)
}

fn check_architecture(metadata: &Metadata) -> Result<(), CheckpointError> {
    const KEY: &str = "general.architecture";
    let name = metadata.text(KEY)?.ok_or_else(|| metadata.missing(KEY))?;
    if name != "llama" {
        return Err(metadata.error(KEY, Fault::NotALlama(name.to_owned())));
    }
    for key in NOT_LLAMA {
        // Whatever the type: a number that is there and not zero is not LLaMA's.
        let set = match metadata.get(key) {
            None => false,
            Some(_) => match (metadata.unsigned(key), metadata.float(key)) {
                (Ok(n), _) => n != Some(0),
                (_, Ok(x)) => x != Some(0.0),
                (Err(error), Err(_)) => return Err(error),
            },
        };
        if set {
            return Err(metadata.error(key, Fault::NotALlama(key.to_owned())));
        }
    }
    if metadata.boolean("llama.attention.causal")? == Some(false) {
        let key = "llama.attention.causal";
        return Err(metadata.error(key, Fault::NotALlama("attention.causal = false".to_owned())));
    }
    Ok(())
}

fn config_error(metadata: &Metadata, error: ConfigError) -> CheckpointError {
    let key = match error.field() {
        "vocab_size" => "llama.vocab_size",
        "hidden_size" => "llama.embedding_length",
        "intermediate_size" => "llama.feed_forward_length",
        "num_hidden_layers" => "llama.block_count",
        "num_attention_heads" => "llama.attention.head_count",
        "num_key_value_heads" => "llama.attention.head_count_kv",
        "head_dim" => "llama.attention.key_length",
        "max_position_embeddings" => "llama.context_length",
        "rms_norm_eps" => "llama.attention.layer_norm_rms_epsilon",
        "rope_parameters.rope_theta" => "llama.rope.freq_base",
        "rope_parameters.factor" => "llama.rope.scaling.factor",
        _ => "llama.rope.scaling",
    };
    metadata.error(key, Fault::Config(error))
}

fn size(metadata: &Metadata, name: &str) -> Result<Option<usize>, CheckpointError> {
    let key = format!("llama.{name}");
    let value = metadata.unsigned(&key)?;
    value
        .map(|n| {
            // Beyond 32 bits no size is believed; the configuration's own limits are narrower.
            let limit = u64::from(u32::MAX);
            usize::try_from(n)
                .ok()
                .filter(|_| n <= limit)
                .ok_or_else(|| metadata.error(&key, Fault::TooLarge { value: n, limit }))
        })
        .transpose()
}

fn required(metadata: &Metadata, name: &str) -> Result<usize, CheckpointError> {
    match size(metadata, name)? {
        Some(0) | None => {
            let key = format!("llama.{name}");
            let why = "the metadata lacks this key, or it is 0".to_owned();
            Err(metadata.error(&key, Fault::Malformed(why)))
        }
        Some(n) => Ok(n),
    }
}

fn required_float(metadata: &Metadata, name: &str) -> Result<f64, CheckpointError> {
    let key = format!("llama.{name}");
    metadata.float(&key)?.ok_or_else(|| metadata.missing(&key))
}

fn head_dim(metadata: &Metadata, config: &LlamaConfig) -> Result<usize, CheckpointError> {
    let default = config.hidden_size / config.num_attention_heads;
    let keys = size(metadata, "attention.key_length")?.unwrap_or(default);
    let values = size(metadata, "attention.value_length")?.unwrap_or(keys);
    if keys != values {
        let key = "llama.attention.value_length";
        let name = format!("a head of {keys} for keys and {values} for values");
        return Err(metadata.error(key, Fault::NotALlama(name)));
    }
    Ok(keys)
}

/// Rows of the embedding, which the metadata must not contradict.
fn vocab_size(metadata: &Metadata, tensors: &TensorMap) -> Result<usize, CheckpointError> {
    let said = size(metadata, "vocab_size")?;
    let rows = tensors.get("token_embd.weight").and_then(|t| t.shape.first().copied());
    match (said, rows) {
        (Some(said), _) => Ok(said),
        (None, Some(rows)) => Ok(rows),
        (None, None) => Err(metadata.missing("llama.vocab_size")),
    }
}

fn has_bias(tensors: &TensorMap, part: &str) -> bool {
    tensors.keys().any(|name| name.contains(part) && name.ends_with(".bias"))
}

fn ends(eos: Option<i64>, eot: Option<i64>) -> Option<TokenIds> {
    match (eos, eot) {
        (Some(eos), Some(eot)) if eos != eot => Some(TokenIds::Many(vec![eos, eot])),
        (Some(id), _) | (None, Some(id)) => Some(TokenIds::One(id)),
        (None, None) => None,
    }
}

/// The type that matrices unpack to best: their own where it is plain, else `float32`.
fn dtype(tensors: &TensorMap) -> Option<&'static str> {
    use puna_kernels::Format;
    let encoding = tensors.get("token_embd.weight").map(|tensor| tensor.encoding)?;
    Some(match encoding {
        Encoding::Weight(Format::F16) => "float16",
        Encoding::Weight(Format::Bf16) => "bfloat16",
        _ => "float32",
    })
}

/// The RoPE keys in the form of `config.json`.
fn rope(
    metadata: &Metadata,
    tensors: &TensorMap,
    config: &LlamaConfig,
) -> Result<RopeParameters, CheckpointError> {
    const KIND: &str = "llama.rope.scaling.type";
    let mut keys = Map::new();
    let theta = metadata.float("llama.rope.freq_base")?.unwrap_or(RopeParameters::DEFAULT_THETA);
    keys.insert("rope_theta".to_owned(), json!(theta));
    if let Some(rotary_dim) = size(metadata, "rope.dimension_count")?
        && rotary_dim != config.head_dim
    {
        let partial = rotary_dim as f64 / config.head_dim as f64;
        keys.insert("partial_rotary_factor".to_owned(), json!(partial));
    }
    let factor = metadata.float("llama.rope.scaling.factor")?;
    let factor = factor.or(metadata.float("llama.rope.scale_linear")?).filter(|x| *x != 0.0);
    // LongRoPE's two sets of divisors are tensors, and need no key that says so.
    let long = divisors(tensors, "rope_factors_long.weight")?;
    let short = divisors(tensors, "rope_factors_short.weight")?;
    let kind = match (metadata.text(KIND)?, long, short) {
        (_, Some(long), Some(short)) => {
            keys.insert("long_factor".to_owned(), json!(long));
            keys.insert("short_factor".to_owned(), json!(short));
            "longrope"
        }
        (Some("longrope"), ..) => {
            let name = "rope_factors_long.weight, rope_factors_short.weight".to_owned();
            return Err(metadata.error(KIND, Fault::MissingTensors(vec![name])));
        }
        (Some("yarn"), ..) => "yarn",
        (Some("linear"), ..) => "linear",
        (None, ..) if factor.is_some_and(|x| x != 1.0) => "linear",
        (Some("none") | None, ..) => "default",
        (Some(other), ..) => {
            let why = format!(
                "the RoPE scaling '{other:.40}' is not known; it may be newer than this program"
            );
            return Err(metadata.error(KIND, Fault::Unsupported(why)));
        }
    };
    keys.insert("rope_type".to_owned(), json!(kind));
    if kind != "default" {
        stretch(metadata, kind, factor, &mut keys)?;
    }
    RopeParameters::from_keys(keys, config.max_position_embeddings)
        .map_err(|error| config_error(metadata, error))
}

/// The numbers of a kind that stretches frequencies.
fn stretch(
    metadata: &Metadata,
    kind: &str,
    factor: Option<f64>,
    keys: &mut Map<String, Value>,
) -> Result<(), CheckpointError> {
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            keys.insert(key.to_owned(), value);
        }
    };
    if kind == "linear" {
        put("factor", Some(json!(factor.unwrap_or(1.0))));
        return Ok(());
    }
    let original = metadata.unsigned("llama.rope.scaling.original_context_length")?;
    put("original_max_position_embeddings", original.map(Value::from));
    let mut attention = metadata.float("llama.rope.scaling.attn_factor")?;
    if kind == "longrope" {
        put("factor", factor.map(Value::from));
        put("attention_factor", attention.map(Value::from));
        return Ok(());
    }
    let factor = factor.unwrap_or(1.0);
    put("factor", Some(json!(factor)));
    for (key, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        put(key, metadata.float(&format!("llama.rope.scaling.{name}"))?.map(Value::from));
    }
    // ggml multiplies its own factor by the usual one, Transformers replaces that.
    let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
    attention = attention.map(|own| own * usual);
    put("attention_factor", attention.map(Value::from));
    Ok(())
}

/// Values of a small tensor that divides frequencies.
fn divisors(tensors: &TensorMap, name: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
    tensors.get(name).map(|stored| Ok(stored.to_weight(name)?.to_f32())).transpose()
}
