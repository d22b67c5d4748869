//! `LlamaTokenizerFast`: a `tokenizer.json`, or another vocabulary in that form.
//!
//! Files of LLaMA's kinds are encoded by [`FastEncoder`]; for the others, and for texts with added
//! tokens that have flags, the `tokenizers` crate finds added tokens, normalises, and merges. The
//! template around the ids and the decoder are this crate's own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{
    AddedToken as LibraryToken, DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizedString, PreTokenizer, Token, TokenizerImpl,
};

use super::added::{AddedToken, SpecialTokens};
use super::convert;
use super::error::TokenizerError;
use super::fast_decode::{DecoderPlan, FastDecoder};
use super::fast_encode::FastEncoder;
use super::pool::ScratchPool;
use super::slow::named_part;
use super::splitter::Splitter;
use super::tokenizer_json::{Parts, Template, TemplatePart};
use super::{DecodeOptions, EncodeOptions, Specials};

/// One model behind both pipelines.
#[derive(Clone, Debug)]
pub(super) struct SharedModel(Arc<BPE>);

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
pub(super) struct SharedSplitter(Arc<Splitter>);

impl PreTokenizer for SharedSplitter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        self.0.pre_tokenize(text)
    }
}

pub(super) type Pipeline = TokenizerImpl<
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
    pub(super) pipeline: Pipeline,
    /// Takes special tokens in the text for plain text.
    pub(super) literal: Pipeline,
    /// Does the same without the crate, where the file is of a kind it knows.
    pub(super) encoder: Option<FastEncoder>,
    pool: ScratchPool,
    pub(super) decoder: DecoderPlan,
    pub(super) template: Template,
    pub(super) special: SpecialTokens,
    /// Skipped when decoding without special tokens.
    pub(super) skipped: HashSet<u32>,
    /// The SentencePiece file that it was made from.
    pub(super) model_file: Option<Vec<u8>>,
    /// Cut the text as Meta's Llama 3 code does.
    pub(super) cuts_like_meta: bool,
    pub(super) add_bos_token: bool,
    pub(super) add_eos_token: bool,
    pub(super) eot: Option<u32>,
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
    pub(super) fn new(mut parts: Parts, file: &str) -> Result<Self, TokenizerError> {
        let splitter = Arc::new(std::mem::take(&mut parts.splitter));
        // Built first: the crate's model takes the vocabulary away.
        let encoder = FastEncoder::new(&parts, &splitter);
        let model = SharedModel(Arc::new(build_model(&mut parts, file)?));
        let mut pipeline = Pipeline::new(model);
        let normalizer = parts.normalizer.take();
        pipeline.with_normalizer(normalizer).map_err(convert_error(file))?;
        pipeline.with_pre_tokenizer(Some(SharedSplitter(splitter)));
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
            encoder,
            pool: ScratchPool::default(),
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
        tokenizer.refresh_added();
        Ok(tokenizer)
    }

    /// Adds tokens; returns how many were not added before. Text that is a token of the model keeps
    /// its id, and is from now on found before anything else.
    ///
    /// # Errors
    /// Where two tokens are the same text after normalisation.
    pub fn add_tokens(&mut self, tokens: &[AddedToken]) -> Result<usize, TokenizerError> {
        let mut n_added = 0;
        for pipeline in [&mut self.pipeline, &mut self.literal] {
            n_added = pipeline
                .add_tokens(tokens.iter().map(library_token))
                .map_err(|error| TokenizerError::Value(error.to_string()))?;
        }
        for token in tokens.iter().filter(|token| token.special) {
            if !self.special.all().contains(&token.content.as_str()) {
                self.special.additional.push(token.content.clone());
            }
        }
        self.refresh_added();
        Ok(n_added)
    }

    fn refresh_added(&mut self) {
        let added = self.pipeline.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special);
        self.skipped = special.map(|(&id, _)| id).collect();
        if let Some(encoder) = &mut self.encoder {
            encoder.set_added(self.pipeline.get_added_vocabulary());
        }
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
        let chunks = if self.cuts_like_meta { convert::meta_chunks(text) } else { vec![text] };
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        for chunk in chunks {
            let done = match &self.encoder {
                Some(encoder) => self
                    .pool
                    .with(|scratch| encoder.encode(chunk, split_special, scratch, &mut ids))?,
                None => false,
            };
            if !done {
                ids.extend(self.encode_by_library(chunk, split_special)?);
            }
        }
        Ok(ids)
    }

    pub(super) fn encode_by_library(
        &self,
        text: &str,
        split_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let pipeline = if split_special { &self.literal } else { &self.pipeline };
        let encoding = pipeline.encode_fast(text, false).map_err(encode_error)?;
        Ok(encoding.get_ids().to_vec())
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
