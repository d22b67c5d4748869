//! `pytorch_model.bin`: what `torch.save` writes of a state dict, as a zip file (since PyTorch 1.6)
//! or as a row of pickles followed by raw storages (before). A path enters; names with mapped
//! bytes leave. Nothing in the file is run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::TensorMap;
use super::error::{CheckpointError, Fault};
use super::pickle::{self, Pickle, Storage, TensorView, Value};
use super::reader::{Reader, slice};
use super::tensor::{Place, StoredTensor};

/// Bytes of the pickle that describes the tensors.
const MAX_PICKLE: u64 = 8 << 20;
/// The first number in a file of the old form: 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Reads the description of one file's tensors.
pub(super) fn open(path: &Path) -> Result<TensorMap, CheckpointError> {
    let bytes = super::mmap::map(path)?;
    if bytes.starts_with(b"PK\x03\x04") {
        return open_zip(path, &bytes);
    }
    if bytes.starts_with(&[0x80]) {
        return open_legacy(path, &bytes);
    }
    let why = if bytes.get(257..262) == Some(b"ustar") {
        "is a tar file of PyTorch 0.1, which is not read; save it again with torch.save"
    } else {
        "is neither a zip file nor a pickle; torch.save writes no such file"
    };
    Err(CheckpointError::new(path, "first bytes", Fault::Unsupported(why.to_owned())).at(0))
}

/// Where the bytes of each storage lie.
type Storages = HashMap<String, Bytes>;

fn open_zip(path: &Path, bytes: &Bytes) -> Result<TensorMap, CheckpointError> {
    let entries = super::zip::entries(path, bytes)?;
    let of_pickle = |name: &&String| name.ends_with("/data.pkl") || *name == "data.pkl";
    let Some(pickle_name) = entries.keys().find(of_pickle) else {
        let why = "the zip file holds no data.pkl; torch.save did not write it".to_owned();
        return Err(CheckpointError::new(path, "data.pkl", Fault::Unsupported(why)));
    };
    let prefix = pickle_name.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(range) = entries.get(&format!("{prefix}byteorder"))
        && &bytes[range.clone()] != b"little"
    {
        let why = "the file was written on a big-endian machine, which is not read".to_owned();
        let error = CheckpointError::new(path, "byteorder", Fault::Unsupported(why));
        return Err(error.at(range.start));
    }
    let range = &entries[pickle_name];
    let mut reader = Reader::new(path, &bytes[..range.end], range.start);
    reader.limited("data.pkl", range.len() as u64, MAX_PICKLE)?;
    let pickle = pickle::read(&mut reader, &bytes[..range.end])?;
    let mut storages = Storages::new();
    for storage in pickle.storages() {
        let entry = format!("{prefix}data/{}", storage.key);
        let Some(range) = entries.get(&entry) else {
            let why = "the zip file lacks this storage".to_owned();
            return Err(CheckpointError::new(path, entry, Fault::Malformed(why)));
        };
        check_storage(path, &entry, storage, range.len(), range.start)?;
        storages.insert(storage.key.clone(), bytes.slice(range.clone()));
    }
    state_dict(path, &pickle, &storages)
}

/// Bytes of one value of a storage.
fn value_bytes(storage: &Storage) -> u64 {
    let one = storage.encoding.and_then(|encoding| encoding.tensor_bytes(&[]));
    one.unwrap_or(1) as u64
}

fn check_storage(
    path: &Path,
    field: &str,
    storage: &Storage,
    got: usize,
    at: usize,
) -> Result<(), CheckpointError> {
    let expected = storage.count.checked_mul(value_bytes(storage));
    if expected == Some(got as u64) {
        return Ok(());
    }
    let fault = match expected {
        Some(expected) => Fault::WrongLength { expected, got: got as u64 },
        None => Fault::ShapeOverflow { shape: vec![storage.count] },
    };
    Err(CheckpointError::new(path, field, fault).at(at))
}

/// Five pickles (magic number, version, machine, state dict, keys of the storages), then for each
/// key a count and its values.
fn open_legacy(path: &Path, bytes: &Bytes) -> Result<TensorMap, CheckpointError> {
    let head = bytes.len().min(MAX_PICKLE as usize);
    let mut reader = Reader::new(path, &bytes[..head], 0);
    let mut next = || pickle::read(&mut reader, bytes);
    let magic = next()?;
    if magic.long(magic.root()) != Some(&MAGIC) {
        let why =
            "the pickle does not begin with PyTorch's magic number; it holds no weights".to_owned();
        return Err(CheckpointError::new(path, "magic number", Fault::Unsupported(why)).at(0));
    }
    let version = next()?;
    if !matches!(version.root(), Value::Int(1001)) {
        let why = "the version of the file is not 1001".to_owned();
        return Err(CheckpointError::new(path, "version", Fault::Unsupported(why)));
    }
    let machine = next()?;
    if let Value::Dict(items) = machine.root() {
        let big = |(key, value): &(usize, usize)| {
            machine.text(*key) == Some("little_endian")
                && matches!(machine.get(*value), Value::Bool(false))
        };
        if items.iter().any(big) {
            let why = "the file was written on a big-endian machine, which is not read".to_owned();
            return Err(CheckpointError::new(path, "little_endian", Fault::Unsupported(why)));
        }
    }
    let dict = next()?;
    let keys = next()?;
    let mut reader = Reader::new(path, bytes, reader.position());
    let storages = legacy_storages(path, bytes, &mut reader, &dict, &keys)?;
    state_dict(path, &dict, &storages)
}

fn legacy_storages(
    path: &Path,
    bytes: &Bytes,
    reader: &mut Reader<'_>,
    dict: &Pickle<'_>,
    keys: &Pickle<'_>,
) -> Result<Storages, CheckpointError> {
    let Value::List(ids) = keys.root() else {
        return Err(reader.malformed("storage keys", "the list of storages is missing"));
    };
    let named: HashMap<&str, &Storage> = dict.storages().map(|s| (&*s.key, s)).collect();
    let mut storages = Storages::new();
    for id in ids {
        let key = keys.text(*id).unwrap_or_default();
        let Some(storage) = named.get(key) else {
            return Err(
                reader.malformed("storage keys", format!("'{key:.40}' belongs to no tensor"))
            );
        };
        let field = format!("storage {key}");
        let count = reader.u64(&field)?;
        if count != storage.count {
            let fault = Fault::WrongLength { expected: storage.count, got: count };
            return Err(reader.error(&field, fault));
        }
        let Some(len) = count.checked_mul(value_bytes(storage)) else {
            return Err(reader.error(&field, Fault::ShapeOverflow { shape: vec![count] }));
        };
        let start = reader.position();
        let len = reader.take(&field, len)?.len();
        check_storage(path, &field, storage, len, start)?;
        storages.insert(key.to_owned(), bytes.slice(start..start + len));
    }
    if let Some(absent) = named.keys().find(|key| !storages.contains_key(**key)) {
        return Err(reader.malformed(&format!("storage {absent}"), "the file lacks this storage"));
    }
    Ok(storages)
}

fn state_dict(
    path: &Path,
    pickle: &Pickle<'_>,
    storages: &Storages,
) -> Result<TensorMap, CheckpointError> {
    let Value::Dict(items) = pickle.root() else {
        let why = "the pickle is not a dict of tensors".to_owned();
        return Err(CheckpointError::new(path, "pickle", Fault::Unsupported(why)));
    };
    let file: Arc<Path> = Arc::from(path);
    let mut tensors = TensorMap::new();
    for (key, value) in items {
        let Some(name) = pickle.text(*key) else {
            let why = "a key of the state dict is not a string".to_owned();
            return Err(CheckpointError::new(path, "pickle", Fault::Malformed(why)));
        };
        let error = |fault| CheckpointError::new(path, name, fault);
        let Value::Tensor(view) = pickle.get(*value) else {
            let why = "is not a tensor; only plain state dicts are read".to_owned();
            return Err(error(Fault::Unsupported(why)));
        };
        let (shape, place) = place(view, storages).map_err(error)?;
        let file = Arc::clone(&file);
        let stored = StoredTensor { encoding: view.encoding, shape, place, file };
        if tensors.insert(name.to_owned(), stored).is_some() {
            return Err(error(Fault::Duplicate));
        }
    }
    Ok(tensors)
}

/// Checks a view against its storage.
fn place(view: &TensorView, storages: &Storages) -> Result<(Vec<usize>, Place), Fault> {
    let overflow = || Fault::ShapeOverflow { shape: view.shape.clone() };
    let to_usize = |list: &[u64]| list.iter().map(|n| usize::try_from(*n).ok()).collect();
    let shape: Vec<usize> = Option::ok_or_else(to_usize(&view.shape), overflow)?;
    let strides: Vec<usize> = Option::ok_or_else(to_usize(&view.strides), overflow)?;
    let start = usize::try_from(view.offset).map_err(|_| overflow())?;
    let storage = storages.get(&view.storage.key).cloned().unwrap_or_default();
    let size = view.encoding.tensor_bytes(&[]).unwrap_or(1);
    let bytes = view.encoding.tensor_bytes(&shape).ok_or_else(overflow)?;
    if bytes == 0 {
        return Ok((shape, Place::Whole(Bytes::new())));
    }
    if bytes > storage.len() {
        return Err(Fault::WrongLength { expected: bytes as u64, got: storage.len() as u64 });
    }
    // The last value's place, counted in bytes from the storage's start to the value's end.
    let reach = shape
        .iter()
        .zip(&strides)
        .try_fold(start, |at, (n, stride)| at.checked_add((n - 1).checked_mul(*stride)?))
        .and_then(|last| last.checked_add(1)?.checked_mul(size))
        .ok_or_else(overflow)?;
    if reach > storage.len() {
        return Err(Fault::Truncated { needed: reach as u64, left: storage.len() as u64 });
    }
    if is_in_order(&shape, &strides) {
        let whole = slice(&storage, start * size, bytes).ok_or_else(overflow)?;
        return Ok((shape, Place::Whole(whole)));
    }
    Ok((shape, Place::Strided { storage, start, strides }))
}

/// Whether the values lie row after row without gaps.
fn is_in_order(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (n, stride) in shape.iter().zip(strides).rev() {
        if *n != 1 && *stride != expected {
            return false;
        }
        expected *= n;
    }
    true
}
