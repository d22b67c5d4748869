//! Text to ids and back.
//!
//! A folder or GGUF metadata enters, a [`Tokenizer`] leaves: the SentencePiece class
//! [`LlamaTokenizer`], or [`LlamaTokenizerFast`] in the form of `tokenizer.json`. Beside them:
//! [`StreamDecoder`] (ids to text, one at a time) and [`ChatTemplate`] (messages to text).

mod added;
mod bpe;
mod byte_bpe;
mod char_bpe;
mod chat;
mod chat_python;
mod chat_source;
mod chat_values;
mod cleanup;
mod config;
mod convert;
mod error;
mod fast;
mod fast_decode;
mod fast_encode;
mod fast_load;
mod fast_methods;
mod gguf;
mod piece_decoder;
mod pool;
mod proto;
mod sentencepiece;
mod slow;
mod slow_decode;
mod slow_methods;
mod splitter;
mod stream;
mod tokenizer_json;
mod words;

use std::path::Path;

pub use added::{AddedToken, SpecialTokens};
pub use char_bpe::Scratch;
pub use chat::{ChatError, ChatOptions, ChatTemplate, RenderedChat, llama2_template};
pub use config::TokenizerConfig;
pub use convert::Llama3Specials;
pub use error::TokenizerError;
pub use fast::LlamaTokenizerFast;
pub use gguf::GgufTokenizer;
pub use piece_decoder::PieceDecoder;
pub use proto::{ModelProto, Piece, PieceType};
pub use sentencepiece::{SPACE_MARK, SentencePiece};
pub use slow::LlamaTokenizer;
pub use stream::StreamDecoder;

/// Which special tokens encoding puts around the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Specials {
    /// Those that the tokenizer is set to add.
    #[default]
    Add,
    /// As `Add`, but no second BOS before text that begins with one, as chat templates write it.
    AddUnlessPresent,
    /// None.
    None,
}

/// How to encode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Special tokens around the text.
    pub specials: Specials,
    /// Special tokens *in* the text are plain text (against prompt injection); `None` leaves it to
    /// the tokenizer's own setting, which is normally false.
    pub split_special_tokens: Option<bool>,
}

impl EncodeOptions {
    /// Encodes the text alone, as the output of a chat template or a part of a document.
    pub const PLAIN: Self = Self { specials: Specials::None, split_special_tokens: None };
}

/// How to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Leave special tokens out.
    pub skip_special_tokens: bool,
    /// Put a space between the text and added tokens (slow class only).
    pub spaces_between_special_tokens: bool,
    /// Remove the spaces before punctuation; `None` leaves it to the tokenizer's own setting.
    pub clean_up_tokenization_spaces: Option<bool>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            skip_special_tokens: false,
            spaces_between_special_tokens: true,
            clean_up_tokenization_spaces: None,
        }
    }
}

impl DecodeOptions {
    /// Text without special tokens, as a reader wants it.
    pub const TEXT: Self = Self {
        skip_special_tokens: true,
        spaces_between_special_tokens: true,
        clean_up_tokenization_spaces: None,
    };
}

/// Either class, behind the calls that the rest of the program makes.
#[derive(Clone, Debug)]
pub enum Tokenizer {
    /// SentencePiece.
    Slow(Box<LlamaTokenizer>),
    /// The form of `tokenizer.json`.
    Fast(Box<LlamaTokenizerFast>),
}

impl From<LlamaTokenizer> for Tokenizer {
    fn from(tokenizer: LlamaTokenizer) -> Self {
        Self::Slow(Box::new(tokenizer))
    }
}

impl From<LlamaTokenizerFast> for Tokenizer {
    fn from(tokenizer: LlamaTokenizerFast) -> Self {
        Self::Fast(Box::new(tokenizer))
    }
}

/// Calls the same method of whichever class it is.
macro_rules! either {
    ($self:ident, $tokenizer:ident => $call:expr) => {
        match $self {
            Tokenizer::Slow($tokenizer) => $call,
            Tokenizer::Fast($tokenizer) => $call,
        }
    };
}

impl Tokenizer {
    /// Loads the tokenizer of a model's folder: `tokenizer.json` as the fast class, else a
    /// `tokenizer.model` of Llama 3 as the fast class, of SentencePiece as the slow one, or as the
    /// fast one where the folder's configuration names `LlamaTokenizerFast`.
    ///
    /// # Errors
    /// Where there is none, or a file is broken or of a kind that LLaMA does not use.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let has = |name: &str| dir.join(name).is_file();
        let class = TokenizerConfig::from_dir(dir)?.tokenizer_class;
        let names_fast = class.as_deref() == Some("LlamaTokenizerFast");
        if has("tokenizer.json") || names_fast {
            return LlamaTokenizerFast::from_dir(dir).map(Self::from);
        }
        let path = dir.join("tokenizer.model");
        let bytes = config::read_file(&path)?
            .ok_or_else(|| TokenizerError::Missing { path: dir.to_owned() })?;
        if convert::is_tiktoken(&bytes) {
            return LlamaTokenizerFast::from_dir(dir).map(Self::from);
        }
        LlamaTokenizer::from_dir(dir).map(Self::from)
    }

    /// Builds the tokenizer that GGUF metadata describes.
    ///
    /// # Errors
    /// Where the metadata contradicts itself or names a kind that LLaMA does not use.
    pub fn from_gguf(gguf: &GgufTokenizer) -> Result<Self, TokenizerError> {
        match gguf.model.as_str() {
            "llama" => LlamaTokenizer::from_gguf(gguf).map(Self::from),
            "gpt2" => LlamaTokenizerFast::from_gguf(gguf).map(Self::from),
            other => Err(TokenizerError::unsupported(
                "GGUF metadata",
                format!("tokenizer.ggml.model {other:?}"),
                "LLaMA files hold \"llama\" (SentencePiece) or \"gpt2\" (byte-level BPE)",
            )),
        }
    }

    /// Ids of `text`.
    ///
    /// # Errors
    /// Where BOS or EOS is to be added and there is none, or a file's pattern gives up.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        either!(self, tokenizer => tokenizer.encode(text, options))
    }

    /// Text of `ids`.
    ///
    /// # Errors
    /// The slow class names the first id that it does not know; the fast one leaves such ids out.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> Result<String, TokenizerError> {
        match self {
            Self::Slow(tokenizer) => tokenizer.decode(ids, options),
            Self::Fast(tokenizer) => Ok(tokenizer.decode(ids, options)),
        }
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream(&self, options: DecodeOptions) -> StreamDecoder {
        StreamDecoder::new(self, options)
    }

    /// Whether the text itself begins with BOS, so that adding one would double it.
    pub fn starts_with_bos(&self, text: &str) -> bool {
        either!(self, tokenizer => tokenizer.starts_with_bos(text))
    }

    /// Text of a token by id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Slow(tokenizer) => tokenizer.id_to_token(id).map(str::to_owned),
            Self::Fast(tokenizer) => tokenizer.id_to_token(id),
        }
    }

    /// Id of a token by its text, if it has one.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        either!(self, tokenizer => tokenizer.token_to_id(token))
    }

    /// Tokens of the model, without added ones.
    pub fn vocab_size(&self) -> usize {
        either!(self, tokenizer => tokenizer.vocab_size())
    }

    /// Tokens with the added ones.
    pub fn len(&self) -> usize {
        either!(self, tokenizer => tokenizer.len())
    }

    /// Whether there are no tokens; a vocabulary that was read has some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Id of BOS.
    pub fn bos_token_id(&self) -> Option<u32> {
        either!(self, tokenizer => tokenizer.bos_token_id())
    }

    /// Id of EOS.
    pub fn eos_token_id(&self) -> Option<u32> {
        either!(self, tokenizer => tokenizer.eos_token_id())
    }

    /// Id of the unknown token.
    pub fn unk_token_id(&self) -> Option<u32> {
        either!(self, tokenizer => tokenizer.unk_token_id())
    }

    /// Id of the padding token.
    pub fn pad_token_id(&self) -> Option<u32> {
        either!(self, tokenizer => tokenizer.pad_token_id())
    }

    /// Id of the end of a turn, where it is not EOS and the vocabulary's file names it.
    pub fn eot_token_id(&self) -> Option<u32> {
        either!(self, tokenizer => tokenizer.eot_token_id())
    }

    /// The tokens that name a role.
    pub fn special_tokens(&self) -> &SpecialTokens {
        either!(self, tokenizer => tokenizer.special_tokens())
    }

    /// Ids that decoding without special tokens leaves out, ascending.
    pub fn special_ids(&self) -> Vec<u32> {
        match self {
            Self::Slow(tokenizer) => tokenizer.all_special_ids(),
            Self::Fast(tokenizer) => tokenizer.skipped_ids(),
        }
    }

    /// The chat template that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        either!(self, tokenizer => tokenizer.chat_template.as_deref())
    }
}
