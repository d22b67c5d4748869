//! The engine: takes requests, runs them together, and says each token as it comes.
//!
//! A step is one forward over a ragged batch: a decode row of every running sequence and as much
//! of the waiting prompts as fits. Keys and values live in blocks of one pool. When the pool is
//! full, the sequences kept for their beginnings go first; then the youngest running one gives its
//! blocks back and is computed again later. Drafts, where there is [`Speculation`], are further
//! rows of the sequences that decode.

use std::collections::VecDeque;
use std::sync::Arc;

use puna_kernels::{Backend, KvDtype, OutOfMemory};

use super::runner::{Rows, Runner};
use super::sequence::{Request, Sequence, SequenceId};
use super::speculation::{DraftCounts, Guesses, Speculation, SpeculationError, Speculator};
use super::{BlockError, FinishReason, ParamError, SampleError, Sampled, scheduler};
use crate::model::LlamaForCausalLM;

/// Sizes of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most rows of one step: the length of a prefill chunk.
    pub max_batch_rows: usize,
    /// Tokens that the cache can hold, over all sequences; also the longest sequence.
    pub kv_tokens: usize,
    /// How keys and values are stored.
    pub kv_dtype: KvDtype,
}

/// A request that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nothing to continue.
    #[error("the prompt is empty: give it at least one token")]
    EmptyPrompt,
    /// The prompt alone fills the context.
    #[error(
        "the prompt has {prompt} tokens, but the context holds {context}: shorten it or enlarge \
         the context"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the longest sequence.
        context: usize,
    },
    /// An id outside the vocabulary.
    #[error("the prompt holds id {id}, but the vocabulary has {vocab_size} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A sampling parameter or a stop condition.
    #[error(transparent)]
    Param(#[from] ParamError),
}

/// An engine that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// No memory for the cache or the workspace.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// More cache than blocks can be numbered.
    #[error(transparent)]
    Blocks(#[from] BlockError),
}

/// What a step brought for one sequence: one token, or several events in their order where drafts
/// were right.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose.
    pub sequence: SequenceId,
    /// The new token. An error ends the sequence, and only this one.
    pub token: Result<Sampled, SampleError>,
    /// Set with the last token of a sequence.
    pub finish: Option<FinishReason>,
}

/// Runs requests together on one model.
#[derive(Debug)]
pub struct Engine<B: Backend> {
    runner: Runner<B>,
    options: EngineOptions,
    waiting: VecDeque<Sequence>,
    /// In the order of their arrival.
    running: Vec<Sequence>,
    next_id: u64,
    speculator: Option<Speculator<B>>,
    draft_counts: DraftCounts,
}

impl<B: Backend> Engine<B> {
    /// Allocates the cache and the workspace.
    pub fn new(
        model: Arc<LlamaForCausalLM<B>>,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            runner: Runner::new(model, options)?,
            options: options.clone(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            speculator: None,
            draft_counts: DraftCounts::default(),
        })
    }

    /// The model that runs.
    pub fn model(&self) -> &LlamaForCausalLM<B> {
        &self.runner.model
    }

    /// Guesses ahead from the next step on, or no longer. What comes out stays the same; see
    /// [`Speculation::max_rows`].
    pub fn speculate(
        &mut self,
        speculation: Option<Speculation<B>>,
    ) -> Result<(), SpeculationError> {
        let model = &self.runner.model;
        let speculator = speculation.map(|how| Speculator::new(how, model, &self.options));
        self.speculator = speculator.transpose()?;
        // What was remembered is of the proposer before.
        self.waiting
            .iter_mut()
            .chain(&mut self.running)
            .for_each(|s| s.guesses = Guesses::default());
        Ok(())
    }

    /// How many guesses there were since the engine was made, and how many were right.
    pub fn draft_counts(&self) -> DraftCounts {
        self.draft_counts
    }

    /// Takes a request. Its tokens come from later steps.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        let (prompt, context) = (request.prompt_ids.len(), self.runner.capacity());
        let vocab_size = self.runner.vocab_size();
        if prompt == 0 {
            return Err(RequestError::EmptyPrompt);
        }
        if prompt >= context {
            return Err(RequestError::TooLong { prompt, context });
        }
        if let Some(&id) = request.prompt_ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(RequestError::TokenId { id, vocab_size });
        }
        let id = SequenceId(self.next_id);
        self.waiting.push_back(Sequence::new(id, request)?);
        self.next_id += 1;
        Ok(id)
    }

    /// Forgets a sequence; nothing more is said of it.
    pub fn cancel(&mut self, id: SequenceId) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            self.retire(index);
        }
    }

    /// No sequence is left.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Computes one batch and samples every sequence whose tokens have all been seen. Ended
    /// sequences are taken out. After an error the sequences are as before.
    pub fn step(&mut self) -> Result<Vec<Event>, OutOfMemory> {
        self.admit();
        let mut rows = self.schedule();
        if rows.iter().all(|&n| n == 0) {
            return Ok(Vec::new());
        }
        let computed = self.guess(&mut rows).and_then(|()| self.compute(&rows));
        match computed {
            Ok(due) => Ok(self.sample(&due)),
            Err(error) => {
                for sequence in &mut self.running {
                    sequence.take_drafts();
                    self.runner.truncate(&mut sequence.cached, sequence.ids.len() - 1);
                    if let Some(speculator) = &mut self.speculator {
                        speculator.forget_drafts(sequence);
                    }
                }
                Err(error)
            }
        }
    }

    /// Moves waiting sequences to the running ones while their tokens fit into the cache. A
    /// beginning that is still there is not computed again.
    fn admit(&mut self) {
        while let Some(mut sequence) = self.waiting.pop_front() {
            sequence.cached = self.runner.begin(&sequence.ids);
            let n_tokens = sequence.ids.len() + 1;
            if !self.running.is_empty() && !self.runner.has_room(&sequence.cached, n_tokens) {
                self.put_back(sequence);
                return;
            }
            self.running.push(sequence);
        }
    }

    /// Back to the head of the queue, without blocks: those who wait hold none.
    fn put_back(&mut self, mut sequence: Sequence) {
        self.runner.release(&mut sequence.cached);
        if let Some(speculator) = &mut self.speculator {
            speculator.release(&mut sequence.guesses);
        }
        self.waiting.push_front(sequence);
    }

    /// Rows of each running sequence, with place for them in the cache.
    fn schedule(&mut self) -> Vec<usize> {
        let pending: Vec<usize> = self.running.iter().map(Sequence::n_pending).collect();
        let mut rows = scheduler::plan(&pending, self.runner.max_rows());
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let n_tokens = sequence.cached.n_tokens + rows[index];
            if self.runner.place(&mut sequence.cached, n_tokens) {
                index += 1;
            } else if let Some(youngest) = self.running.pop() {
                self.put_back(youngest);
                rows.truncate(self.running.len());
            }
        }
        rows
    }

    /// Adds drafts, and rows for them.
    fn guess(&mut self, rows: &mut [usize]) -> Result<(), OutOfMemory> {
        let Some(speculator) = &mut self.speculator else { return Ok(()) };
        // Rows of a prompt take the model's path for many rows: a step with them has no drafts.
        if self.running.iter().zip(&*rows).any(|(s, &n)| n != 1 || s.n_pending() != 1) {
            return Ok(());
        }
        let capacity = self.runner.capacity();
        let wishes: Vec<usize> = self
            .running
            .iter_mut()
            .map(|sequence| {
                // One id comes without a draft.
                let wanted = sequence.stop.max_new_tokens - sequence.n_completion();
                let room = capacity - sequence.ids.len();
                speculator.wish(sequence, wanted.min(room).saturating_sub(1))
            })
            .collect();
        let most = speculator.max_rows.min(self.runner.max_rows());
        let mut shares = scheduler::share(&wishes, most.saturating_sub(rows.len()));
        for (sequence, share) in self.running.iter_mut().zip(&mut shares) {
            if !self.runner.place(&mut sequence.cached, sequence.ids.len() + *share) {
                *share = 0;
            }
        }
        speculator.guess(&mut self.running, &shares)?;
        self.running.iter().zip(rows).for_each(|(sequence, n)| *n += sequence.n_drafts);
        Ok(())
    }

    /// Computes the rows. For each sequence that then has no token left to compute: which it is,
    /// and how many logits it has, those of its last certain id and of its drafts.
    fn compute(&mut self, rows: &[usize]) -> Result<Vec<(usize, usize)>, OutOfMemory> {
        let batch: Vec<Rows<'_>> =
            self.running.iter().zip(rows).map(|(sequence, &n)| sequence.rows(n)).collect();
        self.runner.forward(&batch)?;
        let (mut due, mut asked) = (Vec::new(), Vec::new());
        let mut end = 0;
        for (index, (sequence, n)) in self.running.iter_mut().zip(rows).enumerate() {
            end += *n;
            sequence.cached.n_tokens += n;
            if *n > 0 && sequence.n_pending() == 0 {
                let n_logits = 1 + sequence.n_drafts;
                due.push((index, n_logits));
                asked.extend(end as u32 - n_logits as u32..end as u32);
            }
        }
        self.runner.head(&asked)?;
        Ok(due)
    }

    /// Samples the sequences that are due.
    fn sample(&mut self, due: &[(usize, usize)]) -> Vec<Event> {
        let mut events = Vec::with_capacity(due.len());
        let mut ended = Vec::new();
        let mut first_row = 0;
        for &(index, n_logits) in due {
            let drafts = self.running[index].take_drafts();
            let before = events.len();
            for row in first_row..first_row + n_logits {
                let event = self.advance(index, row);
                let draft = drafts.get(row - first_row).copied();
                let is_right = matches!(&event.token, Ok(token) if Some(token.id) == draft);
                let is_over = event.finish.is_some() || event.token.is_err();
                events.push(event);
                if is_over {
                    ended.push(index);
                }
                if is_over || !is_right {
                    break;
                }
            }
            first_row += n_logits;
            self.settle(index, &drafts, &events[before..]);
        }
        ended.into_iter().rev().for_each(|index| self.retire(index));
        events
    }

    /// Chooses the next id of one sequence from a row of logits.
    fn advance(&mut self, index: usize, row: usize) -> Event {
        let sequence = &mut self.running[index];
        let token = sequence.sampler.sample(self.runner.scores(row));
        let finish = token.as_ref().ok().and_then(|token| {
            sequence.ids.push(token.id);
            let full = sequence.ids.len() >= self.runner.capacity();
            let stop = sequence.stop.after_id(token.id, sequence.n_completion());
            stop.or_else(|| full.then_some(FinishReason::Length))
        });
        Event { sequence: sequence.id, token, finish }
    }

    /// Counts which drafts were right, and forgets the keys and values of the others.
    fn settle(&mut self, index: usize, drafts: &[u32], events: &[Event]) {
        let Some(speculator) = &mut self.speculator else { return };
        let chosen = events.iter().filter_map(|event| event.token.as_ref().ok());
        let n_accepted = chosen.zip(drafts).take_while(|(token, id)| token.id == **id).count();
        let sequence = &mut self.running[index];
        // The newest id is never computed yet, whatever it is.
        self.runner.truncate(&mut sequence.cached, sequence.ids.len() - 1);
        speculator.learn(sequence, drafts.len(), n_accepted);
        self.draft_counts.drafted += drafts.len() as u64;
        self.draft_counts.accepted += n_accepted as u64;
    }

    /// Takes out a sequence that has ended and keeps its beginning.
    fn retire(&mut self, index: usize) {
        let Sequence { ids, cached, guesses, .. } = self.running.remove(index);
        if let Some(speculator) = &mut self.speculator {
            speculator.keep(&ids, guesses);
        }
        self.runner.keep(ids, cached);
    }
}
