//! The tokenizer that a GGUF file carries. Metadata enters, a [`GgufTokenizer`] of plain lists
//! leaves. Lists that belong together (tokens, scores, types) have one length, and no list is longer
//! than any vocabulary.

use super::super::error::{CheckpointError, Fault};
use super::metadata::{Metadata, Value};
use crate::tokenizer::GgufTokenizer;

/// Tokens of a vocabulary; the largest LLaMA has 128,256.
const MAX_TOKENS: usize = 1 << 22;

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
        remove_extra_whitespaces: metadata.boolean("tokenizer.ggml.remove_extra_whitespaces")?,
        chat_template: text("tokenizer.chat_template")?,
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
