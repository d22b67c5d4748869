//! Read-only maps of files. A path enters; [`Bytes`] that the operating system fills page by page,
//! when they are read, leave. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use memmap2::Mmap;

use super::error::{CheckpointError, Fault};

/// The maps of this process that somebody holds.
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

/// What owns the bytes of a map.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a whole file.
pub(super) fn map(path: &Path) -> Result<Bytes, CheckpointError> {
    let fault = |error| CheckpointError::new(path, "", Fault::Io(error));
    // Asked by name first: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(fault)?.is_file() {
        let message = "is not a regular file; name a model file or folder".to_owned();
        return Err(CheckpointError::new(path, "", Fault::NotFound(message)));
    }
    let file = File::open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is private and read-only, is at least one byte long, and lives as long as
    // the `Bytes` that owns it. What remains is another program that shortens the file while it is
    // mapped: reading the lost pages then ends the process with SIGBUS, and reads nothing else.
    let mapped = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) }.map_err(fault)?;
    let mapped = Arc::new(mapped);
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|map| map.strong_count() > 0);
    maps.push(Arc::downgrade(&mapped));
    Ok(Bytes::from_owner(Owner(mapped)))
}

/// Gives the memory behind `bytes` back to the system, where they are those of a map: what was
/// read and copied elsewhere need not be held twice. They are read from the file again when used.
pub(super) fn let_go(bytes: &[u8]) {
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    for map in maps.iter().filter_map(Weak::upgrade) {
        let (start, end) = (map.as_ptr().addr(), map.as_ptr().addr() + map.len());
        let at = bytes.as_ptr().addr();
        if bytes.is_empty() || at < start || at + bytes.len() > end {
            continue;
        }
        // SAFETY: the pages are those of a private, read-only map of a file, which nothing has
        // written to: the next read brings the same bytes.
        // A system that refuses keeps the memory, and nothing else changes.
        #[cfg(unix)]
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            map.unchecked_advise_range(advice, at - start, bytes.len())
        };
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_go_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let bytes = map(&path).unwrap();
        assert_eq!(bytes, content);
        let_go(&bytes[5000..90_000]);
        assert_eq!(bytes, content);
        // Not of a map: nothing happens.
        let_go(&content);
        assert_eq!(bytes, content);
    }
}
