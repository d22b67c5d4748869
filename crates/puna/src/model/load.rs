//! Builds a model from a checkpoint: tensors by their Hugging Face names enter, each becomes the
//! field of its name, in the format that the file has it, and warnings about what differs leave.
//! Shapes are held against the configuration: `(out_features, in_features)` for a matrix.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use puna_kernels::{Backend, Dtype, Format, OutOfMemory, RopeLayout, WeightData};

use super::pretrained::{Normal, encode};
use super::rope::{Rope, RopeError};
use super::{Attention, Block, Linear, LlamaForCausalLM, LlamaModel, Mlp, Norm};
use crate::checkpoint::{Checkpoint, CheckpointError, SourceKind, Tensor};
use crate::config::{ConfigError, GenerationConfig, LlamaConfig};

const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// How to load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Type that activations are rounded to. Weights that it cannot hold are rounded as well;
    /// quantised ones stay as they are.
    pub dtype: Dtype,
    /// Expands every quantised weight to `f32`: the memory of an `f32` model, the exact values.
    pub dequantize: bool,
}

/// A checkpoint that does not make a model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor is missing or cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The configuration asks for something that no LLaMA has.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The rotary frequencies in the file do not fit.
    #[error(transparent)]
    Rope(#[from] RopeError),
    /// A tensor has another shape than the configuration says.
    #[error("{tensor} has shape {found:?}, but the configuration asks for {expected:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// Tensors have other shapes than the class asks for, and that was not to be ignored.
    #[error("{}", mismatch_text(class, keys))]
    Mismatched {
        /// Name of the class.
        class: &'static str,
        /// All of them.
        keys: Vec<MismatchedKey>,
    },
    /// No memory for a tensor.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A tensor of a shape that the class has no place for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MismatchedKey {
    /// Its name in the class.
    pub name: String,
    /// Shape in the file.
    pub found: Vec<usize>,
    /// Shape by the configuration.
    pub expected: Vec<usize>,
}

/// PyTorch's words, by which users look for help.
fn mismatch_text(class: &str, keys: &[MismatchedKey]) -> String {
    let size = |shape: &[usize]| format!("torch.Size({shape:?})");
    let mut text = format!("Error(s) in loading state_dict for {class}:");
    for key in keys {
        text += &format!(
            "\n\tsize mismatch for {}: copying a param with shape {} from checkpoint, the shape in \
             current model is {}.",
            key.name,
            size(&key.found),
            size(&key.expected),
        );
    }
    text + "\n\tYou may consider adding `ignore_mismatched_sizes=True` in the model \
            `from_pretrained` method."
}

/// A model, and what its user should know about how it was loaded.
#[derive(Debug)]
pub struct Loaded<M> {
    /// The model.
    pub model: M,
    /// One sentence each.
    pub warnings: Vec<String>,
    /// Tensors of the class that the file did not hold, and that have fresh values now.
    pub missing_keys: Vec<String>,
    /// Tensors of the file that the class has no place for.
    pub unexpected_keys: Vec<String>,
    /// Tensors of another shape, in whose place are fresh values now.
    pub mismatched_keys: Vec<MismatchedKey>,
    /// How the makers want the model sampled, where a file says it.
    pub generation_config: Option<GenerationConfig>,
}

impl<B: Backend> LlamaForCausalLM<B> {
    /// Loads the decoder and its head.
    ///
    /// # Errors
    /// A tensor that is missing, unreadable or of the wrong shape, by name.
    pub fn load(
        backend: Arc<B>,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<Loaded<Self>, LoadError> {
        let loader = Loader::exact(backend, checkpoint, options);
        let lm_head = loader.lm_head()?;
        let model = loader.decoder()?;
        Ok(loader.finish(Self { model, lm_head }, ""))
    }
}

impl<B: Backend> LlamaModel<B> {
    /// Loads the decoder alone.
    ///
    /// # Errors
    /// As for [`LlamaForCausalLM::load`].
    pub fn load(
        backend: Arc<B>,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        Loader::exact(backend, checkpoint, options).decoder()
    }
}

/// Takes tensors out of a checkpoint, or makes fresh ones, and remembers which.
#[derive(Debug)]
pub struct Loader<'a, B: Backend> {
    backend: Arc<B>,
    config: Arc<LlamaConfig>,
    /// `None` makes every tensor afresh.
    checkpoint: Option<&'a Checkpoint>,
    options: LoadOptions,
    /// Seed of what is missing; `None` is an error where something is.
    seed: Option<u64>,
    log: RefCell<Log>,
}

/// What was found on the way. Names are those of a class with a head.
#[derive(Debug, Default)]
struct Log {
    used: BTreeSet<String>,
    missing: Vec<String>,
    mismatched: Vec<MismatchedKey>,
    warnings: Vec<String>,
}

impl Log {
    fn new(checkpoint: Option<&Checkpoint>) -> RefCell<Self> {
        let told = checkpoint.and_then(Checkpoint::quantization);
        RefCell::new(Self {
            warnings: told.map(str::to_owned).into_iter().collect(),
            ..Self::default()
        })
    }
}

impl<'a, B: Backend> Loader<'a, B> {
    /// A loader to which a missing tensor is an error.
    fn exact(backend: Arc<B>, checkpoint: &'a Checkpoint, options: &LoadOptions) -> Self {
        let config = Arc::new(checkpoint.config().clone());
        let (options, log) = (options.clone(), Log::new(Some(checkpoint)));
        Self { backend, config, checkpoint: Some(checkpoint), options, seed: None, log }
    }

    /// A loader that makes what it does not find out of a seed.
    pub(super) fn filling(
        backend: Arc<B>,
        config: LlamaConfig,
        checkpoint: Option<&'a Checkpoint>,
        options: LoadOptions,
        seed: u64,
    ) -> Self {
        let (config, log) = (Arc::new(config), Log::new(checkpoint));
        Self { backend, config, checkpoint, options, seed: Some(seed), log }
    }

    /// The model with what was found; `prefix` is what the class calls `model.`.
    pub(super) fn finish<M>(self, model: M, prefix: &str) -> Loaded<M> {
        let log = self.log.into_inner();
        let of_class = |name: String| match name.strip_prefix("model.") {
            Some(bare) => format!("{prefix}{bare}"),
            None => name,
        };
        let mut unexpected_keys = Vec::new();
        if let Some(checkpoint) = self.checkpoint
            && self.seed.is_some()
        {
            let unused = checkpoint.names().filter(|name| !log.used.contains(*name));
            unexpected_keys.extend(unused.map(str::to_owned));
            unexpected_keys.extend(checkpoint.unexpected().iter().cloned());
        }
        let renamed = |key: MismatchedKey| MismatchedKey { name: of_class(key.name), ..key };
        Loaded {
            model,
            warnings: log.warnings,
            missing_keys: log.missing.into_iter().map(of_class).collect(),
            unexpected_keys,
            mismatched_keys: log.mismatched.into_iter().map(renamed).collect(),
            generation_config: self.checkpoint.and_then(|c| c.generation_config().cloned()),
        }
    }

    fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The head of a class: `(out_features, hidden_size)`, perhaps with a bias.
    pub(super) fn head(
        &self,
        prefix: &str,
        out_features: usize,
        has_bias: bool,
    ) -> Result<Linear<B>, LoadError> {
        self.linear(prefix, out_features, self.config.hidden_size, has_bias)
    }

    pub(super) fn decoder(&self) -> Result<LlamaModel<B>, LoadError> {
        let config = self.config();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        // The largest tensor first, while little else is held beside the pages it is read from.
        let embed_tokens = self.weight(self.table(), vocab, hidden)?;
        let blocks =
            (0..config.num_hidden_layers).map(|i| self.block(i)).collect::<Result<_, _>>()?;
        Ok(LlamaModel {
            embed_tokens,
            blocks,
            norm: self.norm("model.norm.weight")?,
            rope: Rope::new(config, self.checkpoint.and_then(Checkpoint::rope_factors))?,
            dtype: self.options.dtype,
            config: Arc::clone(&self.config),
            backend: Arc::clone(&self.backend),
        })
    }

    fn block(&self, layer: usize) -> Result<Block<B>, LoadError> {
        let prefix = format!("model.layers.{layer}");
        Ok(Block {
            input_norm: self.norm(&format!("{prefix}.input_layernorm.weight"))?,
            attention: self.attention(&format!("{prefix}.self_attn"))?,
            post_attention_norm: self.norm(&format!("{prefix}.post_attention_layernorm.weight"))?,
            mlp: self.mlp(&format!("{prefix}.mlp"))?,
        })
    }

    fn attention(&self, prefix: &str) -> Result<Attention<B>, LoadError> {
        let config = self.config();
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let (n_heads, n_kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let linear = |name: &str, out: usize, input: usize| {
            self.linear(&format!("{prefix}.{name}"), out, input, config.attention_bias)
        };
        Ok(Attention {
            q_proj: linear("q_proj", n_heads * head_dim, hidden)?,
            k_proj: linear("k_proj", n_kv_heads * head_dim, hidden)?,
            v_proj: linear("v_proj", n_kv_heads * head_dim, hidden)?,
            o_proj: linear("o_proj", hidden, n_heads * head_dim)?,
            n_heads,
            n_kv_heads,
            head_dim,
            rope_layout: self.checkpoint.map_or(RopeLayout::HalfSplit, Checkpoint::rope_layout),
        })
    }

    fn mlp(&self, prefix: &str) -> Result<Mlp<B>, LoadError> {
        let config = self.config();
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, out: usize, input: usize| {
            self.linear(&format!("{prefix}.{name}"), out, input, config.mlp_bias)
        };
        Ok(Mlp {
            gate_proj: linear("gate_proj", intermediate, hidden)?,
            up_proj: linear("up_proj", intermediate, hidden)?,
            down_proj: linear("down_proj", hidden, intermediate)?,
            activation: config.activation()?,
        })
    }

    /// Name of the embedding: that of the head, where the two are one and only that is there.
    fn table(&self) -> &'static str {
        let holds = |name| self.checkpoint.is_some_and(|checkpoint| checkpoint.contains(name));
        if self.config.tie_word_embeddings && !holds(TABLE) && holds(HEAD) { HEAD } else { TABLE }
    }

    /// The head, or `None` where it is the embedding.
    pub(super) fn lm_head(&self) -> Result<Option<Linear<B>>, LoadError> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        if self.config.tie_word_embeddings {
            let Some(checkpoint) = self.checkpoint.filter(|c| c.contains(HEAD)) else {
                return Ok(None);
            };
            let head = checkpoint.tensor(HEAD)?;
            let is_tied = self.table() == HEAD || head.bytes == checkpoint.tensor(TABLE)?.bytes;
            head.let_go();
            if is_tied {
                self.log.borrow_mut().used.insert(HEAD.to_owned());
                return Ok(None);
            }
            self.log.borrow_mut().warnings.push(format!(
                "the configuration ties {HEAD} to the embedding, but the file holds different \
                 values for it: they are used, not tied"
            ));
        }
        self.linear("lm_head", vocab, hidden, false).map(Some)
    }

    fn linear(
        &self,
        prefix: &str,
        out_features: usize,
        in_features: usize,
        has_bias: bool,
    ) -> Result<Linear<B>, LoadError> {
        let name = format!("{prefix}.bias");
        // A GGUF file may leave out biases that are zero.
        let is_zero = |checkpoint: &Checkpoint| {
            checkpoint.kind() == SourceKind::Gguf && !checkpoint.contains(&name)
        };
        let bias = if has_bias && !self.checkpoint.is_some_and(is_zero) {
            Some(self.vector(&name, out_features, 0.0)?)
        } else {
            None
        };
        let weight = self.weight(&format!("{prefix}.weight"), out_features, in_features)?;
        Ok(Linear { weight, bias, in_features, out_features })
    }

    fn norm(&self, name: &str) -> Result<Norm<B>, LoadError> {
        let hidden_size = self.config().hidden_size;
        Ok(Norm {
            weight: self.vector(name, hidden_size, 1.0)?,
            hidden_size,
            rms_norm_eps: self.config().rms_norm_eps as f32,
        })
    }

    /// A `(rows, cols)` matrix, as the file has it or in a buffer.
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<B::Weight, LoadError> {
        let Some(tensor) = self.tensor(name, &[rows, cols])? else {
            return self.fresh(name, rows, cols);
        };
        let format = tensor.format;
        if self.keeps(format) {
            let bytes = tensor.bytes.clone();
            let weight = self.backend.weight(WeightData { format, rows, cols, bytes })?;
            if !self.backend.reads_source(&weight) {
                tensor.let_go();
            }
            return Ok(weight);
        }
        let values = self.upload(&tensor, name)?;
        Ok(self.backend.weight_from(values, rows, cols))
    }

    /// A matrix of normal values; the padding token's row of an embedding is zero.
    fn fresh(&self, name: &str, rows: usize, cols: usize) -> Result<B::Weight, LoadError> {
        let dtype = self.options.dtype;
        let mut normal = Normal::new(self.seed.unwrap_or(0), name, &self.config);
        let pad = self.config.pad_token_id.and_then(|id| self.config.in_vocabulary(id));
        let pad = pad.filter(|_| name == TABLE);
        let mut bytes = Vec::new();
        let too_large = || OutOfMemory { what: name.to_owned(), bytes: u64::MAX };
        let size = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        let size = size.ok_or_else(too_large)?;
        bytes
            .try_reserve_exact(size)
            .map_err(|_| OutOfMemory { what: name.to_owned(), bytes: size as u64 })?;
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            row.iter_mut().for_each(|value| *value = normal.next());
            if pad.is_some_and(|pad| pad as usize == r) {
                row.fill(0.0);
            }
            encode(dtype, &row, &mut bytes);
        }
        let data = WeightData { format: stored_as(dtype), rows, cols, bytes: Bytes::from(bytes) };
        Ok(self.backend.weight(data)?)
    }

    /// Values from the file, or so many of `fill`.
    fn vector(&self, name: &str, len: usize, fill: f32) -> Result<B::Buf, LoadError> {
        if let Some(tensor) = self.tensor(name, &[len])? {
            return self.upload(&tensor, name);
        }
        let mut buf = self.backend.alloc(len, name)?;
        self.backend.write(&mut buf, 0, &vec![fill; len]);
        Ok(buf)
    }

    /// The tensor, if the file holds one of this shape; else an error, or a line in the log.
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Option<Tensor>, LoadError> {
        let mut log = self.log.borrow_mut();
        let checkpoint = match self.checkpoint {
            Some(checkpoint) if self.seed.is_none() || checkpoint.contains(name) => checkpoint,
            _ => {
                log.missing.push(name.to_owned());
                return Ok(None);
            }
        };
        let tensor = checkpoint.tensor(name)?;
        log.used.insert(name.to_owned());
        if tensor.shape == expected {
            return Ok(Some(tensor));
        }
        let (found, expected) = (tensor.shape, expected.to_vec());
        if self.seed.is_none() {
            return Err(LoadError::Shape { tensor: name.to_owned(), found, expected });
        }
        log.mismatched.push(MismatchedKey { name: name.to_owned(), found, expected });
        Ok(None)
    }

    /// Whether a matrix of this format is used as the file has it.
    fn keeps(&self, format: Format) -> bool {
        match (format, self.options.dtype) {
            (_, Dtype::F32) => !self.options.dequantize || format == Format::F32,
            (Format::F16, dtype) => dtype == Dtype::F16,
            (Format::Bf16, dtype) => dtype == Dtype::Bf16,
            (Format::F32, _) => false,
            _ => !self.options.dequantize,
        }
    }

    /// The tensor's values in a buffer, rounded to the activations' type.
    fn upload(&self, tensor: &Tensor, name: &str) -> Result<B::Buf, LoadError> {
        let mut buf = self.backend.alloc(tensor.len(), name)?;
        let row_len = tensor.shape.last().copied().unwrap_or(1);
        let mut row = vec![0.0; row_len];
        let row_bytes = tensor.bytes.len() / (tensor.len() / row_len.max(1)).max(1);
        for (i, bytes) in tensor.bytes.chunks_exact(row_bytes.max(1)).enumerate() {
            tensor.format.dequantize(bytes, &mut row);
            row.iter_mut().for_each(|value| *value = self.options.dtype.round(*value));
            self.backend.write(&mut buf, i * row_len, &row);
        }
        tensor.let_go();
        Ok(buf)
    }
}

/// The format whose values are of this type.
pub(super) fn stored_as(dtype: Dtype) -> Format {
    match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::Bf16 => Format::Bf16,
    }
}
