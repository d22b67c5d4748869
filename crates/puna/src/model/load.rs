//! Builds a model from a checkpoint: tensors by their Hugging Face names enter, each becomes the
//! field of its name, in the format that the file has it, and warnings about what differs leave.
//! Shapes are held against the configuration: `(out_features, in_features)` for a matrix.

use std::sync::Arc;

use puna_kernels::{Backend, Dtype, Format, OutOfMemory, WeightData};

use super::rope::{Rope, RopeError};
use super::{Attention, Block, Linear, LlamaForCausalLM, LlamaModel, Mlp, Norm};
use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};
use crate::config::{ConfigError, LlamaConfig};

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
    /// No memory for a tensor.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A model, and what its user should know about how it was loaded.
#[derive(Debug)]
pub struct Loaded<M> {
    /// The model.
    pub model: M,
    /// One sentence each.
    pub warnings: Vec<String>,
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
        let loader = Loader { backend, checkpoint, options };
        let mut warnings = Vec::new();
        let lm_head = loader.lm_head(&mut warnings)?;
        let model = loader.decoder()?;
        Ok(Loaded { model: Self { model, lm_head }, warnings })
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
        Loader { backend, checkpoint, options }.decoder()
    }
}

struct Loader<'a, B> {
    backend: Arc<B>,
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
}

impl<B: Backend> Loader<'_, B> {
    fn config(&self) -> &LlamaConfig {
        self.checkpoint.config()
    }

    fn decoder(&self) -> Result<LlamaModel<B>, LoadError> {
        let config = self.config();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        // The largest tensor first, while little else is held beside the pages it is read from.
        let embed_tokens = self.weight("model.embed_tokens.weight", vocab, hidden)?;
        let blocks =
            (0..config.num_hidden_layers).map(|i| self.block(i)).collect::<Result<_, _>>()?;
        Ok(LlamaModel {
            embed_tokens,
            blocks,
            norm: self.norm("model.norm.weight")?,
            rope: Rope::new(config, self.checkpoint.rope_factors())?,
            dtype: self.options.dtype,
            config: Arc::new(config.clone()),
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
            rope_layout: self.checkpoint.rope_layout(),
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

    /// The head, or `None` where it is the embedding.
    fn lm_head(&self, warnings: &mut Vec<String>) -> Result<Option<Linear<B>>, LoadError> {
        const HEAD: &str = "lm_head.weight";
        let config = self.config();
        if config.tie_word_embeddings {
            if !self.checkpoint.contains(HEAD) {
                return Ok(None);
            }
            let (head, table) = (
                self.checkpoint.tensor(HEAD)?,
                self.checkpoint.tensor("model.embed_tokens.weight")?,
            );
            let is_tied = head.bytes == table.bytes;
            head.let_go();
            if is_tied {
                return Ok(None);
            }
            warnings.push(format!(
                "the configuration ties {HEAD} to the embedding, but the file holds different \
                 values for it: they are used, not tied"
            ));
        }
        self.linear("lm_head", config.vocab_size, config.hidden_size, false).map(Some)
    }

    fn linear(
        &self,
        prefix: &str,
        out_features: usize,
        in_features: usize,
        has_bias: bool,
    ) -> Result<Linear<B>, LoadError> {
        // A GGUF file may leave out biases that are zero.
        let name = format!("{prefix}.bias");
        let bias = if has_bias && self.checkpoint.contains(&name) {
            Some(self.vector(&name, out_features)?)
        } else {
            None
        };
        let weight = self.weight(&format!("{prefix}.weight"), out_features, in_features)?;
        Ok(Linear { weight, bias, in_features, out_features })
    }

    fn norm(&self, name: &str) -> Result<Norm<B>, LoadError> {
        let hidden_size = self.config().hidden_size;
        Ok(Norm {
            weight: self.vector(name, hidden_size)?,
            hidden_size,
            rms_norm_eps: self.config().rms_norm_eps as f32,
        })
    }

    /// A `(rows, cols)` matrix, as the file has it or in a buffer.
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<B::Weight, LoadError> {
        let tensor = self.tensor(name, &[rows, cols])?;
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

    fn vector(&self, name: &str, len: usize) -> Result<B::Buf, LoadError> {
        let tensor = self.tensor(name, &[len])?;
        self.upload(&tensor, name)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, LoadError> {
        let tensor = self.checkpoint.tensor(name)?;
        if tensor.shape == expected {
            return Ok(tensor);
        }
        Err(LoadError::Shape {
            tensor: name.to_owned(),
            found: tensor.shape,
            expected: expected.to_vec(),
        })
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
