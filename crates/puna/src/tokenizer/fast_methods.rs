//! The documented methods of the fast class, beside encode and decode: tokens and ids, special
//! tokens around sequences, sizes, and the vocabulary's file.

use std::path::{Path, PathBuf};

use super::added::SpecialTokens;
use super::error::TokenizerError;
use super::fast::LlamaTokenizerFast;
use super::fast_decode::FastDecoder;
use super::slow::save_model;
use super::tokenizer_json::TemplatePart;

impl LlamaTokenizerFast {
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
        added.or_else(|| self.pipeline.id_to_token(id))
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
