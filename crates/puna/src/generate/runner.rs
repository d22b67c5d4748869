//! A model with a paged cache of its own: rows of any number of sequences enter, logits of the
//! asked rows leave. The cache holds, for each sequence, keys and values of its first
//! `Cached::n_tokens` ids, and what ended sequences left for others that begin the same way.

use std::ops::Range;
use std::sync::Arc;

use puna_kernels::{Backend, Mask, OutOfMemory, Span};

use super::prefix_cache::PrefixCache;
use super::{BlockAllocator, BlockTable, EngineError, EngineOptions};
use crate::model::{Batch, LlamaForCausalLM, Tokens, Trace, Workspace};

/// Tokens in one block of the cache.
const BLOCK_LEN: usize = 32;

/// What a cache holds of one sequence: the keys and values of its first `n_tokens` ids. Belongs to
/// the runner that filled it and must go back to it.
#[derive(Debug, Default)]
pub(super) struct Cached {
    pub(super) n_tokens: usize,
    blocks: BlockTable,
}

/// Rows of one sequence for a forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    /// Ids of the sequence, the rows' included.
    pub(super) ids: &'a [u32],
    pub(super) n_prompt: usize,
    /// Rows are the `n` ids after those that are cached, and there is place for them.
    pub(super) cached: &'a Cached,
    pub(super) n: usize,
}

impl Rows<'_> {
    fn tokens(&self) -> Range<usize> {
        self.cached.n_tokens..self.cached.n_tokens + self.n
    }
}

/// A model and its cache.
#[derive(Debug)]
pub(super) struct Runner<B: Backend> {
    pub(super) model: Arc<LlamaForCausalLM<B>>,
    cache: B::KvCache,
    allocator: BlockAllocator,
    prefixes: PrefixCache,
    workspace: Workspace<B>,
    /// `(max rows that were asked for at once, vocab_size)`.
    logits: B::Buf,
    logits_rows: usize,
    /// Logits of one row on the host.
    scores: Vec<f32>,
}

impl<B: Backend> Runner<B> {
    /// Allocates the cache and the workspace.
    pub(super) fn new(
        model: Arc<LlamaForCausalLM<B>>,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let config = &model.model.config;
        let backend = &*model.model.backend;
        let n_blocks = options.kv_tokens.div_ceil(BLOCK_LEN).max(1);
        let allocator = BlockAllocator::new(n_blocks, BLOCK_LEN)?;
        let cache =
            backend.kv_cache(model.model.kv_shape(n_blocks, BLOCK_LEN, options.kv_dtype))?;
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
            model,
        })
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.scores.len()
    }

    /// Tokens that the cache has place for.
    pub(super) fn capacity(&self) -> usize {
        self.allocator.n_blocks() * BLOCK_LEN
    }

    /// Most rows of one forward.
    pub(super) fn max_rows(&self) -> usize {
        self.workspace.max_rows
    }

    /// What the cache still has of a sequence's beginning: never all of it.
    pub(super) fn begin(&mut self, ids: &[u32]) -> Cached {
        // Dynamic frequencies depend on the whole prompt: keys of another would not fit.
        if self.model.model.rope.is_dynamic() {
            return Cached::default();
        }
        let shared = self.prefixes.share(ids, &mut self.allocator);
        shared.map_or_else(Cached::default, |(blocks, n_tokens)| Cached { blocks, n_tokens })
    }

    /// Whether a sequence could grow to `n_tokens`, once kept beginnings have made way.
    pub(super) fn has_room(&mut self, cached: &Cached, n_tokens: usize) -> bool {
        let lacking = n_tokens.div_ceil(BLOCK_LEN).saturating_sub(cached.blocks.blocks().len());
        while self.allocator.n_free() < lacking {
            if !self.prefixes.evict_oldest(&mut self.allocator) {
                return false;
            }
        }
        true
    }

    /// Makes place for a sequence's first `n_tokens` tokens. Kept beginnings make way.
    pub(super) fn place(&mut self, cached: &mut Cached, n_tokens: usize) -> bool {
        let n_new = n_tokens.saturating_sub(cached.blocks.n_tokens());
        loop {
            match cached.blocks.grow(&mut self.allocator, n_new) {
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

    /// Computes the rows; the caller then counts them as cached.
    pub(super) fn forward(&mut self, rows: &[Rows<'_>]) -> Result<(), OutOfMemory> {
        let total = rows.iter().map(|rows| rows.n).sum();
        let mut ids = Vec::with_capacity(total);
        let mut positions = Vec::with_capacity(total);
        let mut lengths = Vec::with_capacity(total);
        let mut spans = Vec::with_capacity(rows.len());
        for rows in rows.iter().filter(|rows| rows.n > 0) {
            let (tokens, start) = (rows.tokens(), ids.len());
            ids.extend_from_slice(&rows.ids[tokens.clone()]);
            positions.extend(tokens.clone().map(|t| t as u32));
            // As if the prompt came at once and each later token alone, whatever the chunks.
            lengths.extend(tokens.clone().map(|t| rows.n_prompt.max(t + 1) as u32));
            spans.push(Span {
                rows: start..start + rows.n,
                n_keys: tokens.end,
                blocks: rows.cached.blocks.blocks(),
                mask: Mask::Causal,
            });
        }
        let (positions, lengths) = (&positions, &lengths);
        let batch = Batch { tokens: Tokens::Ids(&ids), positions, lengths, spans: &spans };
        let (model, workspace) = (&self.model.model, &mut self.workspace);
        model.forward(&batch, &mut self.cache, workspace, &mut Trace::default())
    }

    /// Computes the logits of some rows of the last forward, for [`Runner::scores`].
    pub(super) fn head(&mut self, rows: &[u32]) -> Result<(), OutOfMemory> {
        if rows.len() > self.logits_rows {
            let n_rows = rows.len().next_power_of_two();
            let len = n_rows * self.vocab_size();
            self.logits = self.model.model.backend.alloc(len, "logits")?;
            self.logits_rows = n_rows;
        }
        if !rows.is_empty() {
            self.model.head_rows(&mut self.workspace, rows, &mut self.logits);
        }
        Ok(())
    }

    /// Logits of one of the rows that [`Runner::head`] was asked for; the caller may change them.
    pub(super) fn scores(&mut self, row: usize) -> &mut [f32] {
        let offset = row * self.scores.len();
        self.model.model.backend.read(&self.logits, offset, &mut self.scores);
        &mut self.scores
    }

    /// Forgets all but the first `n_tokens` tokens of a sequence.
    pub(super) fn truncate(&mut self, cached: &mut Cached, n_tokens: usize) {
        cached.n_tokens = cached.n_tokens.min(n_tokens);
        cached.blocks.truncate(&mut self.allocator, n_tokens);
    }

    /// Takes back the blocks of a sequence, and leaves none.
    pub(super) fn release(&mut self, cached: &mut Cached) {
        std::mem::take(cached).blocks.release(&mut self.allocator);
    }

    /// Takes back a sequence that has ended and keeps its beginning.
    pub(super) fn keep(&mut self, mut ids: Vec<u32>, cached: Cached) {
        // See `begin`: such keys are never shared.
        if self.model.model.rope.is_dynamic() {
            return cached.blocks.release(&mut self.allocator);
        }
        ids.truncate(cached.n_tokens);
        self.prefixes.keep(ids, cached.blocks, &mut self.allocator);
    }
}
