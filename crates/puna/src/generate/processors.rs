//! What changes the scores of the next id before one is chosen.
//!
//! Enters: scores `s` `(vocab_size)`, no NaN and no `+inf`, and the ids so far. Leaves: the scores
//! in place; `-inf` is dropped. Formulas and order are those of Transformers' `generate()`, the
//! scores `f32` as there, sums and thresholds `f64`. Penalties and bans may drop every id (the
//! sampler then says so); a filter always keeps the best one that is left.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::ngram_index::NgramIndex;
use super::portable_math::{exp, ln};
use super::{SamplingParams, StopConditions};

/// The ids of one sequence.
#[derive(Clone, Debug)]
pub(super) struct History {
    ids: Vec<u32>,
    prompt_len: usize,
}

impl History {
    /// A sequence that has only its prompt.
    pub(super) fn new(prompt_ids: &[u32]) -> Self {
        Self { ids: prompt_ids.to_vec(), prompt_len: prompt_ids.len() }
    }

    /// Appends a generated id.
    pub(super) fn push(&mut self, id: u32) {
        self.ids.push(id);
    }

    /// Prompt and completion.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What was generated.
    pub(super) fn completion_ids(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }
}

/// Memory that the filters reuse from step to step.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    /// The largest scores so far: at most twice `top_k`.
    largest: Vec<f32>,
    /// `(key, id)` of the ids that `top_p` or `typical_p` may keep.
    candidates: Vec<(f32, u32)>,
}

#[cfg(test)]
impl Scratch {
    /// Where its memory lies.
    pub(super) fn pointers(&self) -> (*const f32, *const (f32, u32)) {
        (self.largest.as_ptr(), self.candidates.as_ptr())
    }
}

/// One step of the list that turns logits into scores. What it remembers of the sequence catches
/// up with the history when it is applied, so a clone follows a fork of the sequence.
#[derive(Clone, Debug)]
pub(super) enum Processor {
    /// `s < 0 ? s * penalty : s / penalty`, once for each distinct id of prompt and completion.
    RepetitionPenalty {
        /// Above 0; above 1 makes repetition less likely.
        penalty: f32,
        /// Distinct ids so far.
        seen: BTreeSet<u32>,
        /// Ids of the history that `seen` covers.
        n_seen: usize,
    },
    /// `s = -inf` for each id that would repeat a run of ids of the sequence.
    NoRepeatNgram(NgramIndex),
    /// `s -= presence + frequency * count`, for each id that the completion holds `count` times.
    PresenceFrequency {
        /// For being there at all.
        presence: f32,
        /// For each time.
        frequency: f32,
        /// How often the completion holds an id.
        counts: BTreeMap<u32, u32>,
        /// Ids of the completion that `counts` covers.
        n_counted: usize,
    },
    /// `s = -inf` for the eos ids while the completion is shorter than `min`.
    MinNewTokens {
        /// Ids before an eos.
        min: usize,
        /// What is held back.
        eos_token_ids: Vec<u32>,
    },
    /// `s / temperature`.
    Temperature(f32),
    /// Keeps `s >= the k-th largest`, ties included.
    TopK(usize),
    /// In ascending order of `s`, drops ids while `cumsum(softmax(s)) <= 1 - p`. Of equal scores
    /// the higher id goes first, so that `p = 0` is greedy (PyTorch's order of ties is the
    /// machine's).
    TopP(f64),
    /// Keeps `softmax(s) >= p * max(softmax(s))`.
    MinP(f64),
    /// With `l = log_softmax(s)` and the entropy `H = -Σ exp(l) l`: in ascending order of
    /// `|-l - H|`, keeps ids until their mass reaches `p`, and ties of the last.
    TypicalP(f64),
}

impl Processor {
    /// The processors that `params` ask for, in the order in which they act. Neutral ones are left
    /// out; greedy leaves out all from the temperature on.
    pub(super) fn list(params: &SamplingParams, stop: &StopConditions) -> Vec<Self> {
        let mut list = Vec::new();
        if params.repetition_penalty != 1.0 {
            let penalty = params.repetition_penalty as f32;
            list.push(Self::RepetitionPenalty { penalty, seen: BTreeSet::new(), n_seen: 0 });
        }
        if params.no_repeat_ngram_size > 0 {
            list.push(Self::NoRepeatNgram(NgramIndex::new(params.no_repeat_ngram_size)));
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            list.push(Self::PresenceFrequency {
                presence: params.presence_penalty as f32,
                frequency: params.frequency_penalty as f32,
                counts: BTreeMap::new(),
                n_counted: 0,
            });
        }
        if params.min_new_tokens > 0 && !stop.ignore_eos {
            let eos_token_ids = stop.eos_token_ids.clone();
            list.push(Self::MinNewTokens { min: params.min_new_tokens, eos_token_ids });
        }
        if !params.is_greedy() {
            list.extend(filters(params));
        }
        list
    }

    /// Changes `scores` `(vocab_size)`. `history` must begin with that of the calls before; ids of
    /// it outside the vocabulary are passed over.
    pub(super) fn apply(&mut self, history: &History, scores: &mut [f32], scratch: &mut Scratch) {
        match self {
            Self::RepetitionPenalty { penalty, seen, n_seen } => {
                seen.extend(&history.ids()[*n_seen..]);
                *n_seen = history.ids().len();
                penalise_repetition(scores, *penalty, seen);
            }
            Self::NoRepeatNgram(index) => ban(scores, index.repeats(history.ids())),
            Self::PresenceFrequency { presence, frequency, counts, n_counted } => {
                for &id in &history.completion_ids()[*n_counted..] {
                    *counts.entry(id).or_default() += 1;
                }
                *n_counted = history.completion_ids().len();
                penalise_counts(scores, *presence, *frequency, counts);
            }
            Self::MinNewTokens { min, eos_token_ids } => {
                if history.completion_ids().len() < *min {
                    ban(scores, eos_token_ids);
                }
            }
            Self::Temperature(temperature) => divide(scores, *temperature),
            Self::TopK(k) => keep_top_k(scores, *k, &mut scratch.largest),
            Self::TopP(p) => keep_top_p(scores, *p, &mut scratch.candidates),
            Self::MinP(p) => keep_min_p(scores, *p),
            Self::TypicalP(p) => keep_typical_p(scores, *p, &mut scratch.candidates),
        }
    }
}

/// The processors that only sampling uses.
fn filters(params: &SamplingParams) -> impl Iterator<Item = Processor> {
    let temperature = params.temperature as f32;
    [
        (temperature != 1.0).then_some(Processor::Temperature(temperature)),
        (params.top_k > 0).then_some(Processor::TopK(params.top_k)),
        (params.top_p < 1.0).then_some(Processor::TopP(params.top_p)),
        (params.min_p > 0.0).then_some(Processor::MinP(params.min_p)),
        (params.typical_p < 1.0).then_some(Processor::TypicalP(params.typical_p)),
    ]
    .into_iter()
    .flatten()
}

fn penalise_repetition(scores: &mut [f32], penalty: f32, seen: &BTreeSet<u32>) {
    for &id in seen {
        if let Some(s) = scores.get_mut(id as usize) {
            *s = clamp(*s, if *s < 0.0 { *s * penalty } else { *s / penalty });
        }
    }
}

fn penalise_counts(scores: &mut [f32], presence: f32, frequency: f32, counts: &BTreeMap<u32, u32>) {
    for (&id, &count) in counts {
        if let Some(s) = scores.get_mut(id as usize) {
            *s = clamp(*s, *s - (presence + frequency * count as f32));
        }
    }
}

/// A penalty that overflows must neither drop an id nor make it infinitely likely.
fn clamp(before: f32, after: f32) -> f32 {
    if before == f32::NEG_INFINITY { before } else { after.clamp(f32::MIN, f32::MAX) }
}

fn ban(scores: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(s) = scores.get_mut(id as usize) {
            *s = f32::NEG_INFINITY;
        }
    }
}

/// The largest score, `-inf` where every id is dropped.
fn maximum(scores: &[f32]) -> f32 {
    scores.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Where the quotient of the largest score overflows, the scores are first shifted so that it
/// becomes 0; that leaves their softmax unchanged.
fn divide(scores: &mut [f32], temperature: f32) {
    let max = maximum(scores);
    let shift = if (max / temperature).is_finite() || max.is_infinite() { 0.0 } else { max };
    for s in scores {
        *s = (*s - shift) / temperature;
    }
}

fn keep_top_k(scores: &mut [f32], k: usize, largest: &mut Vec<f32>) {
    if k == 0 || k >= scores.len() {
        return;
    }
    let threshold = kth_largest(scores, k, largest);
    drop_where(scores, |_, s| s < threshold);
}

/// The `k`-th largest of `scores`, `0 < k < len`. `largest` gathers what exceeds the best bound
/// known so far and is cut back to `k` when it holds `2 k`: one pass, memory `O(k)`.
fn kth_largest(scores: &[f32], k: usize, largest: &mut Vec<f32>) -> f32 {
    let capacity = (2 * k).max(64).min(scores.len());
    let mut bound = f32::NEG_INFINITY;
    largest.clear();
    for &s in scores {
        if s > bound || largest.len() < k {
            largest.push(s);
            if largest.len() == capacity {
                bound = *largest.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b)).1;
                largest.truncate(k);
            }
        }
    }
    *largest.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b)).1
}

fn keep_top_p(scores: &mut [f32], p: f64, candidates: &mut Vec<(f32, u32)>) {
    let Some(softmax) = Softmax::of(scores) else {
        return;
    };
    // An id goes if all ids that are no likelier hold at most 1 - p together. They are at most
    // `n_kept`, so that a small enough weight decides without sorting. The slack is far above the
    // rounding of the test below.
    let negligible = (1.0 - p) * softmax.total / softmax.n_kept as f64 * (1.0 - 1e-6);
    candidates.clear();
    for (id, &s) in scores.iter().enumerate() {
        if s != f32::NEG_INFINITY && softmax.weight(s) > negligible {
            candidates.push((s, id as u32));
        }
    }
    let mut above = 0.0;
    let last = last_kept(candidates, |s, _| {
        let at_or_below = (softmax.total - above) / softmax.total;
        above += softmax.weight(s);
        at_or_below as f32 > (1.0 - p) as f32
    });
    if let Some(last) = last {
        drop_where(scores, |id, s| likelier_first(&last, &(s, id)) == Ordering::Less);
    }
}

fn keep_min_p(scores: &mut [f32], p: f64) {
    let Some(softmax) = Softmax::of_max(maximum(scores)) else {
        return;
    };
    drop_where(scores, |_, s| (softmax.weight(s) as f32) < p as f32);
}

fn keep_typical_p(scores: &mut [f32], p: f64, candidates: &mut Vec<(f32, u32)>) {
    let Some(softmax) = Softmax::of(scores) else {
        return;
    };
    let log_total = ln(softmax.total);
    let logprob = |s: f32| softmax.below_max(s) - log_total;
    let kept = scores.iter().copied().filter(|s| *s != f32::NEG_INFINITY);
    let entropy: f64 = kept.map(|s| -logprob(s) * softmax.weight(s) / softmax.total).sum();
    let typicality = |s: f32| -(-logprob(s) - entropy).abs() as f32;
    candidates.clear();
    for (id, &s) in scores.iter().enumerate() {
        if s != f32::NEG_INFINITY {
            candidates.push((typicality(s), id as u32));
        }
    }
    let mut mass = 0.0;
    let last = last_kept(candidates, |_, id| {
        let before = mass / softmax.total;
        mass += softmax.weight(scores[id as usize]);
        (before as f32) < p as f32
    });
    if let Some((threshold, _)) = last {
        drop_where(scores, |_, s| typicality(s) < threshold);
    }
}

/// `exp(s - max)` and its sum over a vocabulary.
struct Softmax {
    max: f64,
    total: f64,
    /// Ids that are not dropped.
    n_kept: usize,
}

impl Softmax {
    /// `None` where every id is dropped.
    fn of(scores: &[f32]) -> Option<Self> {
        let mut softmax = Self::of_max(maximum(scores))?;
        for &s in scores.iter().filter(|s| **s != f32::NEG_INFINITY) {
            softmax.total += softmax.weight(s);
            softmax.n_kept += 1;
        }
        Some(softmax)
    }

    /// Without the sum.
    fn of_max(max: f32) -> Option<Self> {
        (max != f32::NEG_INFINITY).then_some(Self { max: f64::from(max), total: 0.0, n_kept: 0 })
    }

    fn below_max(&self, s: f32) -> f64 {
        f64::from(s) - self.max
    }

    fn weight(&self, s: f32) -> f64 {
        exp(self.below_max(s))
    }
}

fn drop_where(scores: &mut [f32], dropped: impl Fn(u32, f32) -> bool) {
    for (id, s) in scores.iter_mut().enumerate() {
        if *s != f32::NEG_INFINITY && dropped(id as u32, *s) {
            *s = f32::NEG_INFINITY;
        }
    }
}

/// No score is NaN: the sampler has checked.
pub(super) fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// Descending keys; of equal ones the lower id first.
fn likelier_first(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    descending(a.0, b.0).then(a.1.cmp(&b.1))
}

/// The last of `candidates` in descending order of key for which `keeps(key, id)` holds, asked in
/// that order until it fails; the first is always kept. Sorts no more than it must: a prefix that
/// grows fourfold.
fn last_kept(
    candidates: &mut [(f32, u32)],
    mut keeps: impl FnMut(f32, u32) -> bool,
) -> Option<(f32, u32)> {
    let mut last = None;
    let (mut start, mut len) = (0, 64);
    while start < candidates.len() {
        let rest = &mut candidates[start..];
        len = len.min(rest.len());
        if len < rest.len() {
            rest.select_nth_unstable_by(len - 1, likelier_first);
        }
        rest[..len].sort_unstable_by(likelier_first);
        for &(key, id) in &rest[..len] {
            if !keeps(key, id) && last.is_some() {
                return last;
            }
            last = Some((key, id));
        }
        start += len;
        len *= 4;
    }
    last
}

#[cfg(test)]
mod tests;
