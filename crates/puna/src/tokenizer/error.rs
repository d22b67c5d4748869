//! What can go wrong with a tokenizer. Every error says which file and which field, what is wrong
//! there and what to do about it. The text holds the system's own words where it refused, so that
//! no error has a source beside it.

use std::path::{Path, PathBuf};

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read or written.
    #[error("{path}: {error}; check that the path is right and readable", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The bytes are not what their format says.
    #[error("{file}: {what}; the file is broken, fetch it again")]
    Malformed {
        /// The file, or the name of the metadata.
        file: String,
        /// Field and offset, and what is wrong there.
        what: String,
    },
    /// The file is well-formed, and asks for something that a LLaMA tokenizer does not have.
    #[error("{file}: {what} is not supported; {hint}")]
    Unsupported {
        /// The file, or the name of the metadata.
        file: String,
        /// The field and its value.
        what: String,
        /// What works instead.
        hint: &'static str,
    },
    /// A folder holds no tokenizer.
    #[error(
        "{path}: no tokenizer.json and no tokenizer.model here; give a folder that holds one of them",
        path = path.display()
    )]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// Splitting the text with the file's regular expression took too many steps.
    #[error(
        "the tokenizer's pattern {pattern:?} gave up on this text: {reason}; shorten the text or use a tokenizer with a simpler pattern"
    )]
    Pattern {
        /// The expression.
        pattern: String,
        /// What the expression engine said.
        reason: String,
    },
    /// An id that the vocabulary does not have.
    #[error("token id {id} is out of range: the tokenizer knows the ids below {len}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Ids known.
        len: usize,
    },
    /// A value that contradicts the tokenizer's own state, in the words of Transformers.
    #[error("{0}")]
    Value(String),
}

impl TokenizerError {
    pub(super) fn malformed(file: &str, what: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_owned(), what: what.into() }
    }

    pub(super) fn unsupported(file: &str, what: impl Into<String>, hint: &'static str) -> Self {
        Self::Unsupported { file: file.to_owned(), what: what.into(), hint }
    }

    pub(super) fn io(path: &Path, error: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}
