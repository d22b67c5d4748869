//! Chooses the next id of one sequence.
//!
//! Enters: the model's logits `(vocab_size)` for the newest id. Leaves: an id, and log-probabilities
//! where they were asked for. Greedy takes the first maximum. Otherwise with `w_i = exp(s_i - max)`
//! and a uniform `u` of `(seed, step)`, the first id with `Σ_{j <= i} w_j > u Σ w`. All of it is
//! arithmetic that rounds the same on every machine.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::portable_math::{exp, ln};
use super::processors::{History, Processor, Scratch, descending};
use super::rng::Philox;
use super::{ParamError, SamplingParams, StopConditions};

/// Logits from which no id can be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// Only finite values and `-inf` are logits.
    #[error(
        "the logit of id {id} is {value} at new token {step}: the model's weights or its \
         arithmetic are broken"
    )]
    BadLogit {
        /// The first such id.
        id: usize,
        /// NaN or `+inf`.
        value: f32,
        /// Ids generated before.
        step: usize,
    },
    /// Every logit is `-inf`, or there is none.
    #[error("the model gives no id a chance at new token {step}: all its logits are -inf")]
    NoLogits {
        /// Ids generated before.
        step: usize,
    },
    /// The bans leave nothing.
    #[error(
        "no_repeat_ngram_size and min_new_tokens together forbid every id at new token {step}; \
         use a larger no_repeat_ngram_size or fewer min_new_tokens"
    )]
    AllForbidden {
        /// Ids generated before.
        step: usize,
    },
}

/// A chosen id.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The id.
    pub id: u32,
    /// Its `log_softmax` under the model itself: of the logits before any penalty, temperature or
    /// filter. `None` unless `SamplingParams::logprobs` asks.
    pub logprob: Option<f32>,
    /// As many of the likeliest ids as were asked for, likeliest first (of equal ones the lower id),
    /// with the same kind of log-probability.
    pub top: Vec<(u32, f32)>,
}

/// The state that choosing the ids of one sequence needs.
#[derive(Clone, Debug)]
pub struct Sampler {
    processors: Vec<Processor>,
    history: History,
    greedy: bool,
    logprobs: Option<usize>,
    random: Philox,
    scratch: Scratch,
    /// The model's logits before processing, if log-probabilities were asked for.
    raw: Vec<f32>,
    /// Running sums of the weights at the end of every [`STRIDE`] ids.
    sums: Vec<f64>,
}

/// Ids between two remembered sums: the draw then repeats at most this many exponentials.
const STRIDE: usize = 256;

impl Sampler {
    /// Checks the parameters. `stop` says which ids `min_new_tokens` holds back.
    pub fn new(
        params: &SamplingParams,
        stop: &StopConditions,
        prompt_ids: &[u32],
    ) -> Result<Self, ParamError> {
        params.validate()?;
        stop.validate()?;
        if params.min_new_tokens > stop.max_new_tokens {
            return Err(ParamError {
                field: "min_new_tokens",
                value: params.min_new_tokens.to_string(),
                allowed: format!("at most max_new_tokens, {}", stop.max_new_tokens),
            });
        }
        Ok(Self {
            processors: Processor::list(params, stop),
            history: History::new(prompt_ids),
            greedy: params.is_greedy(),
            logprobs: params.logprobs,
            random: Philox::new(params.seed.unwrap_or_else(fresh_seed)),
            scratch: Scratch::default(),
            raw: Vec::new(),
            sums: Vec::new(),
        })
    }

    /// The seed in use: repeats the run when given as [`SamplingParams::seed`].
    pub fn seed(&self) -> u64 {
        self.random.seed()
    }

    /// What was chosen so far.
    pub fn completion_ids(&self) -> &[u32] {
        self.history.completion_ids()
    }

    /// A sampler that goes on from here and chooses the same ids from the same logits; it reports
    /// no log-probabilities.
    pub(super) fn fork(&self) -> Self {
        Self {
            processors: self.processors.clone(),
            history: self.history.clone(),
            greedy: self.greedy,
            logprobs: None,
            random: self.random,
            scratch: Scratch::default(),
            raw: Vec::new(),
            sums: Vec::new(),
        }
    }

    /// Chooses the next id and appends it to the sequence. `logits` `(vocab_size)` are left as the
    /// processed scores. After an error the sequence is as before.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled, SampleError> {
        let step = self.completion_ids().len();
        check(logits, step)?;
        if self.logprobs.is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        for processor in &mut self.processors {
            processor.apply(&self.history, logits, &mut self.scratch);
        }
        let (best, max) = first_maximum(logits).ok_or(SampleError::AllForbidden { step })?;
        let id = if self.greedy { best } else { self.draw(logits, max, step as u64) };
        self.history.push(id as u32);
        let (logprob, top) = match self.logprobs {
            Some(n) => report(&self.raw, id, n),
            None => (None, Vec::new()),
        };
        Ok(Sampled { id: id as u32, logprob, top })
    }

    /// Draws from `softmax(scores)`; `max` is the largest score, finite.
    fn draw(&mut self, scores: &[f32], max: f32, step: u64) -> usize {
        let weight = |s: f32| {
            if s == f32::NEG_INFINITY { 0.0 } else { exp(f64::from(s) - f64::from(max)) }
        };
        self.sums.clear();
        let mut sum = 0.0;
        for chunk in scores.chunks(STRIDE) {
            sum = chunk.iter().fold(sum, |sum, &s| sum + weight(s));
            self.sums.push(sum);
        }
        // Rounding may lift the target to the sum itself, which no id exceeds.
        let target = (self.random.uniform(step) * sum).min(sum.next_down());
        let chunk = self.sums.partition_point(|&sum| sum <= target);
        let mut sum = if chunk == 0 { 0.0 } else { self.sums[chunk - 1] };
        let mut id = chunk * STRIDE;
        loop {
            sum += weight(scores[id]);
            if sum > target {
                return id;
            }
            id += 1;
        }
    }
}

/// Hash keys of the standard library come from the system's random source.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(0_u8)
}

fn check(logits: &[f32], step: usize) -> Result<(), SampleError> {
    let bad = |value: &f32| value.is_nan() || *value == f32::INFINITY;
    if let Some(id) = logits.iter().position(bad) {
        return Err(SampleError::BadLogit { id, value: logits[id], step });
    }
    if logits.iter().all(|value| *value == f32::NEG_INFINITY) {
        return Err(SampleError::NoLogits { step });
    }
    Ok(())
}

/// The largest score and the lowest id that has it; `None` where every id is dropped.
fn first_maximum(scores: &[f32]) -> Option<(usize, f32)> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, &s) in scores.iter().enumerate() {
        if s > max {
            (best, max) = (Some(id), s);
        }
    }
    best.map(|id| (id, max))
}

/// `log_softmax(logits)` of `id` and of the `n` likeliest ids.
fn report(logits: &[f32], id: usize, n: usize) -> (Option<f32>, Vec<(u32, f32)>) {
    let Some((_, max)) = first_maximum(logits) else {
        return (None, Vec::new());
    };
    let below_max = |s: f32| f64::from(s) - f64::from(max);
    let log_total = ln(logits.iter().map(|&s| exp(below_max(s))).sum());
    let logprob = |s: f32| (below_max(s) - log_total) as f32;
    let likelier_first =
        |a: &u32, b: &u32| descending(logits[*a as usize], logits[*b as usize]).then(a.cmp(b));
    // Gathers what exceeds the best bound known so far and cuts back: one pass, memory `O(n)`.
    // A later id that equals the bound comes after it in the order, so it is not needed.
    let mut top: Vec<u32> = Vec::new();
    let mut bound = None;
    let capacity = n.saturating_mul(2).max(64);
    for (id, &logit) in logits.iter().enumerate() {
        if n == 0 || bound.is_some_and(|bound| logit <= bound) {
            continue;
        }
        top.push(id as u32);
        if top.len() == capacity {
            let nth = *top.select_nth_unstable_by(n - 1, likelier_first).1;
            bound = Some(logits[nth as usize]);
            top.truncate(n);
        }
    }
    top.sort_unstable_by(likelier_first);
    top.truncate(n);
    let top = top.into_iter().map(|id| (id, logprob(logits[id as usize]))).collect();
    (Some(logprob(logits[id])), top)
}

#[cfg(test)]
mod tests;
