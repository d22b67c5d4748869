//! GGUF, versions 2 and 3, little-endian: metadata, then the list of tensors, then their bytes,
//! each at a multiple of the alignment. A path enters; a configuration, a tokenizer's parts and
//! names with mapped bytes leave. Files split by llama.cpp (`-00001-of-00003.gguf`) are joined.

mod config;
mod metadata;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use puna_kernels::Format;

pub use metadata::{Array, Metadata, Text, Value};

use super::TensorMap;
use super::error::{CheckpointError, Fault};
use super::reader::{Reader, slice};
use super::tensor::{Encoding, FLOAT64, Place, StoredTensor};
use crate::config::LlamaConfig;

/// Tensors in one file; a model of 405 billion weights has 1,138.
const MAX_TENSORS: u64 = 1 << 16;
/// Bytes of a tensor's name; ggml stops at 64.
const MAX_NAME: u64 = 256;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Files of one model.
const MAX_SPLITS: u64 = 1024;

/// A GGUF model that has been read.
#[derive(Debug)]
pub(super) struct Gguf {
    pub(super) metadata: Metadata,
    /// By their names in the file.
    pub(super) tensors: TensorMap,
}

impl Gguf {
    pub(super) fn config(&self) -> Result<LlamaConfig, CheckpointError> {
        config::read(&self.metadata, &self.tensors)
    }

    pub(super) fn tokenizer(
        &self,
    ) -> Result<Option<crate::tokenizer::GgufTokenizer>, CheckpointError> {
        tokenizer::read(&self.metadata)
    }
}

/// Reads a file and those that belong to it.
pub(super) fn open(path: &Path) -> Result<Gguf, CheckpointError> {
    let mut first = open_one(path)?;
    let splits = first.metadata.unsigned("split.count")?.unwrap_or(1);
    if splits <= 1 {
        return Ok(first);
    }
    let error = |fault| CheckpointError::new(path, "split.count", fault);
    if splits > MAX_SPLITS {
        return Err(error(Fault::TooLarge { value: splits, limit: MAX_SPLITS }));
    }
    if first.metadata.unsigned("split.no")?.unwrap_or(0) != 0 {
        let why = "is not the first file of its model; name the one that ends in -00001-of-…";
        return Err(error(Fault::Unsupported(why.to_owned())));
    }
    for number in 2..=splits {
        let Some(next) = split_path(path, number, splits) else {
            let why = format!(
                "the name should end in -00001-of-{splits:05}.gguf, so that the other files can be found"
            );
            return Err(error(Fault::Unsupported(why)));
        };
        if !next.exists() {
            let name = next.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(error(Fault::MissingShard(name)));
        }
        for (name, tensor) in open_one(&next)?.tensors {
            if first.tensors.contains_key(&name) {
                return Err(CheckpointError::new(&next, name, Fault::Duplicate));
            }
            first.tensors.insert(name, tensor);
        }
    }
    Ok(first)
}

/// The path of file `number` of a model whose first file is `path`.
fn split_path(path: &Path, number: u64, splits: u64) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-00001-of-{splits:05}.gguf"))?;
    Some(path.with_file_name(format!("{stem}-{number:05}-of-{splits:05}.gguf")))
}

fn open_one(path: &Path) -> Result<Gguf, CheckpointError> {
    let file: Arc<Path> = Arc::from(path);
    let bytes = super::mmap::map(path)?;
    let mut reader = Reader::new(path, &bytes, 0);
    if reader.take("magic", 4)? != b"GGUF" {
        let why = "does not begin with 'GGUF'".to_owned();
        return Err(CheckpointError::new(path, "magic", Fault::Malformed(why)).at(0));
    }
    match reader.u32("version")? {
        2 | 3 => {}
        version => {
            let why = if (1..16).contains(&version.swap_bytes()) {
                "the file is big-endian, which is not read; convert it to little-endian".to_owned()
            } else {
                format!("version {version} is not read, only 2 and 3; convert the model again")
            };
            return Err(CheckpointError::new(path, "version", Fault::Unsupported(why)).at(4));
        }
    }
    let tensor_count = reader.u64("tensor count")?;
    let key_count = reader.u64("metadata count")?;
    let metadata = Metadata::read(&file, &bytes, &mut reader, key_count)?;
    let alignment = alignment(&metadata)?;
    let infos = infos(&mut reader, tensor_count)?;
    let padding = reader.position().checked_next_multiple_of(alignment as usize);
    let base = padding.unwrap_or(bytes.len()).min(bytes.len());
    let tensors = place(&file, &bytes.slice(base..), base, alignment, infos)?;
    Ok(Gguf { metadata, tensors })
}

fn alignment(metadata: &Metadata) -> Result<u64, CheckpointError> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.unsigned(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT {
        return Ok(alignment);
    }
    let why = format!("is {alignment}, which is not a power of two up to {MAX_ALIGNMENT}");
    Err(metadata.error(KEY, Fault::Malformed(why)))
}

/// One line of the list of tensors.
struct Info {
    name: String,
    /// Hugging Face's order, the reverse of the file's.
    shape: Vec<u64>,
    encoding: Encoding,
    /// From the start of the tensors' bytes.
    offset: u64,
    /// Where the line stands in the file.
    at: usize,
}

fn infos(reader: &mut Reader<'_>, count: u64) -> Result<Vec<Info>, CheckpointError> {
    reader.limited("tensor count", count, MAX_TENSORS)?;
    let mut infos = Vec::new();
    for _ in 0..count {
        let at = reader.position();
        let len = reader.u64("tensor name")?;
        reader.limited("tensor name", len, MAX_NAME)?;
        let name = metadata::text(reader, "tensor name", len)?.to_owned();
        let dims = reader.u32(&name)?;
        if dims == 0 || dims > MAX_DIMS {
            let (value, limit) = (dims.into(), MAX_DIMS.into());
            return Err(reader.error(&name, Fault::TooLarge { value, limit }));
        }
        let mut shape = (0..dims).map(|_| reader.u64(&name)).collect::<Result<Vec<u64>, _>>()?;
        shape.reverse();
        let number = reader.u32(&name)?;
        let Some(encoding) = encoding(number) else {
            let why = format!(
                "is of the type {number}, which is not known; it may be newer than this program"
            );
            return Err(reader.error(&name, Fault::Unsupported(why)));
        };
        let offset = reader.u64(&name)?;
        infos.push(Info { name, shape, encoding, offset, at });
    }
    Ok(infos)
}

/// Checks every tensor against the file and the others, and gives it its bytes; `data` begins at
/// byte `base` of the file.
fn place(
    file: &Arc<Path>,
    data: &Bytes,
    base: usize,
    alignment: u64,
    mut infos: Vec<Info>,
) -> Result<TensorMap, CheckpointError> {
    infos.sort_by(|a, b| a.offset.cmp(&b.offset).then_with(|| a.name.cmp(&b.name)));
    let mut tensors = TensorMap::new();
    let mut end_of_last = 0;
    let mut last = String::new();
    for Info { name, shape, encoding, offset, at } in infos {
        let error = |fault| CheckpointError::new(file, &name, fault).at(at);
        let sizes: Option<Vec<usize>> = shape.iter().map(|n| usize::try_from(*n).ok()).collect();
        let whole_blocks = whole_blocks(encoding, &shape);
        let len = sizes.as_ref().and_then(|sizes| encoding.tensor_bytes(sizes));
        let (Some(sizes), Some(len)) = (sizes, len) else {
            return Err(error(if whole_blocks {
                Fault::ShapeOverflow { shape }
            } else {
                Fault::Malformed(format!(
                    "has rows of {} values, which are no whole number of {} blocks",
                    shape.last().copied().unwrap_or_default(),
                    encoding.name()
                ))
            }));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(error(Fault::Misaligned { alignment }));
        }
        let left = (data.len() as u64).saturating_sub(offset);
        let bytes = usize::try_from(offset).ok().and_then(|start| slice(data, start, len));
        let Some(bytes) = bytes else {
            let fault = Fault::Truncated { needed: len as u64, left };
            let at = usize::try_from(offset).ok().and_then(|start| start.checked_add(base));
            return Err(CheckpointError::new(file, &name, fault).at(at.unwrap_or(usize::MAX)));
        };
        if offset < end_of_last {
            return Err(error(Fault::Overlap { other: last }));
        }
        end_of_last = offset + len as u64;
        last.clone_from(&name);
        let place = Place::Whole(bytes);
        let stored = StoredTensor { encoding, shape: sizes, place, file: Arc::clone(file) };
        if tensors.contains_key(&name) {
            return Err(error(Fault::Duplicate));
        }
        tensors.insert(name, stored);
    }
    Ok(tensors)
}

fn whole_blocks(encoding: Encoding, shape: &[u64]) -> bool {
    let block_len = match encoding {
        Encoding::Weight(format) => format.block_len() as u64,
        Encoding::Other(..) => 1,
    };
    shape.last().is_some_and(|cols| cols.is_multiple_of(block_len))
}

/// The types of ggml by their number. Those that a LLaMA file cannot hold have no row.
fn encoding(number: u32) -> Option<Encoding> {
    let format = match number {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2K,
        11 => Format::Q3K,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        15 => Format::Q8K,
        16 => Format::Iq2Xxs,
        17 => Format::Iq2Xs,
        18 => Format::Iq3Xxs,
        19 => Format::Iq1S,
        20 => Format::Iq4Nl,
        21 => Format::Iq3S,
        22 => Format::Iq2S,
        23 => Format::Iq4Xs,
        24 => return Some(Encoding::Other("int8", 1)),
        25 => return Some(Encoding::Other("int16", 2)),
        26 => return Some(Encoding::Other("int32", 4)),
        27 => return Some(Encoding::Other("int64", 8)),
        28 => return Some(FLOAT64),
        29 => Format::Iq1M,
        30 => Format::Bf16,
        34 => Format::Tq1_0,
        35 => Format::Tq2_0,
        39 => Format::Mxfp4,
        _ => return None,
    };
    Some(Encoding::Weight(format))
}
