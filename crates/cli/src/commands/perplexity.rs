//! `puna perplexity`: a text enters, how surprised the model is by it leaves:
//! `exp(mean of -log p(token | the tokens before it in its window))`. Windows do not overlap; each
//! begins with BOS where the tokenizer puts one before a text, and its first token counts only
//! then.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use puna::model::{Batch, LlamaForCausalLM, Tokens, Trace, Workspace};
use puna::tokenizer::EncodeOptions;
use puna_kernels::{Backend, Cpu, KvDtype, Mask, Span};
use serde_json::json;

use super::ModelArgs;
use crate::failure::{Interrupted, Usage};
use crate::interrupt::Graceful;
use crate::models::{Progress, Unit};
use crate::output::Output;
use crate::session::{CHUNK_ROWS, ComputeArgs, Session, bos_before_text};

/// Tokens in one block of the cache.
const BLOCK_LEN: usize = 32;
/// Rows whose logits are computed together.
const HEAD_ROWS: usize = 64;

/// Measure how well a model predicts a text
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  puna perplexity book.txt
  puna perplexity -m model.gguf book.txt --max-tokens 10000
  puna perplexity -m folder book.txt --context 2048 --json

The text is cut into windows of --context tokens that do not overlap. Lower is better; compare
only numbers of one tokenizer, one text and one context. Ctrl-C prints the score of the windows
before it, marked as partial (\"complete\": false).")]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, UTF-8
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Tokens in one window, BOS included
    #[arg(long, value_name = "N", default_value_t = 1024)]
    context: usize,
    /// Take only the first N tokens of the text
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Print {"tokens":…,"mean_nll":…,"ppl":…,"complete":…}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What was measured so far.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    /// Tokens that were predicted.
    tokens: usize,
    /// Sum of their negative log-probabilities.
    nll: f64,
}

pub(super) fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    if args.context < 2 {
        return Err(Usage("--context must be at least 2: one token predicts another".into()).into());
    }
    let text = read_text(&args.file)?;
    let session = Session::load(&args.model.path()?, &args.compute)?;
    let tokenizer = session.tokenizer()?;
    let context = session.context(Some(args.context))?;
    let bos = bos_before_text(&tokenizer)?;
    let mut ids = tokenizer.encode(&text, EncodeOptions::PLAIN)?;
    ids.truncate(args.max_tokens.unwrap_or(usize::MAX));
    if ids.len() + usize::from(bos.is_some()) < 2 {
        bail!("{} is too short: nothing in it can be predicted", args.file.display());
    }
    let (score, whole) = measure(&session, &ids, bos, context, args.compute.kv_dtype)?;
    if score.tokens > 0 {
        print(score, whole, args.json)?;
    }
    if whole { Ok(()) } else { Err(Interrupted.into()) }
}

/// The score of all windows, or of those before a Ctrl-C; whether it is the whole.
fn measure(
    session: &Session,
    ids: &[u32],
    bos: Option<u32>,
    context: usize,
    kv_dtype: KvDtype,
) -> anyhow::Result<(Score, bool)> {
    let interrupts = Graceful::new();
    let longest = context.min(ids.len() + 1);
    let mut scorer = Scorer::new(&session.model, longest, kv_dtype)?;
    let mut progress = Progress::new("perplexity", Unit::Tokens, 0, ids.len() as u64);
    let mut score = Score::default();
    for window in ids.chunks(context - usize::from(bos.is_some())) {
        if interrupts.asked() {
            return Ok((score, false));
        }
        let rows: Vec<u32> = bos.into_iter().chain(window.iter().copied()).collect();
        scorer.window(&rows, &mut score)?;
        progress.add(window.len() as u64);
    }
    Ok((score, true))
}

fn print(score: Score, whole: bool, as_json: bool) -> anyhow::Result<()> {
    let mean = score.nll / score.tokens as f64;
    let mut output = Output::new();
    if as_json {
        output.json(&json!({
            "tokens": score.tokens,
            "mean_nll": mean,
            "ppl": mean.exp(),
            "complete": whole,
        }))?;
    } else {
        output.line(&format!(
            "perplexity {:.4} over {} tokens (mean negative log-probability {mean:.6}){}",
            mean.exp(),
            score.tokens,
            if whole { "" } else { "; partial: Ctrl-C came before the end of the text" }
        ))?;
    }
    output.flush()
}

/// The buffers that scoring needs, used again for every window.
struct Scorer<'a> {
    model: &'a LlamaForCausalLM<Cpu>,
    cache: <Cpu as Backend>::KvCache,
    blocks: Vec<u32>,
    workspace: Workspace<Cpu>,
    /// `(HEAD_ROWS, vocab_size)`.
    logits: <Cpu as Backend>::Buf,
}

impl<'a> Scorer<'a> {
    fn new(
        model: &'a LlamaForCausalLM<Cpu>,
        context: usize,
        kv_dtype: KvDtype,
    ) -> anyhow::Result<Self> {
        let n_blocks = context.div_ceil(BLOCK_LEN);
        let shape = model.model.kv_shape(n_blocks, BLOCK_LEN, kv_dtype);
        let backend = &model.model.backend;
        Ok(Self {
            model,
            cache: backend.kv_cache(shape)?,
            blocks: (0..u32::try_from(n_blocks)?).collect(),
            workspace: model.model.workspace(CHUNK_ROWS.min(context))?,
            logits: backend.alloc(HEAD_ROWS * model.model.config.vocab_size, "logits")?,
        })
    }

    /// Adds the tokens of one window, the first excepted, to the score.
    fn window(&mut self, ids: &[u32], score: &mut Score) -> anyhow::Result<()> {
        let positions: Vec<u32> = (0..u32::try_from(ids.len())?).collect();
        let lengths = vec![u32::try_from(ids.len())?; ids.len()];
        let step = self.workspace.max_rows;
        for start in (0..ids.len()).step_by(step) {
            let end = (start + step).min(ids.len());
            let span = Span {
                rows: 0..end - start,
                n_keys: end,
                blocks: &self.blocks[..end.div_ceil(BLOCK_LEN)],
                mask: Mask::Causal,
            };
            let batch = Batch {
                tokens: Tokens::Ids(&ids[start..end]),
                positions: &positions[start..end],
                lengths: &lengths[start..end],
                spans: &[span],
            };
            let model = &self.model.model;
            model.forward(&batch, &mut self.cache, &mut self.workspace, &mut Trace::default())?;
            self.rows(&ids[start..ids.len().min(end + 1)], score);
        }
        Ok(())
    }

    /// Scores `ids[1..]`, predicted by the rows of the last forward.
    fn rows(&mut self, ids: &[u32], score: &mut Score) {
        let vocab_size = self.model.model.config.vocab_size;
        let targets: Vec<Option<u32>> = ids[1..].iter().map(|&id| Some(id)).collect();
        let rows: Vec<u32> = (0..).take(targets.len()).collect();
        for (targets, rows) in targets.chunks(HEAD_ROWS).zip(rows.chunks(HEAD_ROWS)) {
            self.model.head_rows(&mut self.workspace, rows, &mut self.logits);
            let mut nll = vec![0.0; targets.len()];
            let backend = &self.model.model.backend;
            backend.cross_entropy(&self.logits, vocab_size, targets, &mut nll);
            score.nll += nll.iter().map(|&value| f64::from(value)).sum::<f64>();
            score.tokens += targets.len();
        }
    }
}

/// The text of a file, whole.
fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => bail!(
            "{} is not UTF-8 text: byte {} begins no character",
            path.display(),
            error.utf8_error().valid_up_to()
        ),
    }
}
