//! The tokenizer that a GGUF file carries, as plain parts. Metadata enters.

use super::super::error::{CheckpointError, Fault};
use super::metadata::{Metadata, Value};

/// Tokens of a vocabulary; the largest LLaMA has 128,256.
const MAX_TOKENS: usize = 1 << 22;

/// What the keys `tokenizer.*` hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// The algorithm: `llama` (SentencePiece), `gpt2` (byte-level BPE).
    pub model: String,
    /// Name of the rule that splits text before BPE.
    pub pre: Option<String>,
    /// Text of each token.
    pub tokens: Vec<String>,
    /// SentencePiece scores; as many as tokens, or none.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; as many as tokens, or
    /// none.
    pub token_types: Vec<i32>,
    /// Pairs of BPE, each `left right`, the likeliest first.
    pub merges: Vec<String>,
    /// Begins a text.
    pub bos_token_id: Option<u32>,
    /// Ends a text.
    pub eos_token_id: Option<u32>,
    /// Ends a turn of a chat.
    pub eot_token_id: Option<u32>,
    /// Stands for what cannot be written.
    pub unk_token_id: Option<u32>,
    /// Fills short rows of a batch.
    pub pad_token_id: Option<u32>,
    /// Whether encoding puts the first of these in front.
    pub add_bos_token: Option<bool>,
    /// Whether encoding puts the end behind.
    pub add_eos_token: Option<bool>,
    /// Whether SentencePiece puts a space in front of a text.
    pub add_space_prefix: Option<bool>,
    /// Template of a chat.
    pub chat_template: Option<String>,
    /// Further templates by name.
    pub named_chat_templates: Vec<(String, String)>,
}

/// Reads the parts; `None` where the file carries no tokenizer.
pub(super) fn read(metadata: &Metadata) -> Result<Option<GgufTokenizer>, CheckpointError> {
    let Some(model) = metadata.text("tokenizer.ggml.model")? else { return Ok(None) };
    if model == "none" || model == "no_vocab" {
        return Ok(None);
    }
    let tokens_key = "tokenizer.ggml.tokens";
    let tokens = metadata.texts(tokens_key)?.ok_or_else(|| metadata.missing(tokens_key))?;
    if tokens.len() > MAX_TOKENS {
        let fault = Fault::TooLarge { value: tokens.len() as u64, limit: MAX_TOKENS as u64 };
        return Err(metadata.error(tokens_key, fault));
    }
    let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    let token_types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    for (key, len) in
        [("tokenizer.ggml.scores", scores.len()), ("tokenizer.ggml.token_type", token_types.len())]
    {
        if len != 0 && len != tokens.len() {
            let why = format!("has {len} entries for {} tokens", tokens.len());
            return Err(metadata.error(key, Fault::Malformed(why)));
        }
    }
    let id = |name: &str| token_id(metadata, name);
    let text = |key: &str| metadata.text(key).map(|text| text.map(str::to_owned));
    Ok(Some(GgufTokenizer {
        model: model.to_owned(),
        pre: text("tokenizer.ggml.pre")?,
        tokens,
        scores,
        token_types,
        merges: metadata.texts("tokenizer.ggml.merges")?.unwrap_or_default(),
        bos_token_id: id("bos")?,
        eos_token_id: id("eos")?,
        eot_token_id: id("eot")?,
        unk_token_id: id("unknown")?,
        pad_token_id: id("padding")?,
        add_bos_token: metadata.boolean("tokenizer.ggml.add_bos_token")?,
        add_eos_token: metadata.boolean("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.boolean("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
        named_chat_templates: named_templates(metadata),
    }))
}

/// A special token's id; one beyond 32 bits stands for none, as ggml's -1 does.
pub(super) fn token_id(metadata: &Metadata, name: &str) -> Result<Option<u32>, CheckpointError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    if matches!(metadata.get(&key), Some(Value::Signed(n)) if *n < 0) {
        return Ok(None);
    }
    let id = metadata.unsigned(&key)?;
    Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX))
}

fn named_templates(metadata: &Metadata) -> Vec<(String, String)> {
    let named = metadata.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix("tokenizer.chat_template.")?;
        match value {
            Value::Text(text) => Some((name.to_owned(), text.as_str().to_owned())),
            _ => None,
        }
    });
    named.collect()
}
