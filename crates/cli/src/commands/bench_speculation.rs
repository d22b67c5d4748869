//! What guessing ahead is worth: one edit of a text, decoded plainly and with guesses in turn, must
//! come out the same. `speedup = median(plain seconds) / median(seconds with guesses)`, from the
//! request to its last token; the prompt's keys are there already.

use std::time::Instant;

use anyhow::bail;
use puna::generate::{DraftCounts, Engine, Request, SamplingParams, StopConditions};
use puna_kernels::Cpu;
use serde::Serialize;

use super::ModelArgs;
use super::bench::median;
use super::prompt::{PromptFormat, message};
use super::speculation::SpeculationArgs;
use crate::interrupt::Graceful;
use crate::session::{CHUNK_ROWS, ComputeArgs, Session};

/// A text of this project and what to do with it.
const PROMPT: &str = include_str!("bench_prompt.txt");
/// Most tokens of the answer.
const ANSWER: usize = 320;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct SpeculationReport {
    /// Where the guesses came from.
    how: String,
    /// Tokens each second without guesses.
    plain_tps: f64,
    /// Tokens each second with them.
    tps: f64,
    speedup: f64,
    prompt_tokens: usize,
    /// Tokens of the answer, the same ones with and without.
    tokens: usize,
    /// Tokens guessed for one answer.
    drafted: u64,
    /// Those that were right.
    accepted: u64,
}

/// An answer and the seconds that it took.
struct Timed {
    ids: Vec<u32>,
    seconds: f64,
    drafts: DraftCounts,
}

/// Measures `repetitions` answers of each kind, in turn; `None` where no guessing was asked for.
pub(super) fn measure(
    session: &Session,
    model: &ModelArgs,
    guessing: &SpeculationArgs,
    compute: &ComputeArgs,
    repetitions: usize,
) -> anyhow::Result<Option<SpeculationReport>> {
    let Some(how) = guessing.name() else { return Ok(None) };
    let tokenizer = session.tokenizer()?;
    let speculation = guessing.speculation(session, &tokenizer, compute, model.offline)?;
    let format = PromptFormat::new(&tokenizer, false)?;
    let prompt_ids = format.encode(&tokenizer, &[message("user", PROMPT.trim_end())])?;
    let prompt_tokens = prompt_ids.len();
    let stop = StopConditions::new(ANSWER, session.eos_ids(&tokenizer));
    let request = Request { prompt_ids, sampling: SamplingParams::greedy(), stop };
    let kv_tokens = 2 * (prompt_tokens + ANSWER);
    let engine = || session.engine(kv_tokens, CHUNK_ROWS, compute.kv_dtype, "MODEL or --kv-dtype");
    // Of their own, so that both keep the prompt's keys, and a draft model its own.
    let (mut plainly, mut guessingly) = (engine()?, engine()?);
    guessingly.speculate(speculation)?;
    // The first answers fill the caches and do not count.
    answer(&mut plainly, &request)?;
    answer(&mut guessingly, &request)?;
    let (mut plain, mut guessed) = (Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..repetitions {
        let without = answer(&mut plainly, &request)?;
        let with = answer(&mut guessingly, &request)?;
        if without.ids != with.ids {
            let at = without.ids.iter().zip(&with.ids).take_while(|(a, b)| a == b).count();
            bail!(
                "guessing ahead changed the answer at token {at}: a fault of Puna, please report"
            );
        }
        plain.push(without.seconds);
        guessed.push(with.seconds);
        last = Some(with);
    }
    let Some(Timed { ids, drafts, .. }) = last else { return Ok(None) };
    let (plain, guessed) = (median(&mut plain), median(&mut guessed));
    Ok(Some(SpeculationReport {
        how,
        plain_tps: ids.len() as f64 / plain,
        tps: ids.len() as f64 / guessed,
        speedup: plain / guessed,
        prompt_tokens,
        tokens: ids.len(),
        drafted: drafts.drafted,
        accepted: drafts.accepted,
    }))
}

fn answer(engine: &mut Engine<Cpu>, request: &Request) -> anyhow::Result<Timed> {
    let interrupts = Graceful::new();
    let before = engine.draft_counts();
    let start = Instant::now();
    engine.submit(request.clone())?;
    let mut ids = Vec::new();
    while !engine.is_idle() {
        interrupts.check()?;
        for event in engine.step()? {
            ids.push(event.token?.id);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Timed { ids, seconds, drafts: engine.draft_counts().since(before) })
}

impl SpeculationReport {
    /// One line for people.
    pub(super) fn summary(&self) -> String {
        format!(
            "{:.1} tokens/s with {}, {:.1} without: {:.2} times; {} of {} guesses right, the same \
             {} tokens",
            self.tps,
            self.how,
            self.plain_tps,
            self.speedup,
            self.accepted,
            self.drafted,
            self.tokens
        )
    }
}
