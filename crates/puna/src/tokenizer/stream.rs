//! Ids enter one at a time, text leaves as soon as no later id can change it.
//!
//! The pieces and what [`StreamDecoder::finish`] returns, put together, are exactly what decoding
//! all ids at once gives: no space is lost and no character split. Each id costs its own length.

use super::error::TokenizerError;
use super::fast_decode::FastDecoder;
use super::slow_decode::SlowDecoder;
use super::{DecodeOptions, Tokenizer};

/// The state of one sequence; it belongs to the tokenizer that made it.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    state: State,
    options: DecodeOptions,
}

#[derive(Clone, Debug)]
enum State {
    Slow(Box<SlowDecoder>),
    Fast(Box<FastDecoder>),
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: &Tokenizer, options: DecodeOptions) -> Self {
        let state = match tokenizer {
            Tokenizer::Slow(tokenizer) => {
                State::Slow(Box::new(SlowDecoder::new(tokenizer, options)))
            }
            Tokenizer::Fast(tokenizer) => State::Fast(Box::new(tokenizer.decoder(options))),
        };
        Self { state, options }
    }

    /// Takes the next id; returns text where some became certain.
    ///
    /// # Errors
    /// The slow class names an id that it does not know; the state stays as it was.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
    ) -> Result<Option<String>, TokenizerError> {
        let mut text = String::new();
        match (&mut self.state, tokenizer) {
            (State::Slow(state), Tokenizer::Slow(tokenizer)) => {
                state.push(tokenizer, id, &mut text)?;
            }
            (State::Fast(state), Tokenizer::Fast(tokenizer)) => {
                tokenizer.push(state, id, self.options.skip_special_tokens, &mut text);
            }
            _ => return Err(other_tokenizer()),
        }
        Ok((!text.is_empty()).then_some(text))
    }

    /// Returns what was held back, and starts anew.
    ///
    /// # Errors
    /// Where the tokenizer is not the one that made this decoder.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let mut text = String::new();
        match (&mut self.state, tokenizer) {
            (State::Slow(state), Tokenizer::Slow(tokenizer)) => state.finish(tokenizer, &mut text),
            (State::Fast(state), Tokenizer::Fast(_)) => state.finish(&mut text),
            _ => return Err(other_tokenizer()),
        }
        Ok(text)
    }
}

fn other_tokenizer() -> TokenizerError {
    TokenizerError::Value("a stream decoder must be used with the tokenizer that made it".into())
}
