//! What can be wrong with a model file. Every error names the file and the field or tensor, most
//! of them the byte offset, and says what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::ConfigError;

/// A model that cannot be opened, or a tensor that cannot be read.
#[derive(Debug)]
pub struct CheckpointError {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    field: String,
    offset: Option<u64>,
    fault: Fault,
}

impl CheckpointError {
    /// The file or folder at fault.
    pub fn file(&self) -> &Path {
        &self.inner.file
    }

    /// The field, key or tensor at fault.
    pub fn field(&self) -> &str {
        &self.inner.field
    }

    /// Where in the file, in bytes from its start.
    pub fn offset(&self) -> Option<u64> {
        self.inner.offset
    }

    /// What is wrong.
    pub fn fault(&self) -> &Fault {
        &self.inner.fault
    }

    pub(crate) fn new(file: &Path, field: impl Into<String>, fault: Fault) -> Self {
        let inner = Inner { file: file.to_owned(), field: field.into(), offset: None, fault };
        Self { inner: Box::new(inner) }
    }

    /// The same, at a byte of the file.
    pub(super) fn at(mut self, offset: usize) -> Self {
        self.inner.offset = Some(offset as u64);
        self
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { file, field, offset, fault } = &*self.inner;
        write!(f, "{}: ", file.display())?;
        if !field.is_empty() && !fault.names(field) {
            write!(f, "{}: ", Shown(field))?;
        }
        if let Some(offset) = offset {
            write!(f, "at byte {offset}: ")?;
        }
        write!(f, "{fault}")
    }
}

/// Without a source: the text says all that the fault holds, and a printer of chains would say it
/// twice.
impl std::error::Error for CheckpointError {}

/// A name out of a file: control characters escaped, cut where it is long.
#[derive(Debug)]
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX: usize = 120;
        for (i, c) in self.0.chars().enumerate() {
            if i == MAX {
                return f.write_str("…");
            }
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// What is wrong with a field or tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The operating system refused.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// Nothing here to open.
    #[error("{0}")]
    NotFound(String),
    /// A configuration that cannot be used.
    #[error("{0}")]
    Config(ConfigError),
    /// The model is of another architecture.
    #[error("'{0}' is not a plain LLaMA; Puna runs only LLaMA models")]
    NotALlama(String),
    /// The file ends too early.
    #[error(
        "needs {needed} bytes, but only {left} are left; the file is cut short or damaged, fetch it again"
    )]
    Truncated {
        /// Bytes that the field takes.
        needed: u64,
        /// Bytes from its start to the end of the file.
        left: u64,
    },
    /// A length or count beyond any that a LLaMA has.
    #[error(
        "says {value}, more than the {limit} that is accepted; the file is damaged or hostile, do not use it"
    )]
    TooLarge {
        /// What the file says.
        value: u64,
        /// What is accepted.
        limit: u64,
    },
    /// Bytes that are not what the format asks for.
    #[error("{0}; the file is damaged, fetch it again")]
    Malformed(String),
    /// A part of the format, or a kind of model, that Puna does not read.
    #[error("{0}")]
    Unsupported(String),
    /// A product of sizes does not fit the machine.
    #[error("shape {shape:?} overflows; the file is damaged or hostile, do not use it")]
    ShapeOverflow {
        /// As the file says it.
        shape: Vec<u64>,
    },
    /// A tensor's shape and its bytes disagree.
    #[error(
        "its shape takes {expected} bytes, but the file gives it {got}; the file is damaged, fetch it again"
    )]
    WrongLength {
        /// Bytes that shape and type ask for.
        expected: u64,
        /// Bytes that the file names.
        got: u64,
    },
    /// Two tensors share bytes.
    #[error("overlaps with '{}'; the file is damaged or hostile, do not use it", Shown(other))]
    Overlap {
        /// The other tensor.
        other: String,
    },
    /// Bytes between tensors that belong to none.
    #[error(
        "is preceded by {bytes} bytes that belong to no tensor; the file is damaged, fetch it again"
    )]
    Hole {
        /// How many.
        bytes: u64,
    },
    /// A tensor does not start at a multiple of the alignment.
    #[error(
        "does not start at a multiple of {alignment} bytes; the file is damaged, fetch it again"
    )]
    Misaligned {
        /// Alignment of the file.
        alignment: u64,
    },
    /// A name is there twice.
    #[error("is there twice; the file is damaged, fetch it again")]
    Duplicate,
    /// The pickle asks for code outside the list of what tensors need.
    #[error("the pickle asks to run '{}', which no tensor needs; the file may be an attack, do not use it", Shown(.0))]
    ForbiddenGlobal(String),
    /// A file that an index names is not there.
    #[error("the file '{}' that it names is missing; fetch it, all shards are needed", Shown(.0))]
    MissingShard(String),
    /// Tensors that the configuration asks for are not there.
    #[error("lacks {} that the configuration asks for: {}", tensors(.0.len()), list(.0))]
    MissingTensors(Vec<String>),
    /// Tensors that no LLaMA of this configuration has.
    #[error("holds {} that the configuration has no place for: {}", tensors(.0.len()), list(.0))]
    UnexpectedTensors(Vec<String>),
    /// A tensor's shape is not the configuration's.
    #[error(
        "has shape {got:?}, but the configuration asks for {expected:?}; config and weights are of different models"
    )]
    WrongShape {
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file has.
        got: Vec<usize>,
    },
    /// A tensor of a type that weights do not have.
    #[error("holds {0}, which is not a weight format that Puna computes with")]
    NotAWeight(&'static str),
}

impl Fault {
    /// Whether the text of the fault names the field by itself, as most of a configuration do.
    fn names(&self, field: &str) -> bool {
        matches!(self, Self::Config(error) if error.to_string().contains(field))
    }
}

/// `1 tensor`, `2 tensors`.
fn tensors(count: usize) -> String {
    if count == 1 { "1 tensor".to_owned() } else { format!("{count} tensors") }
}

/// The first names of a list.
fn list(names: &[String]) -> String {
    const MAX: usize = 8;
    let shown: Vec<String> = names.iter().take(MAX).map(|name| Shown(name).to_string()).collect();
    let more = if names.len() > MAX { ", …" } else { "" };
    shown.join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tensor_is_not_many() {
        let lacks = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            Fault::MissingTensors(names).to_string()
        };
        assert!(lacks(&["a"]).starts_with("lacks 1 tensor that"));
        assert!(lacks(&["a", "b"]).starts_with("lacks 2 tensors that"));
    }
}
