//! Where a fast tokenizer comes from: a folder, a `tokenizer.json`, a SentencePiece or tiktoken
//! file, or GGUF metadata.

use std::path::Path;

use super::added::{AddedToken, SpecialTokens};
use super::config::{TokenizerConfig, read_file};
use super::convert::{self, Llama3Specials};
use super::error::TokenizerError;
use super::fast::LlamaTokenizerFast;
use super::sentencepiece::SentencePiece;
use super::{GgufTokenizer, tokenizer_json};

impl LlamaTokenizerFast {
    /// Loads a folder: `tokenizer.json`, else `tokenizer.model` by conversion.
    ///
    /// # Errors
    /// Where there is none, or a file is broken or of a kind that LLaMA does not use.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let config = TokenizerConfig::from_dir(dir)?;
        let path = dir.join("tokenizer.json");
        let model_path = dir.join("tokenizer.model");
        let model = read_file(&model_path)?;
        if let Some(bytes) = read_file(&path)? {
            let mut tokenizer = Self::from_json(&bytes, &config, &path.display().to_string())?;
            tokenizer.model_file = model.filter(|bytes| !convert::is_tiktoken(bytes));
            return Ok(tokenizer);
        }
        let bytes = model.ok_or_else(|| TokenizerError::Missing { path: dir.to_owned() })?;
        let name = model_path.display().to_string();
        if convert::is_tiktoken(&bytes) {
            return Self::from_tiktoken(&bytes, Llama3Specials::V3_1, &config, &name);
        }
        Self::from_sentencepiece(&bytes, &config, &name)
    }

    /// Builds from the bytes of a `tokenizer.json`; `file` names it in errors.
    ///
    /// # Errors
    /// Where the bytes are broken or ask for what LLaMA does not use.
    pub fn from_json(
        bytes: &[u8],
        config: &TokenizerConfig,
        file: &str,
    ) -> Result<Self, TokenizerError> {
        let parts = tokenizer_json::parse(bytes, file)?;
        let mut tokenizer = Self::new(parts, file)?;
        tokenizer.apply(config, file)?;
        // The LLaMA classes write the template anew from their flags; others keep the file's.
        let class = config.tokenizer_class.as_deref();
        if matches!(class, Some("LlamaTokenizer" | "LlamaTokenizerFast")) {
            tokenizer.add_bos_token = config.add_bos_token.unwrap_or(true);
            tokenizer.add_eos_token = config.add_eos_token.unwrap_or(false);
            tokenizer.update_post_processor()?;
        }
        Ok(tokenizer)
    }

    /// Converts the bytes of a SentencePiece `tokenizer.model`; `file` names it in errors.
    ///
    /// # Errors
    /// Where the bytes are broken, or the model is not BPE.
    pub fn from_sentencepiece(
        bytes: &[u8],
        config: &TokenizerConfig,
        file: &str,
    ) -> Result<Self, TokenizerError> {
        let model = SentencePiece::from_bytes(bytes, file)?;
        let prefix = config.add_prefix_space.unwrap_or(true);
        let legacy = config.legacy.unwrap_or(true);
        let parts = convert::from_sentencepiece(&model, legacy, prefix, file)?;
        let mut tokenizer = Self::new(parts, file)?;
        tokenizer.model_file = Some(bytes.to_vec());
        tokenizer.apply(config, file)?;
        let name = |id: i64| {
            u32::try_from(id).ok().and_then(|id| model.id_to_piece(id)).map(str::to_owned)
        };
        let special = &mut tokenizer.special;
        if config.bos_token.is_none() {
            special.bos = name(model.proto().bos_id);
        }
        if config.eos_token.is_none() {
            special.eos = name(model.proto().eos_id);
        }
        if config.unk_token.is_none() {
            special.unk = name(model.proto().unk_id);
        }
        tokenizer.add_bos_token = config.add_bos_token.unwrap_or(true);
        tokenizer.add_eos_token = config.add_eos_token.unwrap_or(false);
        tokenizer.update_post_processor()?;
        Ok(tokenizer)
    }

    /// Converts the bytes of Llama 3's `tokenizer.model`; `file` names it in errors.
    ///
    /// # Errors
    /// Where a line is not a base64 token and its rank.
    pub fn from_tiktoken(
        bytes: &[u8],
        specials: Llama3Specials,
        config: &TokenizerConfig,
        file: &str,
    ) -> Result<Self, TokenizerError> {
        let mut tokenizer = Self::new(convert::from_tiktoken(bytes, specials, file)?, file)?;
        tokenizer.cuts_like_meta = true;
        tokenizer.special.bos = Some("<|begin_of_text|>".to_owned());
        tokenizer.special.eos = Some("<|end_of_text|>".to_owned());
        tokenizer.eot = tokenizer.token_to_id("<|eot_id|>");
        tokenizer.apply(config, file)?;
        tokenizer.add_bos_token = config.add_bos_token.unwrap_or(true);
        tokenizer.add_eos_token = config.add_eos_token.unwrap_or(false);
        tokenizer.update_post_processor()?;
        Ok(tokenizer)
    }

    /// Builds the byte-level tokenizer that GGUF metadata of model `gpt2` describes.
    ///
    /// # Errors
    /// Where the metadata contradicts itself or names an unknown pre-tokenizer.
    pub fn from_gguf(gguf: &GgufTokenizer) -> Result<Self, TokenizerError> {
        let (parts, add_bos) = convert::from_gguf(gguf)?;
        let mut tokenizer = Self::new(parts, "GGUF metadata tokenizer.ggml")?;
        let name = |id: Option<u32>| id.and_then(|id| gguf.tokens.get(id as usize)).cloned();
        tokenizer.special = SpecialTokens {
            bos: name(gguf.bos_token_id),
            eos: name(gguf.eos_token_id),
            unk: name(gguf.unk_token_id),
            pad: name(gguf.pad_token_id),
            additional: Vec::new(),
        };
        tokenizer.eot = gguf.eot_token_id;
        tokenizer.chat_template.clone_from(&gguf.chat_template);
        tokenizer.add_bos_token = gguf.add_bos_token.unwrap_or(add_bos);
        tokenizer.add_eos_token = gguf.add_eos_token.unwrap_or(false);
        tokenizer.update_post_processor()?;
        Ok(tokenizer)
    }

    /// Names and adds the tokens of a folder's configuration.
    fn apply(&mut self, config: &TokenizerConfig, file: &str) -> Result<(), TokenizerError> {
        self.split_special_tokens = config.split_special_tokens.unwrap_or(false);
        self.clean_up_tokenization_spaces = config.clean_up_tokenization_spaces.unwrap_or(false);
        self.chat_template.clone_from(&config.chat_template);
        let mut missing: Vec<AddedToken> =
            config.added_tokens.iter().map(|(_, token)| token.clone()).collect();
        let special = &mut self.special;
        for (slot, token) in [
            (&mut special.bos, &config.bos_token),
            (&mut special.eos, &config.eos_token),
            (&mut special.unk, &config.unk_token),
            (&mut special.pad, &config.pad_token),
        ] {
            if let Some(token) = token {
                *slot = token.as_ref().map(|token| token.content.clone());
                missing.extend(token.clone());
            }
        }
        for token in &config.additional_special_tokens {
            special.additional.push(token.content.clone());
            missing.push(token.clone());
        }
        let known = self.pipeline.get_added_vocabulary().get_vocab();
        missing.retain(|token| !known.contains_key(&token.content));
        self.add_tokens(&missing)?;
        for (id, token) in &config.added_tokens {
            let actual = self.token_to_id(&token.content);
            if actual != Some(*id) && !token.content.is_empty() {
                let what = format!(
                    "tokenizer_config.json gives {:?} the id {id}, but the tokenizer {actual:?}",
                    token.content
                );
                return Err(TokenizerError::malformed(file, what));
            }
        }
        Ok(())
    }
}
