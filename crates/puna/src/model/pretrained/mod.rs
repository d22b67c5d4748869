//! The documented classes as files know them: a folder enters, a class leaves, whatever class its
//! file was saved from; a class enters, a folder leaves. Each class is a decoder and at most one
//! head; what tells them apart is one `impl` of [`LlamaClass`].

mod classes;
mod normal;
mod resize;
mod state;

use std::path::Path;
use std::sync::Arc;

use puna_kernels::{Backend, Dtype, Format, OutOfMemory};

pub(super) use normal::Normal;
pub use resize::Resize;
pub use state::{StateTensor, encode};

use super::load::{LoadError, LoadOptions, Loaded, Loader};
use super::{Linear, LlamaModel};
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::config::LlamaConfig;

/// How [`LlamaClass::from_pretrained`] loads.
#[derive(Clone, Debug, Default)]
pub struct PretrainedOptions {
    /// Which files are read.
    pub open: OpenOptions,
    /// Type of activations and plain weights; `None` is that of the configuration, else that of the
    /// weights.
    pub dtype: Option<Dtype>,
    /// Expands every quantised weight to `f32`.
    pub dequantize: bool,
    /// Fresh values in place of tensors of another shape, rather than an error.
    pub ignore_mismatched_sizes: bool,
    /// Of the fresh values.
    pub seed: u64,
}

/// A class of Transformers: the decoder, and perhaps a head.
pub trait LlamaClass<B: Backend>: Sized {
    /// Its name, as `architectures` has it.
    const NAME: &'static str;
    /// What its files call the decoder.
    const PREFIX: &'static str;

    /// Takes its tensors out of a loader.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    fn take(loader: &Loader<'_, B>) -> Result<Self, LoadError>;

    /// The decoder.
    fn decoder(&self) -> &LlamaModel<B>;

    /// The decoder, to change it.
    fn decoder_mut(&mut self) -> &mut LlamaModel<B>;

    /// The head and its name; `None` without one, or where it is the embedding.
    fn head(&self) -> Option<(&'static str, &Linear<B>)>;

    /// The head that gives each token of the vocabulary a logit, where it is not the embedding.
    fn lm_head_mut(&mut self) -> Option<&mut Linear<B>> {
        None
    }

    /// Whether it writes texts, and so has a `generation_config.json`.
    const GENERATES: bool = false;

    /// Loads the class from a folder or file of any class. What is missing gets fresh values.
    ///
    /// # Errors
    /// No weights, a broken file, a configuration that is not a LLaMA's, tensors of another shape.
    fn from_pretrained(
        backend: Arc<B>,
        path: impl AsRef<Path>,
        options: &PretrainedOptions,
    ) -> Result<Loaded<Self>, LoadError> {
        let checkpoint = Checkpoint::open_with(path, &options.open)?;
        let dtype = options.dtype.unwrap_or_else(|| dtype_of(&checkpoint));
        let load = LoadOptions { dtype, dequantize: options.dequantize };
        let mut config = checkpoint.config().clone();
        config.dtype = Some(dtype.name().to_owned());
        let loader = Loader::filling(backend, config, Some(&checkpoint), load, options.seed);
        let model = Self::take(&loader)?;
        let loaded = loader.finish(model, Self::PREFIX);
        if !loaded.mismatched_keys.is_empty() && !options.ignore_mismatched_sizes {
            let keys = loaded.mismatched_keys;
            return Err(LoadError::Mismatched { class: Self::NAME, keys });
        }
        Ok(loaded)
    }

    /// A class of fresh values: matrices normal with the configuration's `initializer_range`,
    /// norms one, biases zero. The same seed makes the same model.
    ///
    /// # Errors
    /// A configuration that cannot be built, or no memory for it.
    fn from_config(
        backend: Arc<B>,
        config: &LlamaConfig,
        dtype: Option<Dtype>,
        seed: u64,
    ) -> Result<Self, LoadError> {
        config.validate()?;
        let dtype = dtype.or(config.dtype()).unwrap_or_default();
        let mut config = config.clone();
        config.dtype = Some(dtype.name().to_owned());
        let load = LoadOptions { dtype, dequantize: false };
        Self::take(&Loader::filling(backend, config, None, load, seed))
    }

    /// Its tensors by the names of its files; a head that is the embedding is left out.
    fn state_dict(&self) -> Vec<StateTensor<'_, B>> {
        state::tensors(self)
    }

    /// Gives the vocabulary another size: rows of the embedding, and of a head that is not tied to
    /// it, are added or lost at the end. Returns the new size.
    ///
    /// # Errors
    /// No memory for it.
    fn resize_token_embeddings(&mut self, resize: Resize) -> Result<usize, OutOfMemory> {
        resize::resize(self, resize)
    }
}

/// The type of a checkpoint's plain weights; `f32` for quantised ones of which no one says more.
fn dtype_of(checkpoint: &Checkpoint) -> Dtype {
    if let Some(dtype) = checkpoint.config().dtype() {
        return dtype;
    }
    let mut formats = checkpoint.names().filter_map(|name| checkpoint.tensor(name).ok());
    match formats.next().map(|tensor| tensor.format) {
        Some(Format::F16) => Dtype::F16,
        Some(Format::Bf16) => Dtype::Bf16,
        _ => Dtype::F32,
    }
}
