//! From the ids of one sequence to its text. Ids enter one by one; text leaves once its characters
//! are whole and no stop string can still begin in it. The pieces joined are the decoded answer up to
//! its first stop string.

use std::sync::Arc;

use super::StopMatcher;
use crate::tokenizer::{DecodeOptions, StreamDecoder, Tokenizer, TokenizerError};

/// Text that an id completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextPiece {
    /// Empty while a character, or what may become a stop string, is still incomplete.
    pub text: String,
    /// The stop string that ended the text, once one did. Later ids give no text.
    pub stopped: Option<String>,
}

/// The text of one sequence.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    stop: StopMatcher,
}

impl TextStream {
    /// Text without special tokens, which ends before the first of `stop_strings`.
    pub fn new(tokenizer: Arc<Tokenizer>, stop_strings: &[String]) -> Self {
        let decoder = tokenizer.stream(DecodeOptions::TEXT);
        Self { decoder, stop: StopMatcher::new(stop_strings, false), tokenizer }
    }

    /// Takes the next id.
    ///
    /// # Errors
    /// An id that the tokenizer does not know.
    pub fn push(&mut self, id: u32) -> Result<TextPiece, TokenizerError> {
        let piece = self.decoder.push(&self.tokenizer, id)?.unwrap_or_default();
        let mut text = String::new();
        let stopped = self.stop.push(&piece, &mut text).map(str::to_owned);
        Ok(TextPiece { text, stopped })
    }

    /// The sequence has ended: what was still held back. A stop string may only now be complete.
    ///
    /// # Errors
    /// None for a stream made by [`TextStream::new`].
    pub fn finish(&mut self) -> Result<TextPiece, TokenizerError> {
        let rest = self.decoder.finish(&self.tokenizer)?;
        let mut text = String::new();
        let stopped = self.stop.push(&rest, &mut text).map(str::to_owned);
        if stopped.is_none() {
            self.stop.finish(&mut text);
        }
        Ok(TextPiece { text, stopped })
    }
}
