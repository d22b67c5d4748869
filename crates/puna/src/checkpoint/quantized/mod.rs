//! Matrices that a Hugging Face folder holds quantised: codes, scales and zero points under several
//! names enter; one matrix under the name `….weight` leaves, as if the file had it so. Each method
//! of `quantization_config.quant_method` has a file that knows its layout; all give a row as
//! `code - zero` and its scale.
//!
//! A matrix whose scales are `f16` and constant over 32 columns becomes `q4_0` or `q8_0`, exactly;
//! any other is multiplied out, rounded to the type that the method computes in.

mod awq;
mod bits;
mod bitsandbytes;
mod compressed_tensors;
mod fp8;
mod gptq;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use puna_kernels::{Dtype, Format};
use serde_json::Value;

use super::TensorMap;
use super::error::{CheckpointError, Fault};
use super::names::{Naming, TensorName};
use super::tensor::{Encoding, Place, StoredTensor};
use crate::config::LlamaConfig;

/// Columns that one scale of `q4_0` and `q8_0` is for.
const BLOCK: usize = 32;

/// Gives the rows of a matrix.
pub(crate) trait Decode: Debug + Send + Sync {
    /// For each column of a row: the code less its zero point, and its scale.
    fn row(&self, row: usize, codes: &mut [f32], scales: &mut [f32]);

    /// The least and the largest that a code less its zero point can be, where codes are whole
    /// numbers and each aligned run of 32 columns has one scale, which `f16` holds exactly.
    fn whole_numbers(&self) -> Option<(i32, i32)>;

    /// Type of the values where they are multiplied out.
    fn dtype(&self) -> Dtype;
}

/// A quantised matrix `(rows, cols)`.
#[derive(Debug)]
pub(crate) struct Matrix {
    decoder: Box<dyn Decode>,
    rows: usize,
    cols: usize,
    format: Format,
}

impl Matrix {
    fn new(decoder: Box<dyn Decode>, (rows, cols): (usize, usize)) -> Self {
        let exact = if cols.is_multiple_of(BLOCK) { decoder.whole_numbers() } else { None };
        let format = match exact {
            Some((least, largest)) if least >= -8 && largest <= 7 => Format::Q4_0,
            Some((least, largest)) if least >= -128 && largest <= 127 => Format::Q8_0,
            _ => match decoder.dtype() {
                Dtype::F32 => Format::F32,
                Dtype::F16 => Format::F16,
                Dtype::Bf16 => Format::Bf16,
            },
        };
        Self { decoder, rows, cols, format }
    }

    /// All rows in the matrix's format.
    pub(super) fn bytes(&self) -> Bytes {
        let row_bytes = self.format.row_bytes(self.cols).unwrap_or(0);
        let mut out = vec![0; self.rows * row_bytes];
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let rows_of_part = self.rows.div_ceil(threads).max(1);
        let parts = out.chunks_mut((rows_of_part * row_bytes).max(1));
        std::thread::scope(|scope| {
            for (part, out) in parts.enumerate() {
                scope.spawn(move || self.fill(part * rows_of_part, row_bytes, out));
            }
        });
        out.into()
    }

    fn fill(&self, first_row: usize, row_bytes: usize, out: &mut [u8]) {
        let (mut codes, mut scales) = (vec![0.0; self.cols], vec![0.0; self.cols]);
        for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            self.decoder.row(first_row + i, &mut codes, &mut scales);
            self.encode(&codes, &scales, out);
        }
    }

    fn encode(&self, codes: &[f32], scales: &[f32], out: &mut [u8]) {
        let values = codes.iter().zip(scales).map(|(code, scale)| code * scale);
        match self.format {
            Format::Q4_0 => {
                let blocks = codes.chunks_exact(BLOCK).zip(scales.chunks_exact(BLOCK));
                for (out, (codes, scales)) in out.chunks_exact_mut(18).zip(blocks) {
                    out[..2].copy_from_slice(&f16::from_f32(scales[0]).to_le_bytes());
                    for (byte, (low, high)) in
                        out[2..].iter_mut().zip(codes.iter().zip(&codes[BLOCK / 2..]))
                    {
                        *byte = (low + 8.0) as u8 | ((high + 8.0) as u8) << 4;
                    }
                }
            }
            Format::Q8_0 => {
                let blocks = codes.chunks_exact(BLOCK).zip(scales.chunks_exact(BLOCK));
                for (out, (codes, scales)) in out.chunks_exact_mut(34).zip(blocks) {
                    out[..2].copy_from_slice(&f16::from_f32(scales[0]).to_le_bytes());
                    for (byte, code) in out[2..].iter_mut().zip(codes) {
                        *byte = (*code as i8).cast_unsigned();
                    }
                }
            }
            Format::F16 => {
                for (out, value) in out.chunks_exact_mut(2).zip(values) {
                    out.copy_from_slice(&f16::from_f32(value).to_le_bytes());
                }
            }
            Format::Bf16 => {
                for (out, value) in out.chunks_exact_mut(2).zip(values) {
                    out.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                }
            }
            _ => {
                for (out, value) in out.chunks_exact_mut(4).zip(values) {
                    out.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }
}

/// Replaces the parts of every quantised matrix by the matrix. Says what was done, for people.
pub(super) fn assemble(
    file: &Path,
    config: &LlamaConfig,
    tensors: &mut TensorMap,
) -> Result<Option<String>, CheckpointError> {
    let Some(settings) = &config.quantization_config else { return Ok(None) };
    let settings = Settings::new(file, settings, config)?;
    let marks = settings.method.marks();
    let prefixes: BTreeSet<String> = tensors
        .keys()
        .filter_map(|name| marks.iter().find_map(|mark| name.strip_suffix(mark)))
        .map(str::to_owned)
        .collect();
    let mut formats: Vec<(Format, usize)> = Vec::new();
    for prefix in prefixes {
        let name = format!("{prefix}.weight");
        // What belongs to no LLaMA stays as it is, and is named later.
        let Some(parsed) = TensorName::parse(Naming::HuggingFace, &name) else { continue };
        let [rows, cols] = *parsed.shape(config) else { continue };
        let mut parts = Parts { settings: &settings, tensors, prefix: &prefix, rows, cols };
        let decoder = match settings.method {
            Method::Gptq => gptq::decoder(&mut parts)?,
            Method::Awq => awq::decoder(&mut parts)?,
            Method::BitsAndBytes => bitsandbytes::decoder(&mut parts)?,
            Method::Fp8 => fp8::decoder(&mut parts)?,
            Method::CompressedTensors => compressed_tensors::decoder(&mut parts)?,
        };
        let matrix = Matrix::new(decoder, (rows, cols));
        let format = matrix.format;
        match formats.iter_mut().find(|(known, _)| *known == format) {
            Some((_, count)) => *count += 1,
            None => formats.push((format, 1)),
        }
        let stored = StoredTensor {
            encoding: Encoding::Weight(format),
            shape: vec![rows, cols],
            place: Place::Quantized(Arc::new(matrix)),
            file: Arc::from(file),
        };
        if tensors.contains_key(&name) {
            return Err(CheckpointError::new(file, name, Fault::Duplicate));
        }
        tensors.insert(name, stored);
    }
    if matches!(settings.method, Method::Fp8 | Method::CompressedTensors) {
        tensors.retain(|name, _| !is_cache_scale(name));
    }
    Ok(Some(settings.summary(&formats)))
}

/// Scales of a cache of eight-bit keys and values; a cache here finds its own.
fn is_cache_scale(name: &str) -> bool {
    const ENDS: [&str; 5] = [
        ".self_attn.k_scale",
        ".self_attn.v_scale",
        ".self_attn.q_scale",
        ".k_proj.output_scale",
        ".v_proj.output_scale",
    ];
    ENDS.iter().any(|end| name.ends_with(end))
}

/// How the weights were quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Gptq,
    Awq,
    BitsAndBytes,
    Fp8,
    CompressedTensors,
}

impl Method {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "gptq" => Some(Self::Gptq),
            "awq" => Some(Self::Awq),
            "bitsandbytes" => Some(Self::BitsAndBytes),
            "fp8" | "fbgemm_fp8" => Some(Self::Fp8),
            "compressed-tensors" | "compressed_tensors" => Some(Self::CompressedTensors),
            _ => None,
        }
    }

    /// Ends of the names that only a quantised matrix has.
    const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Gptq | Self::Awq => &[".qweight"],
            Self::BitsAndBytes => &[".weight.absmax", ".SCB"],
            Self::Fp8 => &[".weight_scale_inv", ".weight_scale"],
            Self::CompressedTensors => &[".weight_packed", ".weight_scale"],
        }
    }
}

/// `quantization_config`.
#[derive(Debug)]
struct Settings<'a> {
    file: &'a Path,
    method: Method,
    name: &'a str,
    keys: &'a Value,
    /// The type of the configuration, for methods that do not say their own.
    dtype: Option<Dtype>,
    /// Whether the configuration has a place for the bias of attention, of the MLP.
    biases: (bool, bool),
}

impl<'a> Settings<'a> {
    fn new(file: &'a Path, keys: &'a Value, config: &LlamaConfig) -> Result<Self, CheckpointError> {
        let name = keys.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        let Some(method) = Method::from_name(name) else {
            let why = format!(
                "weights quantised by '{name:.40}' are not read; Puna reads gptq, awq, \
                 bitsandbytes, fp8, fbgemm_fp8 and compressed-tensors: use one of these, the \
                 unquantised model or a GGUF file"
            );
            let path = config_path(file);
            return Err(CheckpointError::new(
                &path,
                "quantization_config",
                Fault::Unsupported(why),
            ));
        };
        let biases = (config.attention_bias, config.mlp_bias);
        Ok(Self { file, method, name, keys, dtype: config.dtype(), biases })
    }

    fn error(&self, field: &str, fault: Fault) -> CheckpointError {
        let field = format!("quantization_config.{field}");
        CheckpointError::new(&config_path(self.file), field, fault)
    }

    /// A whole number of the settings.
    fn integer(&self, field: &str) -> Option<i64> {
        self.keys.get(field).and_then(Value::as_i64)
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.keys.get(field).and_then(Value::as_str)
    }

    fn summary(&self, formats: &[(Format, usize)]) -> String {
        let counts: Vec<String> =
            formats.iter().map(|(format, count)| format!("{count} as {format}")).collect();
        let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        format!("matrices quantised by {}: {counts}", self.name)
    }
}

fn config_path(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join("config.json")
}

/// The tensors of one matrix, under one prefix.
#[derive(Debug)]
struct Parts<'a> {
    settings: &'a Settings<'a>,
    tensors: &'a mut TensorMap,
    prefix: &'a str,
    rows: usize,
    cols: usize,
}

impl Parts<'_> {
    /// Whether there is such a part.
    fn has(&self, part: &str) -> bool {
        self.tensors.contains_key(&self.name(part))
    }

    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.prefix)
    }

    /// Takes a part out of the file's tensors.
    fn take(&mut self, part: &str) -> Option<StoredTensor> {
        self.tensors.remove(&self.name(part))
    }

    fn malformed(&self, part: &str, why: impl Into<String>) -> CheckpointError {
        CheckpointError::new(self.settings.file, self.name(part), Fault::Malformed(why.into()))
    }

    /// Takes a part that must be there.
    fn need(&mut self, part: &str) -> Result<StoredTensor, CheckpointError> {
        let name = self.name(part);
        self.tensors.remove(&name).ok_or_else(|| {
            let fault = Fault::MissingTensors(vec![name.clone()]);
            CheckpointError::new(self.settings.file, name, fault)
        })
    }

    /// Takes a part of whole numbers of a type, whose shape must be one of `shapes`.
    fn integers(
        &mut self,
        part: &str,
        dtype: &str,
        shapes: &[&[usize]],
    ) -> Result<Bytes, CheckpointError> {
        let stored = self.need(part)?;
        if stored.encoding.name() != dtype {
            let found = stored.encoding.name();
            return Err(self.malformed(part, format!("holds {found}, not {dtype}")));
        }
        self.check_shape(part, &stored, shapes)?;
        Ok(stored.ordered())
    }

    /// Takes a part of floats, whose shape must be one of `shapes`.
    fn floats(&mut self, part: &str, shapes: &[&[usize]]) -> Result<Floats, CheckpointError> {
        let stored = self.need(part)?;
        self.check_shape(part, &stored, shapes)?;
        let tensor = stored.to_weight(&self.name(part))?;
        if tensor.format.block_len() != 1 {
            return Err(self.malformed(part, format!("holds {}, not floats", tensor.format)));
        }
        Ok(Floats { format: tensor.format, bytes: tensor.bytes })
    }

    fn check_shape(
        &self,
        part: &str,
        stored: &StoredTensor,
        shapes: &[&[usize]],
    ) -> Result<(), CheckpointError> {
        if shapes.contains(&&*stored.shape) {
            return Ok(());
        }
        let expected = shapes.first().map_or_else(Vec::new, |shape| shape.to_vec());
        let fault = Fault::WrongShape { expected, got: stored.shape.clone() };
        Err(CheckpointError::new(self.settings.file, self.name(part), fault))
    }
}

/// Numbers of a plain format, read one by one.
#[derive(Debug)]
struct Floats {
    format: Format,
    bytes: Bytes,
}

impl Floats {
    fn len(&self) -> usize {
        self.bytes.len() / self.format.block_bytes()
    }

    fn get(&self, index: usize) -> f32 {
        let size = self.format.block_bytes();
        let mut value = [0.0];
        self.format.dequantize(&self.bytes[index * size..][..size], &mut value);
        value[0]
    }

    /// Whether `f16` holds each of them.
    fn are_f16(&self) -> bool {
        self.format == Format::F16
            || (0..self.len()).all(|i| {
                let value = self.get(i);
                f16::from_f32(value).to_f32() == value
            })
    }

    /// The type that products with them are rounded to: their own, where it is narrow.
    fn dtype(&self) -> Option<Dtype> {
        match self.format {
            Format::F16 => Some(Dtype::F16),
            Format::Bf16 => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

/// Which of the groups of columns each column belongs to.
#[derive(Debug)]
enum Groups {
    /// So many after one another.
    Runs(usize),
    /// As the file says, `i32` each, checked.
    Listed(Bytes),
}

impl Groups {
    fn of(&self, column: usize) -> usize {
        match self {
            Self::Runs(len) => column / len,
            Self::Listed(bytes) => bits::word(bytes, column) as usize,
        }
    }

    /// Whether each aligned run of 32 columns is of one group.
    fn hold_blocks(&self) -> bool {
        matches!(self, Self::Runs(len) if len.is_multiple_of(BLOCK))
    }
}

/// Size and number of the groups of `cols` columns that a setting makes; -1 makes one.
fn group_shape(parts: &Parts<'_>, size: i64) -> Result<(usize, usize), CheckpointError> {
    let cols = parts.cols;
    let len = if size == -1 { Some(cols) } else { usize::try_from(size).ok() };
    match len.filter(|len| *len > 0) {
        Some(len) => Ok((len.min(cols), cols.div_ceil(len))),
        None => {
            let why = format!("groups of {size} columns do not exist");
            Err(parts.settings.error("group_size", Fault::Malformed(why)))
        }
    }
}

#[cfg(test)]
mod tests;
