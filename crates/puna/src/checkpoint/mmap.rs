//! Read-only maps of files. A path enters; [`Bytes`] that the operating system fills page by page,
//! when they are read, leave. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use bytes::Bytes;

use super::error::{CheckpointError, Fault};

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
    Ok(Bytes::from_owner(mapped))
}
