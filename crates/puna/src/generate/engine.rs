//! The engine: takes requests, runs them together, and says each token as it comes.
//!
//! A step is one forward over a ragged batch: a decode row of every running sequence and as much
//! of the waiting prompts as fits. Keys and values live in blocks of one pool. When the pool is
//! full, the sequences kept for their beginnings go first; then the youngest running one gives its
//! blocks back and is computed again later.

use std::collections::VecDeque;
use std::sync::Arc;

use puna_kernels::{Backend, KvDtype, KvShape, Mask, OutOfMemory, Span};

use super::prefix_cache::PrefixCache;
use super::sequence::{Request, Sequence, SequenceId};
use super::{
    BlockAllocator, BlockError, FinishReason, ParamError, SampleError, Sampled, scheduler,
};
use crate::model::{Batch, LlamaForCausalLM, Tokens, Trace, Workspace};

/// Tokens in one block of the cache.
const BLOCK_LEN: usize = 32;

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

/// What a step brought for one sequence.
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
    model: Arc<LlamaForCausalLM<B>>,
    options: EngineOptions,
    cache: B::KvCache,
    allocator: BlockAllocator,
    prefixes: PrefixCache,
    workspace: Workspace<B>,
    /// `(max rows that sample at once, vocab_size)`; grows with the number of sequences.
    logits: B::Buf,
    logits_rows: usize,
    /// Logits of one row on the host.
    scores: Vec<f32>,
    waiting: VecDeque<Sequence>,
    /// In the order of their arrival.
    running: Vec<Sequence>,
    next_id: u64,
}

impl<B: Backend> Engine<B> {
    /// Allocates the cache and the workspace.
    pub fn new(
        model: Arc<LlamaForCausalLM<B>>,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let config = &model.model.config;
        let backend = &*model.model.backend;
        let n_blocks = options.kv_tokens.div_ceil(BLOCK_LEN).max(1);
        let allocator = BlockAllocator::new(n_blocks, BLOCK_LEN)?;
        let shape = KvShape {
            n_layers: config.num_hidden_layers,
            n_blocks,
            block_len: BLOCK_LEN,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            dtype: options.kv_dtype,
        };
        let cache = backend.kv_cache(shape)?;
        let workspace = model.model.workspace(options.max_batch_rows.max(1))?;
        let logits = backend.alloc(config.vocab_size, "logits")?;
        let scores = vec![0.0; config.vocab_size];
        Ok(Self {
            cache,
            allocator,
            prefixes: PrefixCache::default(),
            workspace,
            logits,
            logits_rows: 1,
            scores,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            options: EngineOptions { kv_tokens: n_blocks * BLOCK_LEN, ..options.clone() },
            model,
        })
    }

    /// The model that runs.
    pub fn model(&self) -> &LlamaForCausalLM<B> {
        &self.model
    }

    /// Takes a request. Its tokens come from later steps.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        let (prompt, context) = (request.prompt_ids.len(), self.options.kv_tokens);
        let vocab_size = self.model.model.config.vocab_size;
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
    /// sequences are taken out.
    pub fn step(&mut self) -> Result<Vec<Event>, OutOfMemory> {
        self.admit();
        let rows = self.schedule();
        if rows.iter().all(|&n| n == 0) {
            return Ok(Vec::new());
        }
        self.forward(&rows)?;
        for (sequence, n) in self.running.iter_mut().zip(&rows) {
            sequence.n_computed += n;
        }
        self.sample(&rows)
    }

    /// Moves waiting sequences to the running ones while their tokens fit into the cache. A
    /// beginning that is still there is not computed again.
    fn admit(&mut self) {
        while let Some(mut sequence) = self.waiting.pop_front() {
            // Dynamic frequencies depend on the whole prompt: keys of another would not fit.
            if !self.model.model.rope.is_dynamic()
                && let Some((blocks, n)) = self.prefixes.share(&sequence.ids, &mut self.allocator)
            {
                sequence.n_computed = n;
                sequence.blocks = blocks;
            }
            let needed = (sequence.ids.len() + 1).div_ceil(BLOCK_LEN);
            let lacking = needed.saturating_sub(sequence.blocks.blocks().len());
            if !self.running.is_empty() && !self.make_room(lacking) {
                self.put_back(sequence);
                return;
            }
            self.running.push(sequence);
        }
    }

    /// Back to the head of the queue, without blocks: those who wait hold none.
    fn put_back(&mut self, mut sequence: Sequence) {
        std::mem::take(&mut sequence.blocks).release(&mut self.allocator);
        sequence.n_computed = 0;
        self.waiting.push_front(sequence);
    }

    /// Whether `n_blocks` are free, once kept beginnings have made way.
    fn make_room(&mut self, n_blocks: usize) -> bool {
        while self.allocator.n_free() < n_blocks {
            if !self.prefixes.evict_oldest(&mut self.allocator) {
                return false;
            }
        }
        true
    }

    /// Rows of each running sequence, with blocks for them.
    fn schedule(&mut self) -> Vec<usize> {
        let pending: Vec<usize> = self.running.iter().map(Sequence::n_pending).collect();
        let mut rows = scheduler::plan(&pending, self.options.max_batch_rows);
        let mut index = 0;
        while index < self.running.len() {
            if self.place(index, rows[index]) {
                index += 1;
            } else if let Some(youngest) = self.running.pop() {
                self.put_back(youngest);
                rows.truncate(self.running.len());
            }
        }
        rows
    }

    /// Makes place in the cache for `n_rows` more tokens of a running sequence.
    fn place(&mut self, index: usize, n_rows: usize) -> bool {
        let sequence = &mut self.running[index];
        let n_new = (sequence.n_computed + n_rows).saturating_sub(sequence.blocks.n_tokens());
        loop {
            match self.running[index].blocks.grow(&mut self.allocator, n_new) {
                Ok(Some(copy)) => {
                    let backend = &self.model.model.backend;
                    backend.copy_kv_block(&mut self.cache, copy.from, copy.to);
                    return true;
                }
                Ok(None) => return true,
                Err(_) if self.prefixes.evict_oldest(&mut self.allocator) => {}
                Err(_) => return false,
            }
        }
    }

    fn forward(&mut self, rows: &[usize]) -> Result<(), OutOfMemory> {
        let total = rows.iter().sum();
        let mut ids = Vec::with_capacity(total);
        let mut positions = Vec::with_capacity(total);
        let mut lengths = Vec::with_capacity(total);
        let mut spans = Vec::with_capacity(rows.len());
        for (sequence, &n) in self.running.iter().zip(rows).filter(|(_, n)| **n > 0) {
            let tokens = sequence.n_computed..sequence.n_computed + n;
            let start = ids.len();
            ids.extend_from_slice(&sequence.ids[tokens.clone()]);
            positions.extend(tokens.clone().map(|t| t as u32));
            // As if the prompt came at once and each later token alone, whatever the chunks.
            lengths.extend(tokens.clone().map(|t| sequence.n_prompt.max(t + 1) as u32));
            spans.push(Span {
                rows: start..start + n,
                n_keys: tokens.end,
                blocks: sequence.blocks.blocks(),
                mask: Mask::Causal,
            });
        }
        let (positions, lengths) = (&positions, &lengths);
        let batch = Batch { tokens: Tokens::Ids(&ids), positions, lengths, spans: &spans };
        let (model, workspace) = (&self.model.model, &mut self.workspace);
        model.forward(&batch, &mut self.cache, workspace, &mut Trace::default())
    }

    /// Samples the sequences that have no token left to compute.
    fn sample(&mut self, rows: &[usize]) -> Result<Vec<Event>, OutOfMemory> {
        let ends = rows.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        let (due, last_rows): (Vec<usize>, Vec<u32>) = ends
            .enumerate()
            .filter(|&(index, _)| rows[index] > 0 && self.running[index].n_pending() == 0)
            .map(|(index, end)| (index, end as u32 - 1))
            .unzip();
        self.reserve_logits(due.len())?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        self.model.head_rows(&mut self.workspace, &last_rows, &mut self.logits);
        let mut events = Vec::with_capacity(due.len());
        for (row, &index) in due.iter().enumerate() {
            self.read_scores(row);
            events.push(self.advance(index));
        }
        for (event, &index) in events.iter().zip(&due).rev() {
            if event.finish.is_some() || event.token.is_err() {
                self.retire(index);
            }
        }
        Ok(events)
    }

    /// Chooses the next id of one sequence from `scores`.
    fn advance(&mut self, index: usize) -> Event {
        let sequence = &mut self.running[index];
        let token = sequence.sampler.sample(&mut self.scores);
        let finish = token.as_ref().ok().and_then(|token| {
            sequence.ids.push(token.id);
            let full = sequence.ids.len() >= self.options.kv_tokens;
            let stop = sequence.stop.after_id(token.id, sequence.n_completion());
            stop.or_else(|| full.then_some(FinishReason::Length))
        });
        Event { sequence: sequence.id, token, finish }
    }

    fn read_scores(&mut self, row: usize) {
        let offset = row * self.scores.len();
        self.model.model.backend.read(&self.logits, offset, &mut self.scores);
    }

    fn reserve_logits(&mut self, rows: usize) -> Result<(), OutOfMemory> {
        if rows > self.logits_rows {
            let rows = rows.next_power_of_two();
            let len = rows * self.scores.len();
            self.logits = self.model.model.backend.alloc(len, "logits")?;
            self.logits_rows = rows;
        }
        Ok(())
    }

    /// Takes out a sequence that has ended and keeps its beginning.
    fn retire(&mut self, index: usize) {
        let Sequence { mut ids, n_computed, blocks, .. } = self.running.remove(index);
        // See `admit`: such keys are never shared.
        if self.model.model.rope.is_dynamic() {
            return blocks.release(&mut self.allocator);
        }
        ids.truncate(n_computed);
        self.prefixes.keep(ids, blocks, &mut self.allocator);
    }
}
