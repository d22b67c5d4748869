//! The metadata of a GGUF file: keys with typed values. Strings and arrays stay where they are in
//! the file and are read on demand, so that a file of any claims takes no memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::super::error::{CheckpointError, Fault};
use super::super::reader::Reader;

/// Keys in one file; a LLaMA has some 40.
const MAX_KEYS: u64 = 1 << 16;
/// Bytes of a key, as the format says.
const MAX_KEY_LEN: u64 = (1 << 16) - 1;
/// Arrays in arrays.
const MAX_DEPTH: usize = 4;

/// Keys and values of a file.
#[derive(Clone, Debug)]
pub struct Metadata {
    file: Arc<Path>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    offset: usize,
    value: Value,
}

/// A value of the metadata.
#[derive(Clone, Debug)]
pub enum Value {
    /// Whole numbers without sign, of any width.
    Unsigned(u64),
    /// Whole numbers with a sign.
    Signed(i64),
    /// `f32`.
    F32(f32),
    /// `f64`.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8.
    Text(Text),
    /// Values of one type.
    Array(Array),
}

/// A string in the file.
#[derive(Clone, Debug)]
pub struct Text(Bytes);

impl Text {
    /// The string. It was checked when the file was read.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// An array in the file.
#[derive(Clone, Debug)]
pub struct Array {
    kind: Kind,
    count: usize,
    bytes: Bytes,
}

impl Array {
    /// How many values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Name of the values' type.
    pub fn type_name(&self) -> &'static str {
        self.kind.name()
    }
}

/// The types of the format, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Name, and bytes of one value; 0 where that differs from value to value.
    const fn row(self) -> (&'static str, usize) {
        match self {
            Self::U8 => ("u8", 1),
            Self::I8 => ("i8", 1),
            Self::U16 => ("u16", 2),
            Self::I16 => ("i16", 2),
            Self::U32 => ("u32", 4),
            Self::I32 => ("i32", 4),
            Self::F32 => ("f32", 4),
            Self::Bool => ("bool", 1),
            Self::Text => ("string", 0),
            Self::Array => ("array", 0),
            Self::U64 => ("u64", 8),
            Self::I64 => ("i64", 8),
            Self::F64 => ("f64", 8),
        }
    }

    const fn name(self) -> &'static str {
        self.row().0
    }
}

impl Value {
    /// Name of the value's type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "unsigned integer",
            Self::Signed(_) => "signed integer",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::Text(_) => "string",
            Self::Array(_) => "array",
        }
    }
}

impl Metadata {
    /// Reads `count` keys with their values from where `reader` stands.
    pub(super) fn read(
        file: &Arc<Path>,
        bytes: &Bytes,
        reader: &mut Reader<'_>,
        count: u64,
    ) -> Result<Self, CheckpointError> {
        reader.limited("metadata count", count, MAX_KEYS)?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let len = reader.u64("metadata key")?;
            reader.limited("metadata key", len, MAX_KEY_LEN)?;
            let key = text(reader, "metadata key", len)?.to_owned();
            let offset = reader.position();
            let kind = kind(reader, &key)?;
            let value = value(bytes, reader, &key, kind)?;
            if entries.contains_key(&key) {
                return Err(reader.error(&key, Fault::Duplicate));
            }
            entries.insert(key, Entry { offset, value });
        }
        Ok(Self { file: Arc::clone(file), entries })
    }

    /// All keys with their values, in order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, entry)| (&**key, &entry.value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// An error at a key.
    pub(super) fn error(&self, key: &str, fault: Fault) -> CheckpointError {
        let error = CheckpointError::new(&self.file, key, fault);
        match self.entries.get(key) {
            Some(entry) => error.at(entry.offset),
            None => error,
        }
    }

    pub(super) fn missing(&self, key: &str) -> CheckpointError {
        self.error(key, Fault::Malformed("the metadata lacks this key".to_owned()))
    }

    fn wrong_type(&self, key: &str, expected: &str, value: &Value) -> CheckpointError {
        let why = format!("is of type {} where {expected} belongs", value.type_name());
        self.error(key, Fault::Malformed(why))
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(self.wrong_type(key, "a string", other)),
        }
    }

    /// A whole number of at least 0.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) if *n >= 0 => Ok(Some(n.unsigned_abs())),
            Some(other) => Err(self.wrong_type(key, "a whole number of at least 0", other)),
        }
    }

    /// A number with a fraction. An `f32` becomes the `f64` of its shortest decimal form, so that
    /// the 1e-5 of a file is 1e-5 again.
    pub fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(x.to_string().parse().unwrap_or(f64::from(*x)))),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(other) => Err(self.wrong_type(key, "a float", other)),
        }
    }

    /// A truth value.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(other) => Err(self.wrong_type(key, "a bool", other)),
        }
    }

    fn array(&self, key: &str) -> Result<Option<&Array>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => Err(self.wrong_type(key, "an array", other)),
        }
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, CheckpointError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let bad = || {
            let found = array.kind.name();
            self.error(key, Fault::Malformed(format!("is an array of {found}, not of strings")))
        };
        if array.kind != Kind::Text {
            return Err(bad());
        }
        let mut reader = Reader::new(&self.file, &array.bytes, 0);
        let mut out = Vec::with_capacity(array.count);
        for _ in 0..array.count {
            let len = reader.u64(key)?;
            out.push(text(&mut reader, key, len)?.to_owned());
        }
        Ok(Some(out))
    }

    /// An array of `f32`.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        let values = self.words(key, &[Kind::F32])?;
        Ok(values.map(|words| words.into_iter().map(f32::from_bits).collect()))
    }

    /// An array of 32-bit whole numbers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, CheckpointError> {
        let values = self.words(key, &[Kind::I32, Kind::U32])?;
        Ok(values.map(|words| words.into_iter().map(u32::cast_signed).collect()))
    }

    fn words(&self, key: &str, kinds: &[Kind]) -> Result<Option<Vec<u32>>, CheckpointError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        if !kinds.contains(&array.kind) {
            let (found, wanted) = (array.kind.name(), kinds[0].name());
            let why = format!("is an array of {found}, not of {wanted}");
            return Err(self.error(key, Fault::Malformed(why)));
        }
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(Some(array.bytes.chunks_exact(4).map(word).collect()))
    }
}

fn kind(reader: &mut Reader<'_>, key: &str) -> Result<Kind, CheckpointError> {
    let number = reader.u32(key)?;
    let kind = Kind::ALL.get(number as usize).copied();
    kind.ok_or_else(|| reader.malformed(key, format!("has the unknown type {number}")))
}

/// `len` bytes of UTF-8.
pub(super) fn text<'a>(
    reader: &mut Reader<'a>,
    key: &str,
    len: u64,
) -> Result<&'a str, CheckpointError> {
    let start = reader.position();
    let bytes = reader.take(key, len)?;
    std::str::from_utf8(bytes).map_err(|e| {
        let fault = Fault::Malformed("is not UTF-8".to_owned());
        CheckpointError::new(reader.file, key, fault).at(start + e.valid_up_to())
    })
}

fn value(
    bytes: &Bytes,
    reader: &mut Reader<'_>,
    key: &str,
    kind: Kind,
) -> Result<Value, CheckpointError> {
    Ok(match kind {
        Kind::U8 => Value::Unsigned(reader.u8(key)?.into()),
        Kind::U16 => Value::Unsigned(reader.u16(key)?.into()),
        Kind::U32 => Value::Unsigned(reader.u32(key)?.into()),
        Kind::U64 => Value::Unsigned(reader.u64(key)?),
        Kind::I8 => Value::Signed(reader.u8(key)?.cast_signed().into()),
        Kind::I16 => Value::Signed(reader.u16(key)?.cast_signed().into()),
        Kind::I32 => Value::Signed(reader.u32(key)?.cast_signed().into()),
        Kind::I64 => Value::Signed(reader.u64(key)?.cast_signed()),
        Kind::F32 => Value::F32(f32::from_bits(reader.u32(key)?)),
        Kind::F64 => Value::F64(f64::from_bits(reader.u64(key)?)),
        Kind::Bool => match reader.u8(key)? {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(reader.malformed(key, format!("has {other} for a bool"))),
        },
        Kind::Text => {
            let len = reader.u64(key)?;
            let start = reader.position();
            let len = text(reader, key, len)?.len();
            Value::Text(Text(bytes.slice(start..start + len)))
        }
        Kind::Array => {
            let (kind, count) = array_head(reader, key)?;
            let start = reader.position();
            skip(reader, key, kind, count, 1)?;
            // Every value takes at least a byte, so that the count fits.
            let count = count as usize;
            Value::Array(Array { kind, count, bytes: bytes.slice(start..reader.position()) })
        }
    })
}

fn array_head(reader: &mut Reader<'_>, key: &str) -> Result<(Kind, u64), CheckpointError> {
    let kind = kind(reader, key)?;
    Ok((kind, reader.u64(key)?))
}

/// Steps over the values of an array, and checks that they are all there.
fn skip(
    reader: &mut Reader<'_>,
    key: &str,
    kind: Kind,
    count: u64,
    depth: usize,
) -> Result<(), CheckpointError> {
    if depth > MAX_DEPTH {
        let limit = MAX_DEPTH as u64;
        return Err(reader.error(key, Fault::TooLarge { value: depth as u64, limit }));
    }
    let size = kind.row().1 as u64;
    // A string takes its length at least, an array its type and count.
    let least = if size > 0 { size } else { 8 };
    let needed = count.saturating_mul(least);
    if needed > reader.left() as u64 {
        return Err(reader.error(key, Fault::Truncated { needed, left: reader.left() as u64 }));
    }
    if size > 0 {
        reader.take(key, needed)?;
        return Ok(());
    }
    for _ in 0..count {
        if kind == Kind::Text {
            let len = reader.u64(key)?;
            reader.take(key, len)?;
        } else {
            let (kind, count) = array_head(reader, key)?;
            skip(reader, key, kind, count, depth + 1)?;
        }
    }
    Ok(())
}
