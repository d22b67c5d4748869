//! One request on its way. A prompt and parameters enter; each step computes the ids from
//! `n_computed` on, and the sampler adds one at the end, until a stop condition holds. Invariant:
//! the cache holds keys and values of `ids[..n_computed]`, in the blocks of `blocks`.

use super::{BlockTable, ParamError, Sampler, SamplingParams, StopConditions};

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
    /// Prompt, then completion.
    pub(super) ids: Vec<u32>,
    pub(super) n_prompt: usize,
    /// Ids whose keys and values are in the cache.
    pub(super) n_computed: usize,
    pub(super) blocks: BlockTable,
    pub(super) sampler: Sampler,
    pub(super) stop: StopConditions,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, request: Request) -> Result<Self, ParamError> {
        let Request { prompt_ids, sampling, stop } = request;
        Ok(Self {
            id,
            sampler: Sampler::new(&sampling, &stop, &prompt_ids)?,
            n_prompt: prompt_ids.len(),
            ids: prompt_ids,
            n_computed: 0,
            blocks: BlockTable::default(),
            stop,
        })
    }

    /// Ids that the model has not seen: one in decode, more in prefill.
    pub(super) fn n_pending(&self) -> usize {
        self.ids.len() - self.n_computed
    }

    pub(super) fn n_completion(&self) -> usize {
        self.ids.len() - self.n_prompt
    }
}
