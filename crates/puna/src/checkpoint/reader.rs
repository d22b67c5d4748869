//! A place in a file's bytes. Every read is checked against what is left, and a failed one says
//! which file, which field and where.

use std::path::Path;

use bytes::Bytes;

use super::error::{CheckpointError, Fault};

/// Reads little-endian values from the front of a part of a file.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    pub(super) file: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Starts at byte `position` of the file's `bytes`; beyond the end there is nothing to read.
    pub(super) fn new(file: &'a Path, bytes: &'a [u8], position: usize) -> Self {
        Self { file, bytes, position: position.min(bytes.len()) }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, field: &str, len: u64) -> Result<&'a [u8], CheckpointError> {
        let left = self.left();
        let taken = usize::try_from(len).ok().filter(|len| *len <= left);
        let Some(len) = taken else {
            let fault = Fault::Truncated { needed: len, left: left as u64 };
            return Err(self.error(field, fault));
        };
        let start = self.position;
        self.position += len;
        Ok(&self.bytes[start..start + len])
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], CheckpointError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(field, N as u64)?);
        Ok(out)
    }

    pub(super) fn u8(&mut self, field: &str) -> Result<u8, CheckpointError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &str) -> Result<u16, CheckpointError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32, CheckpointError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64, CheckpointError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A fault at the present place.
    pub(super) fn error(&self, field: &str, fault: Fault) -> CheckpointError {
        CheckpointError::new(self.file, field, fault).at(self.position)
    }

    pub(super) fn malformed(&self, field: &str, why: impl Into<String>) -> CheckpointError {
        self.error(field, Fault::Malformed(why.into()))
    }

    /// `value`, or an error where it is above `limit`.
    pub(super) fn limited(
        &self,
        field: &str,
        value: u64,
        limit: u64,
    ) -> Result<u64, CheckpointError> {
        if value > limit {
            return Err(self.error(field, Fault::TooLarge { value, limit }));
        }
        Ok(value)
    }
}

/// Text of a small file, such as JSON; `None` where there is no such file.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<Option<String>, CheckpointError> {
    let bytes = match super::mmap::map(path) {
        Ok(bytes) => bytes,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let reader = Reader::new(path, &bytes, 0);
    reader.limited("size", bytes.len() as u64, limit)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned())),
        Err(error) => {
            let why = "is not UTF-8 text".to_owned();
            let error_at = CheckpointError::new(path, "text", Fault::Malformed(why));
            Err(error_at.at(error.valid_up_to()))
        }
    }
}

fn is_absent(error: &CheckpointError) -> bool {
    matches!(error.fault(), Fault::Io(e) if e.kind() == std::io::ErrorKind::NotFound)
}

/// `bytes[start..start + len]`, shared, where that lies inside.
pub(super) fn slice(bytes: &Bytes, start: usize, len: usize) -> Option<Bytes> {
    let end = start.checked_add(len).filter(|end| *end <= bytes.len())?;
    Some(bytes.slice(start..end))
}
