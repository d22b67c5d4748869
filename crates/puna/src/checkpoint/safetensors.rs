//! `.safetensors`: eight bytes of header length, a JSON header, then the tensors' bytes without
//! gap or overlap. A path enters; names with mapped bytes leave.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use puna_kernels::Format;
use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::TensorMap;
use super::error::{CheckpointError, Fault};
use super::reader::{Reader, slice};
use super::tensor::{Encoding, FLOAT64, Place, StoredTensor};

/// The format's own cap on the header.
const MAX_HEADER: u64 = 100_000_000;
/// Dimensions of a tensor; a LLaMA has at most two.
const MAX_DIMS: usize = 8;

/// Reads the header of one file.
pub(super) fn open(path: &Path) -> Result<TensorMap, CheckpointError> {
    let bytes = super::mmap::map(path)?;
    let mut reader = Reader::new(path, &bytes, 0);
    let len = reader.u64("header length")?;
    reader.limited("header length", len, MAX_HEADER)?;
    let start = reader.position();
    let header = reader.take("header", len)?;
    let entries = parse(path, header, start)?;
    let data = bytes.slice(reader.position()..);
    place(path, &data, reader.position(), entries)
}

/// One line of the header.
#[derive(Debug, Deserialize)]
struct Entry {
    dtype: Dtype,
    #[serde(deserialize_with = "dims")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Debug)]
struct Dtype(Encoding);

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let encoding = match name.as_str() {
            "F32" => Encoding::Weight(Format::F32),
            "F16" => Encoding::Weight(Format::F16),
            "BF16" => Encoding::Weight(Format::Bf16),
            "F64" => FLOAT64,
            "I64" => Encoding::Other("int64", 8),
            "I32" => Encoding::Other("int32", 4),
            "I16" => Encoding::Other("int16", 2),
            "I8" => Encoding::Other("int8", 1),
            "U64" => Encoding::Other("uint64", 8),
            "U32" => Encoding::Other("uint32", 4),
            "U16" => Encoding::Other("uint16", 2),
            "U8" => Encoding::Other("uint8", 1),
            "BOOL" => Encoding::Other("bool", 1),
            "C64" => Encoding::Other("complex64", 8),
            "F8_E4M3" => Encoding::Other("float8_e4m3", 1),
            "F8_E5M2" => Encoding::Other("float8_e5m2", 1),
            "F8_E8M0" => Encoding::Other("float8_e8m0", 1),
            _ => return Err(serde::de::Error::custom(format!("unknown dtype '{name:.20}'"))),
        };
        Ok(Self(encoding))
    }
}

fn dims<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Dims;
    impl<'de> Visitor<'de> for Dims {
        type Value = Vec<u64>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_DIMS} sizes")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while let Some(n) = seq.next_element()? {
                if shape.len() == MAX_DIMS {
                    return Err(serde::de::Error::invalid_length(MAX_DIMS + 1, &self));
                }
                shape.push(n);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Dims)
}

/// Collects the header's lines; `current` is the name at which an error arose.
struct Header<'a> {
    current: &'a mut String,
    entries: &'a mut Vec<(String, Entry)>,
}

impl<'de> DeserializeSeed<'de> for Header<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            self.current.clone_from(&name);
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let entry = map.next_value()?;
                self.entries.push((name, entry));
            }
            self.current.clear();
        }
        Ok(())
    }
}

fn parse(
    path: &Path,
    header: &[u8],
    start: usize,
) -> Result<Vec<(String, Entry)>, CheckpointError> {
    let mut current = String::new();
    let mut entries = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(header);
    let result = Header { current: &mut current, entries: &mut entries }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    let Err(error) = result else { return Ok(entries) };
    let field = if current.is_empty() { "header".to_owned() } else { current };
    // The header is one line, so that the column is the place.
    let column = if error.line() == 1 { error.column() } else { 0 };
    let fault = Fault::Malformed(format!("the header is not what it should be: {error}"));
    Err(CheckpointError::new(path, field, fault).at(start + column))
}

/// Gives each tensor its bytes, once all are checked; `data` begins at byte `base` of the file.
fn place(
    path: &Path,
    data: &Bytes,
    base: usize,
    mut entries: Vec<(String, Entry)>,
) -> Result<TensorMap, CheckpointError> {
    let file: Arc<Path> = Arc::from(path);
    entries.sort_by(|(a, x), (b, y)| x.data_offsets.cmp(&y.data_offsets).then_with(|| a.cmp(b)));
    let mut tensors = TensorMap::new();
    let mut end_of_last = 0;
    let mut last = String::new();
    for (name, entry) in entries {
        let error = |at: u64, fault| {
            let at = base.saturating_add(usize::try_from(at).unwrap_or(usize::MAX));
            CheckpointError::new(path, &name, fault).at(at)
        };
        let (start, end) = entry.data_offsets;
        if end < start {
            return Err(error(start, Fault::WrongLength { expected: 0, got: 0 }));
        }
        let left = (data.len() as u64).saturating_sub(start);
        if end - start > left {
            return Err(error(start, Fault::Truncated { needed: end - start, left }));
        }
        let overflow = || Fault::ShapeOverflow { shape: entry.shape.clone() };
        let shape: Option<Vec<usize>> =
            entry.shape.iter().map(|n| usize::try_from(*n).ok()).collect();
        let shape = shape.ok_or_else(|| error(start, overflow()))?;
        let expected =
            entry.dtype.0.tensor_bytes(&shape).ok_or_else(|| error(start, overflow()))? as u64;
        if expected != end - start {
            return Err(error(start, Fault::WrongLength { expected, got: end - start }));
        }
        if start < end_of_last {
            return Err(error(start, Fault::Overlap { other: last }));
        }
        if start > end_of_last {
            return Err(error(start, Fault::Hole { bytes: start - end_of_last }));
        }
        // Both are at most the length of the file.
        let bytes = slice(data, start as usize, (end - start) as usize)
            .ok_or_else(|| error(start, Fault::Truncated { needed: end - start, left }))?;
        let place = Place::Whole(bytes);
        let stored =
            StoredTensor { encoding: entry.dtype.0, shape, place, file: Arc::clone(&file) };
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(error(start, Fault::Duplicate));
        }
        end_of_last = end;
        last = name;
    }
    let rest = data.len() as u64 - end_of_last;
    if rest > 0 {
        let at = base + end_of_last as usize;
        return Err(CheckpointError::new(path, "end of file", Fault::Hole { bytes: rest }).at(at));
    }
    Ok(tensors)
}
