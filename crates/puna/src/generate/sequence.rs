//! One request on its way. A prompt and parameters enter; each step computes the ids that are not
//! cached, and the sampler adds one at the end, or several where drafts were right, until a stop
//! condition holds. Between steps there are no drafts.

use super::runner::{Cached, Rows};
use super::speculation::Guesses;
use super::{ParamError, Sampler, SamplingParams, StopConditions};

/// Names a sequence of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Ids to continue; at least one.
    pub prompt_ids: Vec<u32>,
    /// How the next id is chosen.
    pub sampling: SamplingParams,
    /// When to end. Stop strings are found in the text, by a [`super::TextStream`].
    pub stop: StopConditions,
}

/// A request that the engine works on.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Prompt, then completion, then drafts: within a step, ids that the model has still to judge.
    pub(super) ids: Vec<u32>,
    pub(super) n_prompt: usize,
    /// Ids at the end that are drafts.
    pub(super) n_drafts: usize,
    /// The model's own cache.
    pub(super) cached: Cached,
    pub(super) sampler: Sampler,
    pub(super) stop: StopConditions,
    pub(super) guesses: Guesses,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, request: Request) -> Result<Self, ParamError> {
        let Request { prompt_ids, sampling, stop } = request;
        Ok(Self {
            id,
            sampler: Sampler::new(&sampling, &stop, &prompt_ids)?,
            n_prompt: prompt_ids.len(),
            ids: prompt_ids,
            n_drafts: 0,
            cached: Cached::default(),
            stop,
            guesses: Guesses::default(),
        })
    }

    /// Ids that the model has not seen: one in decode, drafts apart, more in prefill.
    pub(super) fn n_pending(&self) -> usize {
        self.ids.len() - self.cached.n_tokens
    }

    /// `n` of them, as rows of a forward.
    pub(super) fn rows(&self, n: usize) -> Rows<'_> {
        Rows { ids: &self.ids, n_prompt: self.n_prompt, cached: &self.cached, n }
    }

    /// Ids without the drafts.
    pub(super) fn n_certain(&self) -> usize {
        self.ids.len() - self.n_drafts
    }

    pub(super) fn n_completion(&self) -> usize {
        self.n_certain() - self.n_prompt
    }

    /// Appends a guess.
    pub(super) fn push_draft(&mut self, id: u32) {
        self.ids.push(id);
        self.n_drafts += 1;
    }

    /// Takes the drafts off.
    pub(super) fn take_drafts(&mut self) -> Vec<u32> {
        let n_certain = self.n_certain();
        self.n_drafts = 0;
        self.ids.split_off(n_certain)
    }
}
