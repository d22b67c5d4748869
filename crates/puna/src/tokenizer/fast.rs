//! `LlamaTokenizerFast`: a `tokenizer.json`, or another vocabulary in that form.
//!
//! The `tokenizers` crate finds added tokens, normalises, and merges; the template around the ids
//! and the decoder are this crate's own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{
    AddedToken as LibraryToken, DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizedString, PreTokenizer, Token, TokenizerImpl,
};

use super::added::{AddedToken, SpecialTokens};
use super::config::{TokenizerConfig, read_file};
use super::convert::{self, Llama3Specials};
use super::error::TokenizerError;
use super::fast_decode::{DecoderPlan, FastDecoder};
use super::sentencepiece::SentencePiece;
use super::slow::{named_part, save_model};
use super::splitter::Splitter;
use super::tokenizer_json::{self, Parts, Template, TemplatePart};
use super::{DecodeOptions, EncodeOptions, GgufTokenizer, Specials};

/// One model behind both pipelines.
#[derive(Clone, Debug)]
struct SharedModel(Arc<BPE>);

impl Model for SharedModel {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        self.0.tokenize(sequence)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        self.0.save(folder, prefix)
    }

    fn get_trainer(&self) -> BpeTrainer {
        self.0.get_trainer()
    }
}

#[derive(Clone, Debug)]
struct SharedSplitter(Arc<Splitter>);

impl PreTokenizer for SharedSplitter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        self.0.pre_tokenize(text)
    }
}

type Pipeline = TokenizerImpl<
    SharedModel,
    NormalizerWrapper,
    SharedSplitter,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A tokenizer in the form of `tokenizer.json`.
#[derive(Clone)]
pub struct LlamaTokenizerFast {
    /// Finds added tokens in the text.
    pipeline: Pipeline,
    /// Takes special tokens in the text for plain text.
    literal: Pipeline,
    decoder: DecoderPlan,
    template: Template,
    special: SpecialTokens,
    /// Skipped when decoding without special tokens.
    skipped: HashSet<u32>,
    /// The SentencePiece file that it was made from.
    model_file: Option<Vec<u8>>,
    /// Cut the text as Meta's Llama 3 code does.
    cuts_like_meta: bool,
    add_bos_token: bool,
    add_eos_token: bool,
    eot: Option<u32>,
    /// Added tokens in the text are plain text, unless a call says otherwise.
    pub split_special_tokens: bool,
    /// Decoding removes the spaces before punctuation, unless a call says otherwise.
    pub clean_up_tokenization_spaces: bool,
    /// The chat template that came with the tokenizer.
    pub chat_template: Option<String>,
}

impl std::fmt::Debug for LlamaTokenizerFast {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LlamaTokenizerFast")
            .field("len", &self.len())
            .field("special", &self.special)
            .field("template", &self.template)
            .field("decoder", &self.decoder)
            .finish_non_exhaustive()
    }
}

fn convert_error(file: &str) -> impl Fn(tokenizers::Error) -> TokenizerError {
    move |error| TokenizerError::malformed(file, error.to_string())
}

/// What encoding reports: our own error, or the crate's.
fn encode_error(error: tokenizers::Error) -> TokenizerError {
    match error.downcast::<TokenizerError>() {
        Ok(own) => *own,
        Err(other) => TokenizerError::Value(format!("the text cannot be encoded: {other}")),
    }
}

fn build_model(parts: &mut Parts, file: &str) -> Result<BPE, TokenizerError> {
    let longest = parts.vocab.keys().map(String::len).max().unwrap_or(0);
    if longest == 0 {
        return Err(TokenizerError::malformed(file, "the vocabulary is empty"));
    }
    for (index, (left, right)) in parts.merges.iter().enumerate() {
        // The crate's builder relies on merged tokens being in the vocabulary.
        if left.len().saturating_add(right.len()) > longest {
            let what = format!("merges[{index}] ({left:?}, {right:?}) makes no token");
            return Err(TokenizerError::malformed(file, what));
        }
    }
    let vocab = std::mem::take(&mut parts.vocab);
    let mut builder = BPE::builder()
        .vocab_and_merges::<VocabMap>(
            vocab.into_iter().collect(),
            std::mem::take(&mut parts.merges),
        )
        .fuse_unk(parts.fuse_unk)
        .byte_fallback(parts.byte_fallback)
        .ignore_merges(parts.ignore_merges);
    if let Some(unk) = parts.unk_token.take() {
        builder = builder.unk_token(unk);
    }
    builder.build().map_err(convert_error(file))
}

type VocabMap = tokenizers::models::bpe::Vocab;

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

    fn new(mut parts: Parts, file: &str) -> Result<Self, TokenizerError> {
        let model = SharedModel(Arc::new(build_model(&mut parts, file)?));
        let mut pipeline = Pipeline::new(model);
        let normalizer = parts.normalizer.take();
        pipeline.with_normalizer(normalizer).map_err(convert_error(file))?;
        let splitter = SharedSplitter(Arc::new(std::mem::take(&mut parts.splitter)));
        pipeline.with_pre_tokenizer(Some(splitter));
        pipeline
            .add_tokens(parts.added.iter().map(|(_, token)| library_token(token)))
            .map_err(convert_error(file))?;
        for (id, token) in &parts.added {
            let actual = pipeline.token_to_id(&token.content);
            if actual != Some(*id) && !token.content.is_empty() {
                let what = format!(
                    "added_tokens gives {:?} the id {id}, but the vocabulary leads to {actual:?}",
                    token.content
                );
                return Err(TokenizerError::malformed(file, what));
            }
        }
        let mut literal = pipeline.clone();
        literal.set_encode_special_tokens(true);
        let mut tokenizer = Self {
            pipeline,
            literal,
            decoder: parts.decoder.take().unwrap_or(DecoderPlan::Spaced),
            template: std::mem::take(&mut parts.template),
            special: SpecialTokens::default(),
            skipped: HashSet::new(),
            model_file: None,
            cuts_like_meta: false,
            add_bos_token: false,
            add_eos_token: false,
            eot: None,
            split_special_tokens: false,
            clean_up_tokenization_spaces: false,
            chat_template: None,
        };
        tokenizer.refresh_skipped();
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

    /// Adds tokens; returns how many are new to the vocabulary.
    ///
    /// # Errors
    /// Where two tokens are the same text after normalisation.
    pub fn add_tokens(&mut self, tokens: &[AddedToken]) -> Result<usize, TokenizerError> {
        let before = self.len();
        for pipeline in [&mut self.pipeline, &mut self.literal] {
            pipeline
                .add_tokens(tokens.iter().map(library_token))
                .map_err(|error| TokenizerError::Value(error.to_string()))?;
        }
        for token in tokens.iter().filter(|token| token.special) {
            if !self.special.all().contains(&token.content.as_str()) {
                self.special.additional.push(token.content.clone());
            }
        }
        self.refresh_skipped();
        Ok(self.len() - before)
    }

    fn refresh_skipped(&mut self) {
        let added = self.pipeline.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special);
        self.skipped = special.map(|(&id, _)| id).collect();
    }

    /// Names the special tokens anew; `update_post_processor` makes a new BOS or EOS take effect.
    ///
    /// # Errors
    /// Where a new token collides with an added one.
    pub fn set_special_tokens(&mut self, special: SpecialTokens) -> Result<(), TokenizerError> {
        let added = self.pipeline.get_added_vocabulary().get_vocab();
        let missing: Vec<AddedToken> = special
            .all()
            .into_iter()
            .filter(|token| !added.contains_key(*token))
            .map(|token| AddedToken::new(token, true))
            .collect();
        self.special = special;
        self.add_tokens(&missing)?;
        Ok(())
    }

    /// Whether encoding starts with BOS; writes the template anew.
    ///
    /// # Errors
    /// Where there is no BOS token.
    pub fn set_add_bos_token(&mut self, add: bool) -> Result<(), TokenizerError> {
        self.add_bos_token = add;
        self.update_post_processor()
    }

    /// Whether encoding ends with EOS; writes the template anew.
    ///
    /// # Errors
    /// Where there is no EOS token.
    pub fn set_add_eos_token(&mut self, add: bool) -> Result<(), TokenizerError> {
        self.add_eos_token = add;
        self.update_post_processor()
    }

    /// Writes the template from `add_bos_token`, `add_eos_token` and the tokens' present ids.
    ///
    /// # Errors
    /// Where a token is to be added and there is none.
    pub fn update_post_processor(&mut self) -> Result<(), TokenizerError> {
        let bos = named_part(self.add_bos_token, self.bos_token_id(), "bos")?;
        let eos = named_part(self.add_eos_token, self.eos_token_id(), "eos")?;
        let part = |second: bool| {
            let type_id = u32::from(second);
            let special =
                |id: Option<u32>| id.map(|id| TemplatePart::Special { ids: vec![id], type_id });
            let sequence = Some(TemplatePart::Sequence { second, type_id });
            [special(bos), sequence, special(eos)].into_iter().flatten()
        };
        self.template = Template {
            single: part(false).collect(),
            pair: part(false).chain(part(true)).collect(),
        };
        Ok(())
    }

    /// Ids of `text`.
    ///
    /// # Errors
    /// Where the file's pattern needs too many steps for this text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let split_special = options.split_special_tokens.unwrap_or(self.split_special_tokens);
        let plain = self.encode_plain(text, split_special)?;
        if options.specials == Specials::None {
            return Ok(plain);
        }
        let mut ids = self.build_inputs_with_special_tokens(&plain, None);
        let has_bos = options.specials == Specials::AddUnlessPresent
            && !split_special
            && self.starts_with_bos(text);
        let doubled = ids.len() > 1 && ids[0] == ids[1] && Some(ids[0]) == self.bos_token_id();
        if has_bos && doubled {
            ids.remove(0);
        }
        Ok(ids)
    }

    fn encode_plain(&self, text: &str, split_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let pipeline = if split_special { &self.literal } else { &self.pipeline };
        let chunks = if self.cuts_like_meta { convert::meta_chunks(text) } else { vec![text] };
        let mut ids = Vec::new();
        for chunk in chunks {
            let encoding = pipeline.encode_fast(chunk, false).map_err(encode_error)?;
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok(ids)
    }

    /// Whether the text itself begins with BOS, as the output of a chat template does.
    pub fn starts_with_bos(&self, text: &str) -> bool {
        self.special.bos.as_ref().is_some_and(|bos| !bos.is_empty() && text.starts_with(bos))
    }

    /// Text of `ids`; ids that the tokenizer does not know are left out, as Transformers does.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        let mut decoder = self.decoder(options);
        let mut text = String::new();
        for &id in ids {
            self.push(&mut decoder, id, options.skip_special_tokens, &mut text);
        }
        decoder.finish(&mut text);
        text
    }

    pub(super) fn decoder(&self, options: DecodeOptions) -> FastDecoder {
        let clean_up =
            options.clean_up_tokenization_spaces.unwrap_or(self.clean_up_tokenization_spaces);
        FastDecoder::new(&self.decoder, clean_up)
    }

    pub(super) fn push(&self, decoder: &mut FastDecoder, id: u32, skip: bool, out: &mut String) {
        if skip && self.skipped.contains(&id) {
            return;
        }
        // The content as it was added, as Transformers 4 decodes, not its normalised form.
        let added = self.pipeline.get_added_vocabulary().get_added_tokens_decoder();
        if let Some(token) = added.get(&id) {
            decoder.push(&token.content, out);
        } else if let Some(token) = self.pipeline.get_model().id_to_token(id) {
            decoder.push(&token, out);
        }
    }

    /// Text of tokens, as `decode` joins them.
    pub fn convert_tokens_to_string(&self, tokens: &[&str]) -> String {
        let mut decoder = FastDecoder::new(&self.decoder, false);
        let mut text = String::new();
        for token in tokens {
            decoder.push(token, &mut text);
        }
        decoder.finish(&mut text);
        text
    }

    /// Text of a token by id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        let added = self.pipeline.get_added_vocabulary().get_added_tokens_decoder();
        let added = added.get(&id).map(|token| token.content.clone());
        added.or_else(|| self.pipeline.get_model().id_to_token(id))
    }

    /// Id of a token by its text, if it has one.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.pipeline.token_to_id(token)
    }

    /// Ids of tokens; the unknown id, where there is one, for text that is no token.
    pub fn convert_tokens_to_ids(&self, tokens: &[&str]) -> Vec<Option<u32>> {
        tokens.iter().map(|token| self.token_to_id(token).or(self.unk_token_id())).collect()
    }

    /// Tokens of ids, without the special ones where asked.
    ///
    /// # Errors
    /// Names the first id that the tokenizer does not know.
    pub fn convert_ids_to_tokens(
        &self,
        ids: &[u32],
        skip_special_tokens: bool,
    ) -> Result<Vec<String>, TokenizerError> {
        let special = self.all_special_ids();
        let kept = ids.iter().filter(|id| !(skip_special_tokens && special.contains(id)));
        kept.map(|&id| {
            self.id_to_token(id).ok_or(TokenizerError::UnknownId { id, len: self.len() })
        })
        .collect()
    }

    /// The template around one sequence or two, as the post-processor now stands.
    pub fn build_inputs_with_special_tokens(&self, a: &[u32], b: Option<&[u32]>) -> Vec<u32> {
        let parts = if b.is_some() { &self.template.pair } else { &self.template.single };
        let mut ids = Vec::with_capacity(a.len() + b.map_or(0, <[u32]>::len) + 4);
        for part in parts {
            match part {
                TemplatePart::Special { ids: special, .. } => ids.extend_from_slice(special),
                TemplatePart::Sequence { second: false, .. } => ids.extend_from_slice(a),
                TemplatePart::Sequence { second: true, .. } => {
                    ids.extend_from_slice(b.unwrap_or_default());
                }
            }
        }
        ids
    }

    /// 1 at each special id of a sequence that holds them already. Without `already` the fast
    /// class of Transformers refuses, and so does this.
    ///
    /// # Errors
    /// Where `already` is false, or asked of a pair.
    pub fn get_special_tokens_mask(
        &self,
        a: &[u32],
        b: Option<&[u32]>,
        already: bool,
    ) -> Result<Vec<u8>, TokenizerError> {
        if !already || b.is_some() {
            return Err(TokenizerError::Value(
                "You cannot use ``already_has_special_tokens=False`` with this tokenizer. Please \
                 use a slow (full python) tokenizer to activate this argument. Or set \
                 `return_special_tokens_mask=True` when calling the encoding method to get the \
                 special tokens mask in any tokenizer. "
                    .to_owned(),
            ));
        }
        let special = self.all_special_ids();
        Ok(a.iter().map(|id| u8::from(special.contains(id))).collect())
    }

    /// 0 for the first sequence, 1 for the second; the fast class leaves special tokens out.
    pub fn create_token_type_ids_from_sequences(&self, a: &[u32], b: Option<&[u32]>) -> Vec<u8> {
        let mut types = vec![0; a.len()];
        types.resize(a.len() + b.map_or(0, <[u32]>::len), 1);
        types
    }

    /// Special tokens that a sequence or a pair gains.
    pub fn num_special_tokens_to_add(&self, pair: bool) -> usize {
        let parts = if pair { &self.template.pair } else { &self.template.single };
        let count = |part: &TemplatePart| match part {
            TemplatePart::Special { ids, .. } => ids.len(),
            TemplatePart::Sequence { .. } => 0,
        };
        parts.iter().map(count).sum()
    }

    /// Writes the SentencePiece file that this tokenizer was made from.
    ///
    /// # Errors
    /// Where there was none, the folder is none, or the file cannot be written.
    pub fn save_vocabulary(
        &self,
        dir: &Path,
        prefix: Option<&str>,
    ) -> Result<PathBuf, TokenizerError> {
        let Some(bytes) = &self.model_file else {
            return Err(TokenizerError::Value(
                "Your fast tokenizer does not have the necessary information to save the \
                 vocabulary for a slow tokenizer."
                    .to_owned(),
            ));
        };
        save_model(bytes, dir, prefix)
    }

    /// Tokens of the model, without added ones.
    pub fn vocab_size(&self) -> usize {
        self.pipeline.get_vocab_size(false)
    }

    /// Tokens with the added ones.
    pub fn len(&self) -> usize {
        self.pipeline.get_vocab_size(true)
    }

    /// Whether there are no tokens; a vocabulary that was read has some.
    pub fn is_empty(&self) -> bool {
        self.vocab_size() == 0
    }

    /// The tokens that name a role.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Their ids, ascending.
    pub fn all_special_ids(&self) -> Vec<u32> {
        let all = self.special.all();
        let mut ids: Vec<u32> = all.iter().filter_map(|token| self.token_to_id(token)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Ids that decoding without special tokens leaves out, ascending.
    pub fn skipped_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.skipped.iter().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn named_id(&self, token: &Option<String>) -> Option<u32> {
        token.as_ref().and_then(|token| self.token_to_id(token))
    }

    /// Id of BOS.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.named_id(&self.special.bos)
    }

    /// Id of EOS.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.named_id(&self.special.eos)
    }

    /// Id of the unknown token.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.named_id(&self.special.unk)
    }

    /// Id of the padding token.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.named_id(&self.special.pad)
    }

    /// Id of the end of a turn, where the vocabulary's file names one.
    pub fn eot_token_id(&self) -> Option<u32> {
        self.eot
    }
}

fn library_token(token: &AddedToken) -> LibraryToken {
    LibraryToken {
        content: token.content.clone(),
        single_word: token.single_word,
        lstrip: token.lstrip,
        rstrip: token.rstrip,
        normalized: token.normalized,
        special: token.special,
    }
}
