//! The `tokenizer.ggml.*` keys of a GGUF file as plain values. They enter checked for type only,
//! and are held against each other here: lengths of lists, ids below the vocabulary. Settings
//! ([`TokenizerConfig`]) and added tokens leave, for the slow or the fast class.

use super::added::AddedToken;
use super::config::TokenizerConfig;
use super::error::TokenizerError;

/// Tokens of the largest vocabulary that is believed.
const MAX_TOKENS: usize = 1 << 22;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// A tokenizer as GGUF metadata holds it; `None` or empty where a key is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: "llama" or "gpt2".
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is cut before byte-level merging.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, in SentencePiece's numbering.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: "left right".
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`
    pub bos_token_id: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos_token_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`
    pub unk_token_id: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`
    pub pad_token_id: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`
    pub eot_token_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos_token: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos_token: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<String>,
}

impl GgufTokenizer {
    /// Refuses arrays of different lengths and ids without a token.
    pub(super) fn check(&self, file: &str) -> Result<(), TokenizerError> {
        let n = self.tokens.len();
        if n == 0 || n > MAX_TOKENS {
            return Err(TokenizerError::malformed(file, format!("tokens has {n} entries")));
        }
        for (name, length) in
            [("scores", self.scores.len()), ("token_type", self.token_types.len())]
        {
            if length != 0 && length != n {
                let what = format!("{name} has {length} entries, tokens has {n}");
                return Err(TokenizerError::malformed(file, what));
            }
        }
        for (name, id) in [
            ("bos", self.bos_token_id),
            ("eos", self.eos_token_id),
            ("unknown", self.unk_token_id),
            ("padding", self.pad_token_id),
            ("eot", self.eot_token_id),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                let what = format!("{name}_token_id {id} is not below {n}");
                return Err(TokenizerError::malformed(file, what));
            }
        }
        Ok(())
    }

    /// Control and user-defined tokens, which are found in the text before anything else.
    pub(super) fn added_tokens(&self) -> Vec<(u32, AddedToken)> {
        let mut added = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let special = match self.token_types.get(id) {
                Some(&(CONTROL | UNKNOWN)) => true,
                Some(&USER_DEFINED) => false,
                _ => continue,
            };
            let token = AddedToken { normalized: false, ..AddedToken::new(token, special) };
            added.push((id as u32, token));
        }
        added
    }

    /// The settings for the slow class; llama.cpp puts a space before every part of the text, as
    /// `legacy` does.
    pub(super) fn config(&self, unk_id: u32) -> TokenizerConfig {
        let named = |id: Option<u32>| {
            let token = id.and_then(|id| self.tokens.get(id as usize));
            Some(token.map(|token| AddedToken::new(token, true)))
        };
        TokenizerConfig {
            legacy: Some(true),
            add_bos_token: self.add_bos_token,
            add_eos_token: self.add_eos_token,
            bos_token: named(self.bos_token_id),
            eos_token: named(self.eos_token_id),
            unk_token: named(self.unk_token_id.or(Some(unk_id))),
            pad_token: named(self.pad_token_id),
            added_tokens: self.added_tokens(),
            chat_template: self.chat_template.clone(),
            ..TokenizerConfig::default()
        }
    }
}
