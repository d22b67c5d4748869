//! Decoding of the slow class, one token at a time: ids enter, text leaves as soon as it is sure.
//!
//! The tokens between added tokens form a part; parts are joined with a space. In a part, special
//! tokens cut segments, and SentencePiece decodes each segment. With `legacy` a special token puts
//! a space *before* the segment that it ends, so segments wait for their end where special tokens
//! are shown.

use super::DecodeOptions;
use super::cleanup::CleanUp;
use super::error::TokenizerError;
use super::piece_decoder::PieceDecoder;
use super::sentencepiece::SPACE_MARK;
use super::slow::LlamaTokenizer;

/// The state between two tokens.
#[derive(Clone, Debug)]
pub(super) struct SlowDecoder {
    skip_special: bool,
    spaces_between: bool,
    clean_up: Option<CleanUp>,
    /// A special token may still change what comes before the segment.
    holds_segments: bool,
    /// Tokens of the current part so far.
    index: usize,
    after_special: bool,
    segment: PieceDecoder,
    held: String,
    part_has_text: bool,
    n_parts: usize,
}

impl SlowDecoder {
    pub(super) fn new(tokenizer: &LlamaTokenizer, options: DecodeOptions) -> Self {
        let clean_up =
            options.clean_up_tokenization_spaces.unwrap_or(tokenizer.clean_up_tokenization_spaces);
        Self {
            skip_special: options.skip_special_tokens,
            spaces_between: options.spaces_between_special_tokens,
            clean_up: clean_up.then(CleanUp::default),
            holds_segments: tokenizer.legacy() && !options.skip_special_tokens,
            index: 0,
            after_special: false,
            segment: PieceDecoder::default(),
            held: String::new(),
            part_has_text: false,
            n_parts: 0,
        }
    }

    /// Appends what `id` makes certain.
    pub(super) fn push(
        &mut self,
        tokenizer: &LlamaTokenizer,
        id: u32,
        out: &mut String,
    ) -> Result<(), TokenizerError> {
        if self.skip_special && tokenizer.special_ids.contains(&id) {
            return Ok(());
        }
        let token = tokenizer.id_to_token(id).ok_or_else(|| tokenizer.unknown_id(id))?;
        if stands_alone(tokenizer, id) {
            self.end_part(out);
            self.show_alone(token, out);
            return Ok(());
        }
        self.push_token(tokenizer, token, out);
        Ok(())
    }

    /// As `push`, for a token of which only the text is known.
    pub(super) fn push_token(&mut self, tokenizer: &LlamaTokenizer, token: &str, out: &mut String) {
        let mut token = token;
        if self.index == 0 && tokenizer.add_prefix_space {
            token = token.strip_prefix(SPACE_MARK).unwrap_or(token);
        }
        let is_special =
            tokenizer.added.id_of(token).is_some_and(|id| tokenizer.special_ids.contains(&id));
        if is_special {
            if !self.after_special && self.index != 0 && tokenizer.legacy() {
                self.show(" ", out);
            }
            self.end_segment(out);
            self.show(token, out);
        } else {
            let is_second = self.index == 1 && self.after_special;
            if is_second
                && tokenizer.space_after_leading_special
                && tokenizer.add_prefix_space
                && !token.starts_with(SPACE_MARK)
            {
                self.show(" ", out);
            }
            self.extend_segment(tokenizer, token, out);
        }
        self.after_special = is_special;
        self.index += 1;
    }

    fn extend_segment(&mut self, tokenizer: &LlamaTokenizer, token: &str, out: &mut String) {
        let mut text = std::mem::take(&mut self.held);
        match tokenizer.model.piece_to_id(token) {
            Some(id) => self.segment.push(&tokenizer.model, id, &mut text),
            None => self.segment.push_text(token, &mut text),
        }
        if self.holds_segments {
            self.held = text;
            return;
        }
        self.show(&text, out);
        // The buffer goes back for the next token.
        text.clear();
        self.held = text;
    }

    fn end_segment(&mut self, out: &mut String) {
        let mut text = std::mem::take(&mut self.held);
        self.segment.finish(&mut text);
        self.show(&text, out);
    }

    /// Appends text of the current part, and before its first text the space between parts.
    fn show(&mut self, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        if !self.part_has_text {
            self.part_has_text = true;
            self.begin_part(out);
        }
        self.write(text, out);
    }

    fn begin_part(&mut self, out: &mut String) {
        if self.n_parts > 0 && self.spaces_between {
            self.write(" ", out);
        }
        self.n_parts += 1;
    }

    fn show_alone(&mut self, token: &str, out: &mut String) {
        self.begin_part(out);
        self.write(token, out);
    }

    fn write(&mut self, text: &str, out: &mut String) {
        match &mut self.clean_up {
            Some(clean_up) => clean_up.push(text, out),
            None => out.push_str(text),
        }
    }

    fn end_part(&mut self, out: &mut String) {
        self.end_segment(out);
        self.index = 0;
        self.after_special = false;
        self.part_has_text = false;
    }

    /// Appends what was held back, and starts anew.
    pub(super) fn finish(&mut self, tokenizer: &LlamaTokenizer, out: &mut String) {
        self.end_segment(out);
        // The last part counts even where it has no text, as joining an empty string does.
        if self.index > 0 && !self.part_has_text {
            self.begin_part(out);
        }
        if let Some(clean_up) = &mut self.clean_up {
            clean_up.finish(out);
        }
        let options = DecodeOptions {
            skip_special_tokens: self.skip_special,
            spaces_between_special_tokens: self.spaces_between,
            clean_up_tokenization_spaces: Some(self.clean_up.is_some()),
        };
        *self = Self::new(tokenizer, options);
    }
}

/// Whether decoding shows the token as a part of its own: added tokens without a role, and special
/// ones that are not in the model's vocabulary and have no name.
fn stands_alone(tokenizer: &LlamaTokenizer, id: u32) -> bool {
    if tokenizer.added.get(id).is_none() {
        return false;
    }
    if !tokenizer.special_ids.contains(&id) {
        return true;
    }
    let content = tokenizer.id_to_token(id);
    let is_further =
        tokenizer.special_tokens().additional.iter().any(|token| Some(token.as_str()) == content);
    is_further && id as usize >= tokenizer.vocab_size()
}
