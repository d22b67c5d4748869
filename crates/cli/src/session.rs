//! A model ready to be asked: flags about computing enter, a loaded model with its tokenizer and
//! what its makers say about sampling leave.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use puna::checkpoint::{Checkpoint, TokenizerSource};
use puna::config::{GenerationConfig, LlamaConfig};
use puna::generate::{Engine, EngineOptions};
use puna::model::{LlamaForCausalLM, LoadOptions};
use puna::tokenizer::{EncodeOptions, Specials, Tokenizer};
use puna_kernels::{Cpu, CpuOptions, Dtype, KvDtype};

use crate::failure::{Usage, print_warning};

/// Longest context where nothing else is asked for: what a laptop has room for.
const DEFAULT_CONTEXT: usize = 4096;
/// Most threads that may be asked for: what the backend starts.
const MAX_THREADS: i64 = puna_kernels::cpu::MAX_THREADS as i64;
/// Rows of one prefill chunk.
pub(crate) const CHUNK_ROWS: usize = 256;

/// How to compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// Threads; default: one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
    /// Type that activations are rounded to
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = dtype)]
    dtype: Dtype,
    /// Type that keys and values are stored in: f32, f16, bf16, or q8_0 for bytes
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = kv_dtype)]
    pub(crate) kv_dtype: KvDtype,
    /// Multiply in f32 on one path for every number of rows: activations are not rounded against
    /// quantised or bf16 weights (slower)
    #[arg(long)]
    exact: bool,
    /// Same tokens and same bits alone, in any batch, after a chat's earlier turns and on any
    /// number of threads: one path for every number of rows (long prompts are slower)
    #[arg(long)]
    deterministic: bool,
    /// Expand quantised weights to f32 at load (takes the memory of an f32 model)
    #[arg(long)]
    dequantize: bool,
}

/// `f32`, `f16` or `bf16`.
fn dtype(name: &str) -> Result<Dtype, String> {
    Dtype::from_name(name).ok_or_else(|| "the types are f32, f16 and bf16".to_owned())
}

/// `f32`, `f16`, `bf16` or `q8_0`.
fn kv_dtype(name: &str) -> Result<KvDtype, String> {
    KvDtype::from_name(name).ok_or_else(|| "the types are f32, f16, bf16 and q8_0".to_owned())
}

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Session {
    /// What computes.
    pub(crate) backend: Arc<Cpu>,
    /// The model.
    pub(crate) model: Arc<LlamaForCausalLM<Cpu>>,
    /// What the makers say about sampling, where they do.
    pub(crate) generation: Option<GenerationConfig>,
    /// Bytes of the weights that one token's forward reads.
    pub(crate) bytes_per_token: u64,
    /// Weights in matrices that one token's forward multiplies with.
    pub(crate) weights_per_token: u64,
    /// Time to open and load.
    pub(crate) load: Duration,
    checkpoint: Checkpoint,
}

impl Session {
    /// Loads the model at `path`.
    pub(crate) fn load(path: &Path, args: &ComputeArgs) -> anyhow::Result<Self> {
        let start = Instant::now();
        let checkpoint = Checkpoint::open(path)?;
        let options = CpuOptions {
            threads: args.threads.map_or(0, usize::from),
            isa: None,
            exact: args.exact,
            deterministic: args.deterministic,
        };
        let backend = Arc::new(Cpu::new(&options)?);
        let model = load_model(&backend, &checkpoint, args)?;
        let (bytes_per_token, weights_per_token) = work_per_token(&checkpoint)?;
        Ok(Self {
            backend,
            model: Arc::new(model),
            generation: checkpoint.generation_config().cloned(),
            bytes_per_token,
            weights_per_token,
            load: start.elapsed(),
            checkpoint,
        })
    }

    /// Another model on the same processor, which guesses what this one will say.
    pub(crate) fn draft(
        &self,
        checkpoint: &Checkpoint,
        args: &ComputeArgs,
    ) -> anyhow::Result<LlamaForCausalLM<Cpu>> {
        load_model(&self.backend, checkpoint, args)
    }

    /// Rows of one step up to which every row keeps the bits that it has alone.
    pub(crate) fn rows_like_one(&self) -> usize {
        let rows = self.model.matrices().map(|(_, weight)| self.backend.rows_like_one(weight));
        rows.min().unwrap_or(1)
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &LlamaConfig {
        self.checkpoint.config()
    }

    /// The model's tokenizer.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        warned_tokenizer_of(&self.checkpoint)
    }

    /// Prints what the user should know about what the makers say about sampling.
    pub(crate) fn warn_about_generation(&self) {
        for warning in self.checkpoint.generation_warnings() {
            print_warning(&warning.to_string());
        }
    }

    /// Tokens that a sequence may have: what was asked for, else what the model was trained on,
    /// up to a bound.
    pub(crate) fn context(&self, asked: Option<usize>) -> anyhow::Result<usize> {
        let trained = self.config().max_position_embeddings;
        match asked {
            Some(0) => Err(Usage("--context must be at least 1".to_owned()).into()),
            Some(asked) => {
                if asked > trained {
                    print_warning(&format!(
                        "a context of {asked} is beyond the {trained} that the model was trained on"
                    ));
                }
                Ok(asked)
            }
            None => Ok(trained.clamp(1, DEFAULT_CONTEXT)),
        }
    }

    /// An engine over this model. Where there is no room for it, the error says to give a smaller
    /// `flag`.
    pub(crate) fn engine(
        &self,
        kv_tokens: usize,
        max_batch_rows: usize,
        kv_dtype: KvDtype,
        flag: &str,
    ) -> anyhow::Result<Engine<Cpu>> {
        let options = EngineOptions { max_batch_rows, kv_tokens, kv_dtype };
        Engine::new(Arc::clone(&self.model), &options)
            .with_context(|| format!("no room for {kv_tokens} tokens; give a smaller {flag}"))
    }

    /// Ids that end an answer: those that the makers name for generation, else those of the
    /// configuration and the tokenizer; and the end of a turn, where the file names one.
    pub(crate) fn eos_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let config = self.config();
        let named = self.generation.as_ref().and_then(|makers| makers.eos_token_id.as_ref());
        let mut ids: Vec<u32> = match named {
            Some(named) => {
                named.as_slice().iter().filter_map(|&id| config.in_vocabulary(id)).collect()
            }
            None => config.eos_ids().into_iter().chain(tokenizer.eos_token_id()).collect(),
        };
        ids.extend(tokenizer.eot_token_id());
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Loads a model, with what its user should know about it.
fn load_model(
    backend: &Arc<Cpu>,
    checkpoint: &Checkpoint,
    args: &ComputeArgs,
) -> anyhow::Result<LlamaForCausalLM<Cpu>> {
    let load = LoadOptions { dtype: args.dtype, dequantize: args.dequantize };
    let loaded = LlamaForCausalLM::load(Arc::clone(backend), checkpoint, &load)
        .with_context(|| format!("cannot load {}", checkpoint.path().display()))?;
    let config = checkpoint.config().warnings();
    for warning in config.iter().map(ToString::to_string).chain(loaded.warnings) {
        print_warning(&warning);
    }
    Ok(loaded.model)
}

/// Bytes and weights of the matrices that every token goes through: all but the embedding, of
/// which a token reads one row, unless it is the output projection as well.
fn work_per_token(checkpoint: &Checkpoint) -> anyhow::Result<(u64, u64)> {
    let tied = !checkpoint.contains("lm_head.weight");
    let (mut bytes, mut weights) = (0, 0);
    for name in checkpoint.names() {
        let tensor = checkpoint.tensor(name)?;
        let looked_up = name == "model.embed_tokens.weight" && !tied;
        if tensor.shape.len() == 2 && !looked_up {
            bytes += tensor.bytes.len() as u64;
            weights += tensor.len() as u64;
        }
    }
    Ok((bytes, weights))
}

/// The tokenizer of a folder or file, which need not hold weights.
pub(crate) fn open_tokenizer(path: &Path) -> anyhow::Result<Tokenizer> {
    let names = ["tokenizer.json", "tokenizer.model"];
    let folder = if path.is_dir() {
        Some(path.to_owned())
    } else if path.file_name().is_some_and(|name| names.iter().any(|known| name == *known)) {
        Some(path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned))
    } else {
        None
    };
    match folder.filter(|folder| names.iter().any(|name| folder.join(name).is_file())) {
        Some(folder) => Ok(Tokenizer::from_dir(&folder)?),
        None => warned_tokenizer_of(&Checkpoint::open(path)?),
    }
}

/// The tokenizer of an opened model, with a warning where it has tokens that the model lacks.
fn warned_tokenizer_of(checkpoint: &Checkpoint) -> anyhow::Result<Tokenizer> {
    let tokenizer = tokenizer_of(checkpoint)?;
    if let Some(warning) = vocabulary_warning(checkpoint, &tokenizer) {
        print_warning(&warning);
    }
    Ok(tokenizer)
}

/// What to say where a tokenizer has tokens that the model lacks.
pub(crate) fn vocabulary_warning(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Option<String> {
    let (tokens, rows) = (tokenizer.len(), checkpoint.config().vocab_size);
    (tokens > rows).then(|| format!("the tokenizer has {tokens} tokens, the model only {rows}"))
}

/// The tokenizer of an opened model.
pub(crate) fn tokenizer_of(checkpoint: &Checkpoint) -> anyhow::Result<Tokenizer> {
    match checkpoint.tokenizer() {
        TokenizerSource::Folder(folder) => Ok(Tokenizer::from_dir(folder)?),
        TokenizerSource::Gguf(gguf) => Ok(Tokenizer::from_gguf(gguf)
            .with_context(|| format!("the tokenizer in {}", checkpoint.path().display()))?),
        TokenizerSource::Absent => bail!(
            "{} holds no tokenizer; use a file that does, or a folder with tokenizer.json",
            checkpoint.path().display()
        ),
    }
}

/// The id that the tokenizer puts before every text, if it puts one.
pub(crate) fn bos_before_text(tokenizer: &Tokenizer) -> anyhow::Result<Option<u32>> {
    let options = EncodeOptions { specials: Specials::Add, split_special_tokens: None };
    let first = tokenizer.encode("", options)?.first().copied();
    Ok(first.filter(|&id| Some(id) == tokenizer.bos_token_id()))
}
