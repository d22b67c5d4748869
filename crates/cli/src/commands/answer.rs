//! One answer: prompt ids enter, text leaves piece by piece, and at the end what came of it: tokens,
//! why it ended, times. `prefill_tps = prompt tokens / time to the first token`,
//! `decode_tps = (tokens - 1) / time from the first token to the last`.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use puna::generate::{
    DraftCounts, Engine, FinishReason, Request, Sampled, SamplingParams, StopConditions, TextStream,
};
use puna::tokenizer::Tokenizer;
use puna_kernels::Cpu;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::interrupt::Graceful;

/// What came of a prompt.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Every token that was chosen, the last one included.
    pub(crate) tokens: Vec<Sampled>,
    /// Text without special tokens and without the stop string.
    pub(crate) text: String,
    /// Why it ended.
    pub(crate) finish: FinishReason,
    /// From the request to the first token.
    pub(crate) prefill: Duration,
    /// From the first token to the last.
    pub(crate) decode: Duration,
    /// Tokens that were guessed ahead.
    pub(crate) drafts: DraftCounts,
}

/// Times of a run. Rates are null where nothing was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Timings {
    /// Opening and loading the model.
    pub(crate) load_ms: f64,
    /// From the request to the first token.
    pub(crate) prefill_ms: f64,
    /// From the start of the program to the first token.
    pub(crate) ttft_ms: f64,
    /// From the first token to the last.
    pub(crate) decode_ms: f64,
    /// Prompt tokens each second.
    pub(crate) prefill_tps: Option<f64>,
    /// Tokens after the first, each second.
    pub(crate) decode_tps: Option<f64>,
    /// Tokens guessed ahead.
    pub(crate) drafted: u64,
    /// Those that were right.
    pub(crate) accepted: u64,
}

/// Milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Runs one request to its end, handing text to `show` as it becomes certain. Ctrl-C ends the
/// answer; what came before stays.
pub(crate) fn generate(
    engine: &mut Engine<Cpu>,
    tokenizer: &Arc<Tokenizer>,
    request: Request,
    show: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let interrupts = Graceful::new();
    let mut stream = TextStream::new(Arc::clone(tokenizer), &request.stop.stop_strings);
    let start = Instant::now();
    let mut first = None;
    let mut answer = Answer {
        tokens: Vec::new(),
        text: String::new(),
        finish: FinishReason::Cancelled,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        drafts: DraftCounts::default(),
    };
    let drafts_before = engine.draft_counts();
    let sequence = engine.submit(request)?;
    let mut finish = None;
    while finish.is_none() && !engine.is_idle() && !interrupts.asked() {
        for event in engine.step().context("cannot go on")? {
            let token = event.token?;
            finish = event.finish;
            let now = Instant::now();
            let since_first = now - *first.get_or_insert(now);
            answer.prefill = now - start - since_first;
            answer.decode = since_first;
            let stopped = answer.push(token, &mut stream, show)?;
            if stopped.is_some() {
                finish = stopped;
                // What else the step brought lies behind the stop string.
                break;
            }
        }
    }
    if finish.is_none() || matches!(finish, Some(FinishReason::StopString(_))) {
        engine.cancel(sequence);
    }
    answer.drafts = engine.draft_counts().since(drafts_before);
    let rest = stream.finish()?;
    if !rest.text.is_empty() {
        answer.text.push_str(&rest.text);
        show(&rest.text)?;
    }
    let stopped = rest.stopped.map(FinishReason::StopString);
    answer.finish = stopped.or(finish).unwrap_or(FinishReason::Cancelled);
    Ok(answer)
}

impl Answer {
    /// Takes the next token; the stop string that it completed.
    fn push(
        &mut self,
        token: Sampled,
        stream: &mut TextStream,
        show: &mut dyn FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<FinishReason>> {
        let piece = stream.push(token.id)?;
        self.tokens.push(token);
        if !piece.text.is_empty() {
            self.text.push_str(&piece.text);
            show(&piece.text)?;
        }
        Ok(piece.stopped.map(FinishReason::StopString))
    }

    /// The times, given when the program started and how long loading took.
    pub(crate) fn timings(&self, before: Duration, load: Duration, n_prompt: usize) -> Timings {
        let rate = |n: usize, time: Duration| {
            (n > 0 && !time.is_zero()).then(|| n as f64 / time.as_secs_f64())
        };
        Timings {
            load_ms: ms(load),
            prefill_ms: ms(self.prefill),
            ttft_ms: ms(before + self.prefill),
            decode_ms: ms(self.decode),
            prefill_tps: rate(n_prompt, self.prefill).filter(|_| !self.tokens.is_empty()),
            decode_tps: rate(self.tokens.len().saturating_sub(1), self.decode),
            drafted: self.drafts.drafted,
            accepted: self.drafts.accepted,
        }
    }

    /// Log-probabilities of every token and of the likeliest ones beside it.
    pub(crate) fn logprobs(&self, tokenizer: &Tokenizer) -> Value {
        let entry = |id: u32, logprob: f32| json!({"id": id, "token": tokenizer.id_to_token(id), "logprob": logprob});
        let token = |sampled: &Sampled| {
            let mut value = entry(sampled.id, sampled.logprob.unwrap_or(f32::NAN));
            let top = sampled.top.iter().map(|&(id, logprob)| entry(id, logprob));
            value["top"] = top.collect();
            value
        };
        self.tokens.iter().map(token).collect()
    }

    /// One line for people.
    pub(crate) fn summary(&self, timings: &Timings, n_prompt: usize) -> String {
        let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        format!(
            "loaded in {:.0} ms; prompt {n_prompt} tokens, {} tokens/s; first token after {:.0} \
             ms; answer {} tokens, {} tokens/s{}; ended by {}",
            timings.load_ms,
            rate(timings.prefill_tps),
            timings.ttft_ms,
            self.tokens.len(),
            rate(timings.decode_tps),
            match self.drafts {
                DraftCounts { drafted: 0, .. } => String::new(),
                DraftCounts { drafted, accepted } => format!(", {accepted} of {drafted} guessed"),
            },
            match &self.finish {
                FinishReason::Stop => "the end of the answer".to_owned(),
                FinishReason::StopString(stop) => format!("the stop string {stop:?}"),
                FinishReason::Length => "its length".to_owned(),
                FinishReason::Cancelled => "Ctrl-C".to_owned(),
            }
        )
    }
}

/// Bounds on prompt and answer together, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// What there is room for.
    pub(crate) context: usize,
    /// The most that the makers want, where nobody says how long an answer may be.
    pub(crate) max_length: Option<usize>,
    /// The fewest that the makers want; 0 is off.
    pub(crate) min_length: usize,
}

/// A request that fits the context: the answer is as long as was asked for, or as there is room.
pub(crate) fn request(
    prompt_ids: Vec<u32>,
    sampling: &SamplingParams,
    stop: &StopConditions,
    lengths: Lengths,
) -> anyhow::Result<Request> {
    let (n_prompt, context) = (prompt_ids.len(), lengths.context);
    let room = context.saturating_sub(n_prompt);
    if room == 0 {
        return Err(anyhow!(
            "the prompt has {n_prompt} tokens and the context only {context}; shorten the prompt \
             or give a larger --context"
        ));
    }
    let wanted = lengths.max_length.map_or(room, |most| most.saturating_sub(n_prompt));
    if wanted == 0 {
        return Err(anyhow!(
            "the prompt has {n_prompt} tokens, and the model's generation_config.json wants no \
             more with the answer (max_length); say how long the answer may be with -n"
        ));
    }
    let (mut sampling, mut stop) = (sampling.clone(), stop.clone());
    stop.max_new_tokens = stop.max_new_tokens.min(room).min(wanted);
    let fewest = lengths.min_length.saturating_sub(n_prompt);
    sampling.min_new_tokens = sampling.min_new_tokens.max(fewest);
    Ok(Request { prompt_ids, sampling, stop })
}
