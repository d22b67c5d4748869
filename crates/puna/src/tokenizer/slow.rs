//! `LlamaTokenizer`: the SentencePiece tokenizer with the behaviour of Transformers 4.
//!
//! Text is cut at added tokens; each part between them is encoded by SentencePiece. With `legacy`
//! every part gets its own dummy prefix; without it only the text as a whole does.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::added::{AddedToken, AddedVocabulary, SpecialTokens};
use super::char_bpe::Scratch;
use super::config::{TokenizerConfig, read_file};
use super::error::TokenizerError;
use super::proto::{ModelProto, Piece, PieceType};
use super::sentencepiece::{SPACE_MARK, SentencePiece};
use super::slow_decode::SlowDecoder;
use super::{DecodeOptions, EncodeOptions, GgufTokenizer, Specials};

/// The tokenizer of LLaMA 1 and 2, and of every model that kept their vocabulary's form.
#[derive(Clone, Debug)]
pub struct LlamaTokenizer {
    pub(super) model: SentencePiece,
    pub(super) added: AddedVocabulary,
    pub(super) special: SpecialTokens,
    pub(super) special_ids: HashSet<u32>,
    pub(super) legacy: bool,
    pub(super) eot: Option<u32>,
    /// Tokens of the unknown piece's text, which shield a leading space from the model.
    unk_token_length: usize,
    /// A space goes before the text, and decoding removes it.
    pub add_prefix_space: bool,
    /// Encoding starts with BOS.
    pub add_bos_token: bool,
    /// Encoding ends with EOS.
    pub add_eos_token: bool,
    /// Added tokens in the text are plain text, unless a call says otherwise.
    pub split_special_tokens: bool,
    /// Decoding removes the spaces before punctuation, unless a call says otherwise.
    pub clean_up_tokenization_spaces: bool,
    /// Decoding puts a space between a leading special token and a first word without one, as
    /// Transformers 4.57 does and 4.35 does not.
    pub space_after_leading_special: bool,
    /// The chat template that came with the tokenizer.
    pub chat_template: Option<String>,
}

impl LlamaTokenizer {
    /// Loads a folder with a `tokenizer.model` and the settings beside it.
    ///
    /// # Errors
    /// Where the file is absent, broken, or no SentencePiece BPE model.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.model");
        let bytes =
            read_file(&path)?.ok_or_else(|| TokenizerError::Missing { path: dir.to_owned() })?;
        let model = SentencePiece::from_bytes(&bytes, &path.display().to_string())?;
        Ok(Self::new(model, &TokenizerConfig::from_dir(dir)?))
    }

    /// Puts the added tokens and the settings on top of a model.
    pub fn new(model: SentencePiece, config: &TokenizerConfig) -> Self {
        let legacy = config.legacy.unwrap_or(true);
        let mut tokenizer = Self {
            model,
            added: AddedVocabulary::default(),
            special: SpecialTokens::default(),
            special_ids: HashSet::new(),
            legacy,
            eot: None,
            unk_token_length: 0,
            add_prefix_space: config.add_prefix_space.unwrap_or(true),
            add_bos_token: config.add_bos_token.unwrap_or(true),
            add_eos_token: config.add_eos_token.unwrap_or(false),
            split_special_tokens: config.split_special_tokens.unwrap_or(false),
            clean_up_tokenization_spaces: config.clean_up_tokenization_spaces.unwrap_or(false),
            space_after_leading_special: true,
            chat_template: config.chat_template.clone(),
        };
        if !legacy {
            tokenizer.model.set_dummy_prefix(false);
        }
        for (id, token) in &config.added_tokens {
            tokenizer.added.insert(*id, token.clone());
        }
        tokenizer.name_special_tokens(config);
        tokenizer
    }

    fn name_special_tokens(&mut self, config: &TokenizerConfig) {
        let name = TokenizerConfig::name_of;
        let unk = name(&config.unk_token, Some("<unk>"));
        let bos = name(&config.bos_token, Some("<s>"));
        let eos = name(&config.eos_token, Some("</s>"));
        let pad = name(&config.pad_token, None);
        let content = |token: &Option<AddedToken>| token.as_ref().map(|t| t.content.clone());
        self.special = SpecialTokens {
            bos: content(&bos),
            eos: content(&eos),
            unk: content(&unk),
            pad: content(&pad),
            additional: config
                .additional_special_tokens
                .iter()
                .map(|token| token.content.clone())
                .collect(),
        };
        let named = [bos, eos, unk, pad].into_iter().flatten();
        let tokens: Vec<AddedToken> = named
            .chain(config.additional_special_tokens.iter().cloned())
            .filter(|token| self.added.id_of(&token.content).is_none())
            .map(|token| AddedToken { special: true, normalized: false, ..token })
            .collect();
        self.add_tokens(&tokens);
        if let Some(unk) = &self.special.unk {
            self.unk_token_length = self.model.encode(unk).len();
        }
    }

    /// Builds the tokenizer that GGUF metadata of model `llama` describes.
    ///
    /// # Errors
    /// Where the metadata contradicts itself.
    pub fn from_gguf(gguf: &GgufTokenizer) -> Result<Self, TokenizerError> {
        const FILE: &str = "GGUF metadata tokenizer.ggml";
        gguf.check(FILE)?;
        let kind_of = |id: usize| match gguf.token_types.get(id) {
            None => Ok(PieceType::Normal),
            Some(&number) => {
                u64::try_from(number).ok().and_then(PieceType::from_number).ok_or_else(|| {
                    TokenizerError::malformed(FILE, format!("token_type[{id}] is {number}"))
                })
            }
        };
        let mut pieces = Vec::with_capacity(gguf.tokens.len());
        for (id, text) in gguf.tokens.iter().enumerate() {
            let score = gguf.scores.get(id).copied().unwrap_or(0.0);
            pieces.push(Piece { text: text.clone(), score, kind: kind_of(id)? });
        }
        let unk = pieces.iter().position(|piece| piece.kind == PieceType::Unknown);
        let unk_id = gguf.unk_token_id.map_or(unk, |id| Some(id as usize)).unwrap_or(0);
        if let Some(piece) = pieces.get_mut(unk_id) {
            piece.kind = PieceType::Unknown;
        }
        let id = |id: Option<u32>| id.map_or(-1, i64::from);
        let proto = ModelProto {
            model_type: 2,
            byte_fallback: pieces.iter().any(|piece| piece.kind == PieceType::Byte),
            unk_id: unk_id as i64,
            bos_id: id(gguf.bos_token_id),
            eos_id: id(gguf.eos_token_id),
            pad_id: id(gguf.pad_token_id),
            add_dummy_prefix: gguf.add_space_prefix.unwrap_or(true),
            remove_extra_whitespaces: gguf.remove_extra_whitespaces.unwrap_or(false),
            pieces,
            ..ModelProto::default()
        };
        let config = gguf.config(unk_id as u32);
        let mut tokenizer = Self::new(SentencePiece::new(proto, FILE)?, &config);
        tokenizer.add_prefix_space = gguf.add_space_prefix.unwrap_or(true);
        tokenizer.eot = gguf.eot_token_id;
        Ok(tokenizer)
    }

    /// Adds tokens; returns how many got a new id. Text that is a piece keeps its id, and is from
    /// now on a token of its own wherever it occurs.
    pub fn add_tokens(&mut self, tokens: &[AddedToken]) -> usize {
        let mut new = 0;
        for token in tokens {
            if token.content.is_empty() {
                continue;
            }
            let id = self.token_to_id(&token.content).unwrap_or_else(|| {
                new += 1;
                self.len() as u32
            });
            if token.special && !self.special.all().contains(&token.content.as_str()) {
                self.special.additional.push(token.content.clone());
            }
            self.added.insert(id, token.clone());
        }
        self.refresh_special_ids();
        new
    }

    /// Names the special tokens anew; those that are unknown become added tokens.
    pub fn set_special_tokens(&mut self, special: SpecialTokens) {
        self.special = special;
        let missing: Vec<AddedToken> = self
            .special
            .all()
            .into_iter()
            .filter(|content| self.added.id_of(content).is_none())
            .map(|content| AddedToken::new(content, true))
            .collect();
        self.add_tokens(&missing);
    }

    fn refresh_special_ids(&mut self) {
        let all = self.special.all();
        self.special_ids = all.into_iter().map(|token| self.convert_token_to_id(token)).collect();
    }

    /// Ids of `text`.
    ///
    /// # Errors
    /// Where BOS or EOS is to be added and there is none.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let split_special = options.split_special_tokens.unwrap_or(self.split_special_tokens);
        let add = match options.specials {
            Specials::Add => true,
            Specials::None => false,
            Specials::AddUnlessPresent => split_special || !self.starts_with_bos(text),
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add {
            ids.extend(self.bos_part()?);
        }
        self.encode_plain(text, split_special, &mut ids);
        if options.specials != Specials::None {
            ids.extend(self.eos_part()?);
        }
        Ok(ids)
    }

    /// Whether the text itself begins with BOS, as the output of a chat template does.
    pub fn starts_with_bos(&self, text: &str) -> bool {
        self.special.bos.as_ref().is_some_and(|bos| !bos.is_empty() && text.starts_with(bos))
    }

    pub(super) fn bos_part(&self) -> Result<Option<u32>, TokenizerError> {
        named_part(self.add_bos_token, self.bos_token_id(), "bos")
    }

    pub(super) fn eos_part(&self) -> Result<Option<u32>, TokenizerError> {
        named_part(self.add_eos_token, self.eos_token_id(), "eos")
    }

    fn encode_plain(&self, text: &str, split_special: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        self.model.pool().with(|scratch| {
            if self.legacy {
                self.encode_chunks(text, split_special, scratch, ids);
            } else {
                self.encode_whole(text, split_special, scratch, ids);
            }
        });
    }

    /// One prefix for the whole text, whose marks count as spaces.
    fn encode_whole(
        &self,
        text: &str,
        split_special: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let mut plain = String::with_capacity(text.len() + 3);
        if self.add_prefix_space {
            plain.push(SPACE_MARK);
        }
        let marks = text.split(SPACE_MARK);
        for (index, part) in marks.enumerate() {
            if index > 0 {
                plain.push(' ');
            }
            plain.push_str(part);
        }
        let begin = ids.len();
        self.encode_chunks(&plain, split_special, scratch, ids);
        let mark = self.model.piece_to_id("\u{2581}");
        let is_lone_mark = ids.get(begin).copied() == mark && mark.is_some();
        if is_lone_mark && ids.get(begin + 1).is_some_and(|id| self.special_ids.contains(id)) {
            ids.remove(begin);
        }
    }

    fn encode_chunks(
        &self,
        text: &str,
        split_special: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        if split_special || !self.added.occurs_in(text) {
            self.encode_chunk(text, scratch, ids);
            return;
        }
        let mut parts: Vec<Cow<'_, str>> =
            self.added.split(text).into_iter().map(Cow::Borrowed).collect();
        if parts.len() > 1 {
            self.apply_flags(&mut parts);
        }
        for part in parts {
            match self.added.id_of(&part) {
                Some(id) => ids.push(id),
                None => self.encode_chunk(&part, scratch, ids),
            }
        }
    }

    /// Lets added tokens take the white space beside them, or melt into a neighbouring word.
    fn apply_flags(&self, parts: &mut [Cow<'_, str>]) {
        for at in 0..parts.len() {
            let token = self.added.id_of(&parts[at]).and_then(|id| self.added.get(id));
            let Some(token) = token else { continue };
            let has_left = at > 0 && !parts[at - 1].is_empty();
            let has_right = at + 1 < parts.len() && !parts[at + 1].is_empty();
            // The words around it decide before anything is stripped.
            let joins_left = has_left && !parts[at - 1].ends_with(' ');
            let joins_right = has_right && !parts[at + 1].starts_with(' ');
            if token.rstrip && has_right {
                parts[at + 1] = parts[at + 1].trim_start_matches(is_python_space).to_owned().into();
            }
            if token.lstrip && has_left {
                parts[at - 1] = parts[at - 1].trim_end_matches(is_python_space).to_owned().into();
            }
            if token.single_word && joins_left {
                let joined = format!("{}{}", parts[at - 1], parts[at]);
                parts[at - 1] = joined.into();
                parts[at] = "".into();
            } else if token.single_word && joins_right {
                let joined = format!("{}{}", parts[at], parts[at + 1]);
                parts[at + 1] = joined.into();
                parts[at] = "".into();
            }
        }
    }

    fn encode_chunk(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let prefix = self.model.proto().add_dummy_prefix;
        let is_shielded = !self.legacy
            && (self.model.proto().remove_extra_whitespaces || !self.model.splits_words())
            && text.starts_with([SPACE_MARK, ' ']);
        let Some(unk) = self.special.unk.as_ref().filter(|_| is_shielded) else {
            self.model.encode_into(text, prefix, scratch, ids);
            return;
        };
        // The model could drop or merge the leading space: a word goes before it and comes off.
        let begin = ids.len();
        self.model.encode_into(&format!("{unk}{text}"), prefix, scratch, ids);
        if ids.len() - begin >= self.unk_token_length {
            ids.drain(begin..begin + self.unk_token_length);
        }
    }

    /// Text of `ids`.
    ///
    /// # Errors
    /// Names the first id that the tokenizer does not know.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> Result<String, TokenizerError> {
        let mut decoder = SlowDecoder::new(self, options);
        let mut text = String::new();
        for &id in ids {
            decoder.push(self, id, &mut text)?;
        }
        decoder.finish(self, &mut text);
        Ok(text)
    }
}

/// Python's `str.isspace` for one character.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

pub(super) fn named_part(
    add: bool,
    id: Option<u32>,
    name: &str,
) -> Result<Option<u32>, TokenizerError> {
    if add && id.is_none() {
        let message = format!("add_{name}_token = True but {name}_token = None");
        return Err(TokenizerError::Value(message));
    }
    Ok(id.filter(|_| add))
}

pub(super) fn save_model(
    bytes: &[u8],
    dir: &Path,
    prefix: Option<&str>,
) -> Result<PathBuf, TokenizerError> {
    if !dir.is_dir() {
        let message = format!("Vocabulary path ({}) should be a directory", dir.display());
        return Err(TokenizerError::Value(message));
    }
    let prefix = prefix.map(|prefix| format!("{prefix}-")).unwrap_or_default();
    let path = dir.join(format!("{prefix}tokenizer.model"));
    let partial = dir.join(format!("{prefix}tokenizer.model.part"));
    std::fs::write(&partial, bytes).map_err(|error| TokenizerError::io(&partial, error))?;
    std::fs::rename(&partial, &path).map_err(|error| TokenizerError::io(&path, error))?;
    Ok(path)
}
