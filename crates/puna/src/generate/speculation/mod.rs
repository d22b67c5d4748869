//! Guessing several ids ahead, so that one step of the model judges them all. Drafts of a
//! sequence enter the batch as further rows; the logits of every row go to the sequence's own
//! sampler in order, and what it chooses is the output, up to and with the first id that is not
//! the draft's.
//!
//! The sampler draws from `p` with the number of `(seed, step)`, as it does without drafts. So a
//! draft `x` is accepted with probability `p(x)`, and a rejection leaves a draw from `p` without
//! `x`: speculative sampling (Leviathan et al., 2023; Chen et al., 2023) for a proposal that is
//! certain. It even gives the very ids of plain sampling, whatever was guessed.

mod draft;
mod lookup;
mod pace;

use std::sync::Arc;

use puna_kernels::{Backend, OutOfMemory};

use super::runner::{Cached, Runner};
use super::sequence::Sequence;
use super::{EngineError, EngineOptions};
use crate::model::LlamaForCausalLM;
use lookup::{MAX_NGRAM, PromptLookup};
use pace::Pace;

/// Where guesses come from.
#[derive(Debug)]
pub enum Proposer<B: Backend> {
    /// The sequence itself: what followed its last ids where they stood before.
    PromptLookup {
        /// Ids that are compared at most, from 1 to 64. Two must agree, unless this is 1.
        max_ngram: usize,
    },
    /// A smaller model with the same vocabulary. It keeps a cache of its own, as large.
    Draft(Arc<LlamaForCausalLM<B>>),
}

/// How to guess ahead.
#[derive(Debug)]
pub struct Speculation<B: Backend> {
    /// Where guesses come from.
    pub proposer: Proposer<B>,
    /// Ids guessed for one step of a sequence at most; fewer while few are accepted.
    pub max_tokens: usize,
    /// Rows of one step up to which the backend gives each row the bits that it has alone: the
    /// least of `Cpu::rows_like_one` over the model's weights. Drafts never make a step larger, so
    /// that logits and ids are those without them: for a sequence alone. Several share steps, and
    /// drafts change which; there only a deterministic or exact backend keeps every bit.
    pub max_rows: usize,
}

// Derived, it would ask for a backend that can be copied.
impl<B: Backend> Clone for Proposer<B> {
    fn clone(&self) -> Self {
        match self {
            Self::PromptLookup { max_ngram } => Self::PromptLookup { max_ngram: *max_ngram },
            Self::Draft(model) => Self::Draft(Arc::clone(model)),
        }
    }
}

impl<B: Backend> Clone for Speculation<B> {
    fn clone(&self) -> Self {
        let &Self { max_tokens, max_rows, .. } = self;
        Self { proposer: self.proposer.clone(), max_tokens, max_rows }
    }
}

/// Speculation that cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpeculationError {
    /// Ids of the draft model mean something else.
    #[error(
        "the draft model has a vocabulary of {draft} tokens and the model one of {model}: take a \
         draft model of the same family"
    )]
    Vocabulary {
        /// Size of the model's.
        model: usize,
        /// Size of the draft model's.
        draft: usize,
    },
    /// Nothing can be compared.
    #[error("max_ngram is {0}; it must be from 1 to {MAX_NGRAM}")]
    MaxNgram(usize),
    /// Nothing can be guessed.
    #[error("max_tokens is 0; it must be at least 1")]
    NoTokens,
    /// No room for the draft model's cache.
    #[error("the draft model's cache: {0}")]
    Cache(#[from] EngineError),
}

/// How good the guesses of an engine were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Ids that were guessed and judged.
    pub drafted: u64,
    /// Those that were what the model said.
    pub accepted: u64,
}

impl DraftCounts {
    /// What was added after `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            drafted: self.drafted.saturating_sub(before.drafted),
            accepted: self.accepted.saturating_sub(before.accepted),
        }
    }
}

/// What guessing remembers of one sequence.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    pace: Pace,
    lookup: PromptLookup,
    /// The draft model's cache.
    draft: Cached,
}

/// A [`Speculation`] at work.
#[derive(Debug)]
pub(super) struct Speculator<B: Backend> {
    source: Source<B>,
    max_tokens: usize,
    pub(super) max_rows: usize,
}

#[derive(Debug)]
enum Source<B: Backend> {
    PromptLookup { max_ngram: usize },
    Draft(Box<Runner<B>>),
}

impl<B: Backend> Speculator<B> {
    /// Checks the settings against the model. `options` are those of the engine.
    pub(super) fn new(
        speculation: Speculation<B>,
        model: &LlamaForCausalLM<B>,
        options: &EngineOptions,
    ) -> Result<Self, SpeculationError> {
        let Speculation { proposer, max_tokens, max_rows } = speculation;
        if max_tokens == 0 {
            return Err(SpeculationError::NoTokens);
        }
        let source = match proposer {
            Proposer::PromptLookup { max_ngram } if (1..=MAX_NGRAM).contains(&max_ngram) => {
                Source::PromptLookup { max_ngram }
            }
            Proposer::PromptLookup { max_ngram } => {
                return Err(SpeculationError::MaxNgram(max_ngram));
            }
            Proposer::Draft(draft) => {
                let sizes = [model, &*draft].map(|model| model.model.config.vocab_size);
                let [model, found] = sizes;
                if model != found {
                    return Err(SpeculationError::Vocabulary { model, draft: found });
                }
                Source::Draft(Box::new(Runner::new(draft, options)?))
            }
        };
        Ok(Self { source, max_tokens, max_rows })
    }

    /// Ids to guess for a sequence of which `most` can still be used, in this step.
    pub(super) fn wish(&self, sequence: &mut Sequence, most: usize) -> usize {
        sequence.guesses.pace.next(self.max_tokens.min(most))
    }

    /// Appends to each sequence at most as many drafts as `shares` says.
    pub(super) fn guess(
        &mut self,
        sequences: &mut [Sequence],
        shares: &[usize],
    ) -> Result<(), OutOfMemory> {
        match &mut self.source {
            Source::PromptLookup { max_ngram } => {
                for (sequence, &n) in sequences.iter_mut().zip(shares).filter(|(_, n)| **n > 0) {
                    let ids = sequence.guesses.lookup.guess(&sequence.ids, *max_ngram, n);
                    ids.into_iter().for_each(|id| sequence.push_draft(id));
                }
                Ok(())
            }
            Source::Draft(runner) => draft::guess(runner, sequences, shares),
        }
    }

    /// `n_accepted` of `n_drafted` drafts were right: they and one more id are in the sequence now.
    pub(super) fn learn(&mut self, sequence: &mut Sequence, n_drafted: usize, n_accepted: usize) {
        if n_drafted > 0 {
            sequence.guesses.pace.learn(n_drafted, n_accepted);
        }
        self.forget_drafts(sequence);
    }

    /// Lets the draft model forget what is not in the sequence, whose newest id it has not seen.
    pub(super) fn forget_drafts(&mut self, sequence: &mut Sequence) {
        if let Source::Draft(runner) = &mut self.source {
            runner.truncate(&mut sequence.guesses.draft, sequence.ids.len() - 1);
        }
    }

    /// A sequence gives its place up for now.
    pub(super) fn release(&mut self, guesses: &mut Guesses) {
        if let Source::Draft(runner) = &mut self.source {
            runner.release(&mut guesses.draft);
        }
    }

    /// A sequence has ended; the draft model keeps its beginning as the model does.
    pub(super) fn keep(&mut self, ids: &[u32], guesses: Guesses) {
        if let Source::Draft(runner) = &mut self.source {
            runner.keep(ids.to_vec(), guesses.draft);
        }
    }
}
