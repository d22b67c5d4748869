//! Model files: a path enters; a configuration and tensors by name, mapped and read on demand,
//! leave. Reads folders in the Hugging Face layout (safetensors or `pytorch_model.bin`, whole or
//! in shards), GGUF files, and single weight files beside a `config.json`.
//!
//! Everything in a file is a claim: each length is held against what is left before it is used,
//! and each fault names the file, the field and the place.

mod discover;
mod error;
mod gguf;
mod mmap;
pub mod names;
mod pickle;
mod quantized;
mod reader;
mod safetensors;
mod shards;
mod tensor;
mod torch;
mod zip;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use puna_kernels::RopeLayout;

pub use discover::OpenOptions;
pub use error::{CheckpointError, Fault};
pub use gguf::{Array, Metadata, Text, Value};
pub use tensor::Tensor;

use crate::config::{ConfigWarning, GenerationConfig, LlamaConfig};
use crate::tokenizer::{GgufTokenizer, Tokenizer, TokenizerError};
use names::{Naming, TensorName};
use reader::read_text;
use tensor::StoredTensor;

/// Tensors by the names of their file.
type TensorMap = BTreeMap<String, StoredTensor>;

/// Longest `config.json`; usual ones have 2 kB.
const MAX_CONFIG: u64 = 1 << 20;

/// What kind of files hold the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// `.safetensors`.
    Safetensors,
    /// `pytorch_model.bin`.
    Torch,
    /// `.gguf`.
    Gguf,
}

/// Where the tokenizer of a model is.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// Files in a folder: `tokenizer.json`, `tokenizer.model`, `tokenizer_config.json`.
    Folder(PathBuf),
    /// Inside of the GGUF file.
    Gguf(Arc<GgufTokenizer>),
    /// A GGUF file without one.
    Absent,
}

impl TokenizerSource {
    /// Loads the tokenizer.
    ///
    /// # Errors
    /// There is none, or its files are broken.
    pub fn load(&self) -> Result<Tokenizer, TokenizerError> {
        match self {
            Self::Folder(folder) => Tokenizer::from_dir(folder),
            Self::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            Self::Absent => Err(TokenizerError::Value("the GGUF file holds no tokenizer".into())),
        }
    }
}

/// An opened model. Tensors stay on disk until their bytes are read.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    kind: SourceKind,
    config: LlamaConfig,
    generation_config: Option<GenerationConfig>,
    /// Fields of `generation_config.json` that were passed over.
    generation_faults: Vec<ConfigWarning>,
    /// By our names.
    tensors: TensorMap,
    rope_factors: Option<Vec<f32>>,
    tokenizer: TokenizerSource,
    metadata: Option<Metadata>,
    /// What became of the matrices that a folder holds quantised.
    quantization: Option<String>,
    /// Names of tensors that no LLaMA of this configuration has; only where they were let pass.
    unexpected: Vec<String>,
}

/// Whether the tensors must be those that the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// All, no other, each of its shape.
    Exact,
    /// Any; who loads a model says what it lacked.
    AsFound,
}

impl Checkpoint {
    /// Opens a folder, a `.gguf` file, or a weight file beside its `config.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path)
            .map_err(|error| CheckpointError::new(path, "", Fault::Io(error)))?;
        Self::open_as(path, metadata.is_dir(), Policy::Exact, &OpenOptions::default())
    }

    /// Opens what a class is to be loaded from: of its tensors some may be missing, of another shape
    /// or no part of the class. Loading says which.
    ///
    /// # Errors
    /// No weights, a broken file, or a configuration that is not a LLaMA's.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: &OpenOptions,
    ) -> Result<Self, CheckpointError> {
        let mut path = path.as_ref().to_owned();
        path.extend(&options.subfolder);
        path.extend(&options.gguf_file);
        let metadata = std::fs::metadata(&path)
            .map_err(|error| CheckpointError::new(&path, "", Fault::Io(error)))?;
        Self::open_as(&path, metadata.is_dir(), Policy::AsFound, options)
    }

    fn open_as(
        path: &Path,
        is_folder: bool,
        policy: Policy,
        options: &OpenOptions,
    ) -> Result<Self, CheckpointError> {
        if !is_folder {
            return Self::open_file(path, policy, options);
        }
        match discover::find_weights(path, options)? {
            (SourceKind::Gguf, file) => Self::open_gguf(&file, policy),
            (kind, file) => Self::open_hf(path, (kind, &file), policy, options),
        }
    }

    fn open_file(
        path: &Path,
        policy: Policy,
        options: &OpenOptions,
    ) -> Result<Self, CheckpointError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let stem = name.strip_suffix(".index.json").unwrap_or(&name);
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if stem.ends_with(".safetensors") {
            Self::open_hf(folder, (SourceKind::Safetensors, path), policy, options)
        } else if stem.ends_with(".bin") || stem.ends_with(".pt") {
            Self::open_hf(folder, (SourceKind::Torch, path), policy, options)
        } else if stem.ends_with(".gguf") || mmap::map(path)?.starts_with(b"GGUF") {
            Self::open_gguf(path, policy)
        } else {
            let what = "is not a model: name a folder, a .gguf, a .safetensors or a .bin file";
            Err(CheckpointError::new(path, "", Fault::NotFound(what.to_owned())))
        }
    }

    fn open_hf(
        folder: &Path,
        (kind, file): (SourceKind, &Path),
        policy: Policy,
        options: &OpenOptions,
    ) -> Result<Self, CheckpointError> {
        let config = match &options.config {
            Some(config) => config.clone(),
            None => read_config(folder)?,
        };
        let (generation_config, generation_faults) = read_generation_config(folder)?;
        let is_index = file.extension().is_some_and(|extension| extension == "json");
        let open = if kind == SourceKind::Torch { torch::open } else { safetensors::open };
        let mut tensors = if is_index { shards::open(file, open)? } else { open(file)? };
        let quantization = quantized::assemble(file, &config, &mut tensors)?;
        let (tensors, unexpected) = checked(file, (Naming::HuggingFace, policy), tensors, &config)?;
        Ok(Self {
            path: file.to_owned(),
            kind,
            config,
            generation_config,
            generation_faults,
            tensors,
            rope_factors: None,
            tokenizer: TokenizerSource::Folder(folder.to_owned()),
            metadata: None,
            quantization,
            unexpected,
        })
    }

    fn open_gguf(path: &Path, policy: Policy) -> Result<Self, CheckpointError> {
        let file = gguf::open(path)?;
        let config = file.config()?;
        let tokenizer = match file.tokenizer()? {
            Some(tokenizer) => TokenizerSource::Gguf(Arc::new(tokenizer)),
            None => TokenizerSource::Absent,
        };
        let name = "rope_freqs.weight";
        let rope_factors = match file.tensors.get(name) {
            Some(stored) => Some(stored.to_weight(name)?.to_f32()),
            None => None,
        };
        let (tensors, unexpected) = checked(path, (Naming::Gguf, policy), file.tensors, &config)?;
        Ok(Self {
            path: path.to_owned(),
            kind: SourceKind::Gguf,
            config,
            generation_config: None,
            generation_faults: Vec::new(),
            tensors,
            rope_factors,
            tokenizer,
            metadata: Some(file.metadata),
            quantization: None,
            unexpected,
        })
    }

    /// The file or index that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of files hold the weights.
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// How the makers want the model sampled, where they say it.
    pub fn generation_config(&self) -> Option<&GenerationConfig> {
        self.generation_config.as_ref()
    }

    /// What the user should know about how the makers want the model sampled: settings that
    /// cannot be used, have no effect, or are not acted on.
    pub fn generation_warnings(&self) -> Vec<ConfigWarning> {
        let mut warnings = self.generation_faults.clone();
        let Some(generation) = &self.generation_config else { return warnings };
        warnings.extend(generation.warnings());
        let unheard = generation.unheard();
        if let Some(first) = unheard.first() {
            let message = format!(
                "generation_config.json sets {}, which Puna does not act on: answers may differ \
                 from what the makers intend",
                unheard.join(", ")
            );
            let field = (*first).to_owned();
            warnings.push(ConfigWarning { field, message });
        }
        warnings
    }

    /// Which values of a head the query and key weights expect to be rotated together.
    pub fn rope_layout(&self) -> RopeLayout {
        match self.kind {
            SourceKind::Gguf => RopeLayout::Interleaved,
            SourceKind::Safetensors | SourceKind::Torch => RopeLayout::HalfSplit,
        }
    }

    /// Divisors of the RoPE frequencies; only GGUF files carry them.
    pub fn rope_factors(&self) -> Option<&[f32]> {
        self.rope_factors.as_deref()
    }

    /// Where the tokenizer is.
    pub fn tokenizer(&self) -> &TokenizerSource {
        &self.tokenizer
    }

    /// All metadata of a GGUF file.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Names of all tensors, in Hugging Face's layout, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How a folder's matrices were quantised, and in which formats they are given; one sentence.
    pub fn quantization(&self) -> Option<&str> {
        self.quantization.as_deref()
    }

    /// Names of the file's tensors that no LLaMA of this configuration has; only
    /// [`Checkpoint::open_with`] lets them pass.
    pub fn unexpected(&self) -> &[String] {
        &self.unexpected
    }

    /// Whether there is a tensor of this name. A bias that a GGUF file leaves out is zero.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A weight by its name in Hugging Face's layout. Its bytes are not read yet.
    pub fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        match self.tensors.get(name) {
            Some(stored) => stored.to_weight(name),
            None => {
                let fault = Fault::MissingTensors(vec![name.to_owned()]);
                Err(CheckpointError::new(&self.path, name, fault))
            }
        }
    }
}

/// Brings tensors to our names and, under [`Policy::Exact`], holds them against the configuration.
/// The second list has the names of those that have no place in it.
fn checked(
    file: &Path,
    (naming, policy): (Naming, Policy),
    found: TensorMap,
    config: &LlamaConfig,
) -> Result<(TensorMap, Vec<String>), CheckpointError> {
    let mut tensors = TensorMap::new();
    let mut unexpected = Vec::new();
    for (name, stored) in found {
        if names::is_ignorable(naming, &name) {
            continue;
        }
        let parsed = TensorName::parse(naming, &name);
        let Some(parsed) = parsed.filter(|parsed| names::is_expected(parsed, config)) else {
            unexpected.push(name);
            continue;
        };
        let expected = parsed.shape(config);
        if policy == Policy::Exact && stored.shape != expected {
            let fault = Fault::WrongShape { expected, got: stored.shape };
            return Err(CheckpointError::new(&stored.file, name, fault));
        }
        let ours = parsed.hf();
        if tensors.contains_key(&ours) {
            return Err(CheckpointError::new(&stored.file, name, Fault::Duplicate));
        }
        tensors.insert(ours, stored);
    }
    if policy == Policy::AsFound {
        return Ok((tensors, unexpected));
    }
    if !unexpected.is_empty() {
        return Err(CheckpointError::new(file, "tensors", Fault::UnexpectedTensors(unexpected)));
    }
    let required = names::required(config, naming != Naming::Gguf);
    let absent = required.iter().map(TensorName::hf).filter(|name| !tensors.contains_key(name));
    let absent: Vec<String> = absent.collect();
    if !absent.is_empty() {
        return Err(CheckpointError::new(file, "tensors", Fault::MissingTensors(absent)));
    }
    Ok((tensors, unexpected))
}

fn read_config(folder: &Path) -> Result<LlamaConfig, CheckpointError> {
    let path = folder.join("config.json");
    let Some(text) = read_text(&path, MAX_CONFIG)? else {
        let what = "there is no config.json beside the weights; fetch it from where they came";
        return Err(CheckpointError::new(&path, "", Fault::NotFound(what.to_owned())));
    };
    let config = LlamaConfig::from_json(&text).map_err(|error| {
        let field = error.field().to_owned();
        CheckpointError::new(&path, field, Fault::Config(error))
    })?;
    if let Some(name) = config.architectures.iter().find(|name| !is_llama(name)) {
        return Err(CheckpointError::new(&path, "architectures", Fault::NotALlama(name.clone())));
    }
    Ok(config)
}

/// What the makers say about sampling, and the fields that cannot be used.
fn read_generation_config(
    folder: &Path,
) -> Result<(Option<GenerationConfig>, Vec<ConfigWarning>), CheckpointError> {
    let path = folder.join("generation_config.json");
    let Some(text) = read_text(&path, MAX_CONFIG)? else { return Ok((None, Vec::new())) };
    match GenerationConfig::from_json_with_warnings(&text) {
        Ok((config, warnings)) => Ok((Some(config), warnings)),
        Err(error) => {
            let field = error.field().to_owned();
            Err(CheckpointError::new(&path, field, Fault::Config(error)))
        }
    }
}

/// Whether a class is one of LLaMA's; the first conversions of 2023 spelt it `LLaMAForCausalLM`.
fn is_llama(class: &str) -> bool {
    class.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("llama"))
}
