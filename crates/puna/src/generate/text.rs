//! From the ids of one sequence to its text: decoded as they come, ended by a stop string.

use super::StopMatcher;
use crate::tokenizer::{DecodeStream, Tokenizer};

/// Text that an id completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextPiece {
    /// Empty while a character, or what may become a stop string, is still incomplete.
    pub text: String,
    /// The stop string that ended the text, once one did.
    pub stopped: Option<String>,
}
