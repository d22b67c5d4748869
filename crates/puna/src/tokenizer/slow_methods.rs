//! The documented methods of the slow class, beside encode and decode: tokens and ids, special
//! tokens around sequences, sizes, and the vocabulary's file.

use std::path::{Path, PathBuf};

use super::DecodeOptions;
use super::added::{AddedToken, SpecialTokens};
use super::error::TokenizerError;
use super::sentencepiece::SentencePiece;
use super::slow::{LlamaTokenizer, save_model};
use super::slow_decode::SlowDecoder;

impl LlamaTokenizer {
    /// Text of a token by id.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.added
            .get(id)
            .map(|token| token.content.as_str())
            .or_else(|| self.model.id_to_piece(id))
    }

    /// Id of a token by its text, if it has one.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.added.id_of(token).or_else(|| self.model.piece_to_id(token))
    }

    /// Id of a token; the unknown id for text that is no token.
    pub fn convert_token_to_id(&self, token: &str) -> u32 {
        self.token_to_id(token).unwrap_or_else(|| self.model.unk_id())
    }

    /// Ids of tokens.
    pub fn convert_tokens_to_ids(&self, tokens: &[&str]) -> Vec<u32> {
        tokens.iter().map(|token| self.convert_token_to_id(token)).collect()
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
        ids.iter()
            .filter(|id| !(skip_special_tokens && self.special_ids.contains(id)))
            .map(|&id| self.id_to_token(id).map(str::to_owned).ok_or_else(|| self.unknown_id(id)))
            .collect()
    }

    pub(super) fn unknown_id(&self, id: u32) -> TokenizerError {
        TokenizerError::UnknownId { id, len: self.len() }
    }

    /// Text of tokens that are pieces or special tokens.
    pub fn convert_tokens_to_string(&self, tokens: &[&str]) -> String {
        let mut decoder = SlowDecoder::new(self, DecodeOptions::default());
        let mut text = String::new();
        for token in tokens {
            decoder.push_token(self, token, &mut text);
        }
        decoder.finish(self, &mut text);
        text
    }

    /// `[bos] a [eos]`, and `[bos] b [eos]` for a pair.
    ///
    /// # Errors
    /// Where BOS or EOS is to be added and there is none.
    pub fn build_inputs_with_special_tokens(
        &self,
        a: &[u32],
        b: Option<&[u32]>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        for part in [Some(a), b].into_iter().flatten() {
            ids.extend(self.bos_part()?);
            ids.extend_from_slice(part);
            ids.extend(self.eos_part()?);
        }
        Ok(ids)
    }

    /// 1 where `build_inputs_with_special_tokens` puts a special token, else 0; of ids that hold
    /// them already (`already`), 1 at each special id.
    ///
    /// # Errors
    /// Where `already` is asked of a pair.
    pub fn get_special_tokens_mask(
        &self,
        a: &[u32],
        b: Option<&[u32]>,
        already: bool,
    ) -> Result<Vec<u8>, TokenizerError> {
        if already {
            if b.is_some() {
                return Err(TokenizerError::Value(
                    "You should not supply a second sequence if the provided sequence of ids is \
                     already formatted with special tokens for the model."
                        .to_owned(),
                ));
            }
            return Ok(a.iter().map(|id| u8::from(self.special_ids.contains(id))).collect());
        }
        let mut mask = Vec::new();
        for part in [Some(a), b].into_iter().flatten() {
            mask.extend(self.add_bos_token.then_some(1));
            mask.resize(mask.len() + part.len(), 0);
            mask.extend(self.add_eos_token.then_some(1));
        }
        Ok(mask)
    }

    /// 0 for the first sequence with its special tokens, 1 for the second.
    pub fn create_token_type_ids_from_sequences(&self, a: &[u32], b: Option<&[u32]>) -> Vec<u8> {
        let extra = usize::from(self.add_bos_token) + usize::from(self.add_eos_token);
        let mut types = vec![0; a.len() + extra];
        if let Some(b) = b {
            types.resize(types.len() + b.len() + extra, 1);
        }
        types
    }

    /// Special tokens that a sequence or a pair gains.
    pub fn num_special_tokens_to_add(&self, pair: bool) -> usize {
        let extra = usize::from(self.add_bos_token) + usize::from(self.add_eos_token);
        extra * (1 + usize::from(pair))
    }

    /// Writes `[prefix-]tokenizer.model` into a folder, byte for byte as it was read.
    ///
    /// # Errors
    /// Where the folder is none, or the file cannot be written.
    pub fn save_vocabulary(
        &self,
        dir: &Path,
        prefix: Option<&str>,
    ) -> Result<PathBuf, TokenizerError> {
        save_model(&self.model.to_bytes(), dir, prefix)
    }

    /// Pieces of the model, without added tokens.
    pub fn vocab_size(&self) -> usize {
        self.model.len()
    }

    /// Tokens with the added ones.
    pub fn len(&self) -> usize {
        let is_new = |token: &AddedToken| self.model.piece_to_id(&token.content).is_none();
        self.model.len() + self.added.iter().filter(|(_, token)| is_new(token)).count()
    }

    /// Whether there are no tokens; a model that was read has some.
    pub fn is_empty(&self) -> bool {
        self.model.is_empty()
    }

    /// The tokens that name a role.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Their ids, ascending.
    pub fn all_special_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.special_ids.iter().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn named_id(&self, token: &Option<String>) -> Option<u32> {
        token.as_ref().map(|token| self.convert_token_to_id(token))
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

    /// Whether each chunk gets its own dummy prefix.
    pub fn legacy(&self) -> bool {
        self.legacy
    }

    /// The SentencePiece model below.
    pub fn model(&self) -> &SentencePiece {
        &self.model
    }

    /// Added tokens with their ids, ascending.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.added.iter()
    }
}
