//! The zip files that PyTorch writes: entries stored as they are, so that each is a range of the
//! file. Bytes enter, names and ranges leave. Compressed entries are refused.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::error::{CheckpointError, Fault};
use super::reader::Reader;

const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const END_LEN: usize = 22;
const CENTRAL_LEN: u64 = 46;
/// A field whose value stands in the 64-bit extension.
const IN_EXTRA: u32 = u32::MAX;

/// The entries of a file and where their bytes lie.
pub(super) fn entries(
    file: &Path,
    bytes: &[u8],
) -> Result<BTreeMap<String, Range<usize>>, CheckpointError> {
    let (count, start) = directory(file, bytes)?;
    let mut reader = Reader::new(file, bytes, usize::try_from(start).unwrap_or(usize::MAX));
    let most = reader.left() as u64 / CENTRAL_LEN;
    reader.limited("zip directory", count, most)?;
    let mut found = BTreeMap::new();
    for _ in 0..count {
        let (name, range) = entry(file, bytes, &mut reader)?;
        if found.contains_key(&name) {
            return Err(reader.error(&name, Fault::Duplicate));
        }
        found.insert(name, range);
    }
    let mut in_order: Vec<_> = found.iter().collect();
    in_order.sort_by_key(|(_, range)| range.start);
    for pair in in_order.windows(2) {
        let ((first, a), (second, b)) = (pair[0], pair[1]);
        if b.start < a.end {
            let fault = Fault::Overlap { other: first.clone() };
            return Err(CheckpointError::new(file, second, fault).at(b.start));
        }
    }
    Ok(found)
}

/// How many entries the directory has, and where it starts.
fn directory(file: &Path, bytes: &[u8]) -> Result<(u64, u64), CheckpointError> {
    // The end record is the last thing in the file but for a comment of at most 64 KiB.
    let earliest = bytes.len().saturating_sub(END_LEN + usize::from(u16::MAX));
    let is_end = |at: &usize| bytes[*at..].starts_with(&END.to_le_bytes());
    let Some(end) = (earliest..bytes.len()).rev().find(is_end) else {
        let why = "the zip directory is missing; the file is cut short".to_owned();
        let error = CheckpointError::new(file, "zip directory", Fault::Malformed(why));
        return Err(error.at(bytes.len()));
    };
    let mut reader = Reader::new(file, bytes, end + 4);
    let field = "zip directory";
    reader.take(field, 6)?;
    let count = reader.u16(field)?;
    reader.u32(field)?;
    let start = reader.u32(field)?;
    if count != u16::MAX && start != IN_EXTRA {
        return Ok((count.into(), start.into()));
    }
    let mut locator = Reader::new(file, bytes, end.saturating_sub(20));
    if locator.u32(field)? != LOCATOR_64 {
        return Err(locator.malformed(field, "the 64-bit locator is missing"));
    }
    locator.u32(field)?;
    let at = locator.u64(field)?;
    let mut record = Reader::new(file, bytes, usize::try_from(at).unwrap_or(usize::MAX));
    if record.u32(field)? != END_64 {
        return Err(record.malformed(field, "the 64-bit end record is missing"));
    }
    record.take(field, 28)?;
    let count = record.u64(field)?;
    record.u64(field)?;
    let start = record.u64(field)?;
    Ok((count, start))
}

/// One line of the directory, checked against the entry's own header.
fn entry(
    file: &Path,
    bytes: &[u8],
    reader: &mut Reader<'_>,
) -> Result<(String, Range<usize>), CheckpointError> {
    let field = "zip directory";
    if reader.u32(field)? != CENTRAL {
        return Err(reader.malformed(field, "an entry does not begin with its mark"));
    }
    reader.take(field, 4)?;
    let flags = reader.u16(field)?;
    let method = reader.u16(field)?;
    reader.take(field, 8)?;
    let packed = reader.u32(field)?;
    let plain = reader.u32(field)?;
    let name_len = reader.u16(field)?;
    let extra_len = reader.u16(field)?;
    let comment_len = reader.u16(field)?;
    reader.take(field, 8)?;
    let header_at = reader.u32(field)?;
    let name = reader.take(field, name_len.into())?;
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(reader.malformed(field, "an entry's name is not UTF-8"));
    };
    let extra_at = reader.position();
    let extra = reader.take(name, extra_len.into())?;
    reader.take(name, comment_len.into())?;
    if method != 0 || flags & 1 != 0 {
        let why = "the zip entry is compressed or encrypted, which PyTorch never does; save it again with torch.save";
        return Err(reader.error(name, Fault::Unsupported(why.to_owned())));
    }
    let mut wide = Reader::new(file, &bytes[..extra_at + extra.len()], extra_at);
    let [plain, packed, header_at] = widen(&mut wide, name, [plain, packed, header_at])?;
    if plain != packed {
        return Err(reader.error(name, Fault::WrongLength { expected: plain, got: packed }));
    }
    let start = data_start(file, bytes, header_at, name)?;
    let left = (bytes.len() - start) as u64;
    match usize::try_from(plain) {
        Ok(len) if plain <= left => Ok((name.to_owned(), start..start + len)),
        _ => {
            let fault = Fault::Truncated { needed: plain, left };
            Err(CheckpointError::new(file, name, fault).at(start))
        }
    }
}

/// Takes the fields that do not fit 32 bits from the extension with id 1.
fn widen(
    extra: &mut Reader<'_>,
    name: &str,
    fields: [u32; 3],
) -> Result<[u64; 3], CheckpointError> {
    let mut out = fields.map(u64::from);
    if !fields.contains(&IN_EXTRA) {
        return Ok(out);
    }
    while extra.left() >= 4 {
        let id = extra.u16(name)?;
        let len = extra.u16(name)?;
        if id != 1 {
            extra.take(name, len.into())?;
            continue;
        }
        for (value, field) in out.iter_mut().zip(fields) {
            if field == IN_EXTRA {
                *value = extra.u64(name)?;
            }
        }
        return Ok(out);
    }
    Err(extra.malformed(name, "the zip entry's 64-bit sizes are missing"))
}

/// Where an entry's bytes begin: behind its own header.
fn data_start(
    file: &Path,
    bytes: &[u8],
    header_at: u64,
    name: &str,
) -> Result<usize, CheckpointError> {
    let mut local = Reader::new(file, bytes, usize::try_from(header_at).unwrap_or(usize::MAX));
    if local.u32(name)? != LOCAL {
        return Err(local.malformed(name, "the zip entry's own header is missing"));
    }
    local.take(name, 22)?;
    let name_len = local.u16(name)?;
    let extra_len = local.u16(name)?;
    if local.take(name, name_len.into())? != name.as_bytes() {
        return Err(local.malformed(name, "the zip entry's own header has another name"));
    }
    local.take(name, extra_len.into())?;
    Ok(local.position())
}
