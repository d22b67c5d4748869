//! The books of a paged key-value cache: which block holds which tokens of which sequence.
//!
//! Enters: how many tokens a sequence has. Leaves: its block table, one block for each `block_len`
//! tokens, for `Span::blocks` of the backend. Blocks that two sequences share are counted, and a
//! shared block is copied before one of them writes to it. No memory is touched here.

/// The books cannot give what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Too few free blocks.
    #[error(
        "the key-value cache is full: {needed} more blocks of {block_len} tokens are needed and \
         {n_free} of {n_blocks} are free; end or shorten a sequence, or make the cache larger"
    )]
    OutOfBlocks {
        /// Blocks that the sequence lacks.
        needed: usize,
        /// Blocks that are free.
        n_free: usize,
        /// Blocks of the cache.
        n_blocks: usize,
        /// Tokens in one block.
        block_len: usize,
    },
    /// A cache without blocks, blocks without tokens, or more blocks than ids for them.
    #[error("a key-value cache cannot have {n_blocks} blocks of {block_len} tokens")]
    BadShape {
        /// Blocks asked for.
        n_blocks: usize,
        /// Tokens in one block asked for.
        block_len: usize,
    },
}

/// A fixed number of blocks, each free or held by one or more tables.
#[derive(Debug)]
pub struct BlockAllocator {
    block_len: usize,
    /// Last in, first out: a block that was just freed is still warm.
    free: Vec<u32>,
    /// Tables that hold the block; 0 for a free one.
    n_holders: Vec<u32>,
}

impl BlockAllocator {
    /// All blocks free; the lowest is given out first.
    pub fn new(n_blocks: usize, block_len: usize) -> Result<Self, BlockError> {
        match u32::try_from(n_blocks) {
            Ok(n) if n > 0 && block_len > 0 => {
                Ok(Self { block_len, free: (0..n).rev().collect(), n_holders: vec![0; n_blocks] })
            }
            _ => Err(BlockError::BadShape { n_blocks, block_len }),
        }
    }

    /// Tokens in one block.
    pub fn block_len(&self) -> usize {
        self.block_len
    }

    /// Blocks of the cache.
    pub fn n_blocks(&self) -> usize {
        self.n_holders.len()
    }

    /// Blocks that no table holds.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    fn require(&self, needed: usize) -> Result<(), BlockError> {
        if needed <= self.free.len() {
            return Ok(());
        }
        Err(BlockError::OutOfBlocks {
            needed,
            n_free: self.free.len(),
            n_blocks: self.n_blocks(),
            block_len: self.block_len,
        })
    }

    fn allocate(&mut self) -> Result<u32, BlockError> {
        self.require(1)?;
        let block = self.free.pop().unwrap_or_default();
        self.n_holders[block as usize] = 1;
        Ok(block)
    }

    fn retain(&mut self, block: u32) {
        self.n_holders[block as usize] += 1;
    }

    fn release(&mut self, block: u32) {
        let n_holders = &mut self.n_holders[block as usize];
        *n_holders -= 1;
        if *n_holders == 0 {
            self.free.push(block);
        }
    }

    fn is_shared(&self, block: u32) -> bool {
        self.n_holders[block as usize] > 1
    }
}

/// A block whose keys and values must be copied before the next write
/// (`Backend::copy_kv_block`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the new block holds nothing until it is copied"]
pub struct BlockCopy {
    /// Shared with another table.
    pub from: u32,
    /// The table's own.
    pub to: u32,
}

/// The blocks of one sequence. Belongs to the allocator that it grew from, and must be handed
/// back to it with [`BlockTable::release`]; dropping it loses its blocks.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
    n_tokens: usize,
}

impl BlockTable {
    /// Block of each `block_len` consecutive tokens.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Tokens that have a place.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Makes place for `n_new` more tokens, for all or for none. If the first of them falls into
    /// a block that is shared, the table gets its own one and says what to copy.
    pub fn grow(
        &mut self,
        allocator: &mut BlockAllocator,
        n_new: usize,
    ) -> Result<Option<BlockCopy>, BlockError> {
        if n_new == 0 {
            return Ok(None);
        }
        // Saturating: no cache has that many tokens, so `require` refuses it.
        let n_tokens = self.n_tokens.saturating_add(n_new);
        let n_added = n_tokens.div_ceil(allocator.block_len) - self.blocks.len();
        let is_partial = !self.n_tokens.is_multiple_of(allocator.block_len);
        let shared = self.blocks.last().copied();
        let shared = shared.filter(|&block| is_partial && allocator.is_shared(block));
        allocator.require(n_added + usize::from(shared.is_some()))?;

        let copy = match shared {
            Some(from) => Some(self.replace_last(allocator, from)?),
            None => None,
        };
        for _ in 0..n_added {
            self.blocks.push(allocator.allocate()?);
        }
        self.n_tokens = n_tokens;
        Ok(copy)
    }

    fn replace_last(
        &mut self,
        allocator: &mut BlockAllocator,
        from: u32,
    ) -> Result<BlockCopy, BlockError> {
        let to = allocator.allocate()?;
        self.blocks.pop();
        self.blocks.push(to);
        allocator.release(from);
        Ok(BlockCopy { from, to })
    }

    /// Forgets all but the first `n_tokens` tokens and hands back the blocks that only they used.
    pub fn truncate(&mut self, allocator: &mut BlockAllocator, n_tokens: usize) {
        self.n_tokens = self.n_tokens.min(n_tokens);
        let n_blocks = self.n_tokens.div_ceil(allocator.block_len);
        // Backwards, so that the same blocks come back in the same order.
        for block in self.blocks.drain(n_blocks..).rev() {
            allocator.release(block);
        }
    }

    /// A table of another sequence that shares the first `n_tokens` tokens of this one.
    pub fn fork(&self, allocator: &mut BlockAllocator, n_tokens: usize) -> Self {
        let n_tokens = self.n_tokens.min(n_tokens);
        let blocks = self.blocks[..n_tokens.div_ceil(allocator.block_len)].to_vec();
        for &block in &blocks {
            allocator.retain(block);
        }
        Self { blocks, n_tokens }
    }

    /// Hands every block back.
    pub fn release(mut self, allocator: &mut BlockAllocator) {
        self.truncate(allocator, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_table_grows_by_tokens() {
        let mut allocator = BlockAllocator::new(4, 16).expect("shape");
        let mut table = BlockTable::default();
        for (n_new, n_blocks) in [(0, 0), (1, 1), (15, 1), (1, 2), (31, 3)] {
            assert_eq!(table.grow(&mut allocator, n_new), Ok(None));
            assert_eq!(table.blocks().len(), n_blocks);
        }
        assert_eq!((table.blocks(), table.n_tokens()), (&[0, 1, 2][..], 48));
        assert_eq!(allocator.n_free(), 1);
        table.truncate(&mut allocator, 17);
        assert_eq!((table.blocks(), table.n_tokens()), (&[0, 1][..], 17));
        table.release(&mut allocator);
        assert_eq!(allocator.n_free(), 4);
    }

    #[test]
    fn a_full_cache_gives_nothing_and_changes_nothing() {
        let mut allocator = BlockAllocator::new(2, 4).expect("shape");
        let mut table = BlockTable::default();
        assert_eq!(table.grow(&mut allocator, 3), Ok(None));
        let error = table.grow(&mut allocator, 6).expect_err("needs 2 more, 1 is free");
        let expected = BlockError::OutOfBlocks { needed: 2, n_free: 1, n_blocks: 2, block_len: 4 };
        assert_eq!(error, expected);
        assert_eq!((table.blocks().len(), table.n_tokens(), allocator.n_free()), (1, 3, 1));
        assert!(table.grow(&mut allocator, usize::MAX).is_err());
        assert_eq!(table.grow(&mut allocator, 5), Ok(None));
    }

    #[test]
    fn a_shared_block_is_copied_before_it_is_written() {
        let mut allocator = BlockAllocator::new(4, 4).expect("shape");
        let mut first = BlockTable::default();
        assert_eq!(first.grow(&mut allocator, 6), Ok(None));
        let mut second = first.fork(&mut allocator, 6);
        assert_eq!((second.blocks(), allocator.n_free()), (&[0, 1][..], 2));
        assert_eq!(second.grow(&mut allocator, 1), Ok(Some(BlockCopy { from: 1, to: 2 })));
        assert_eq!((first.blocks(), second.blocks()), (&[0, 1][..], &[0, 2][..]));
        assert_eq!(first.grow(&mut allocator, 1), Ok(None), "no longer shared");
        let mut third = first.fork(&mut allocator, 4);
        assert_eq!(third.grow(&mut allocator, 1), Ok(None), "a full block is never written again");
        assert_eq!(third.blocks(), &[0, 3]);
        for table in [first, second, third] {
            table.release(&mut allocator);
        }
        assert_eq!(allocator.n_free(), 4);
    }

    #[test]
    fn impossible_caches_are_refused() {
        for (n_blocks, block_len) in [(0, 16), (4, 0), (1 << 33, 16)] {
            let error = BlockAllocator::new(n_blocks, block_len).expect_err("no such cache");
            assert_eq!(error, BlockError::BadShape { n_blocks, block_len });
        }
    }

    /// What a cache would hold: block and place to a token's value.
    #[derive(Default)]
    struct Contents(BTreeMap<(u32, usize), u32>);

    impl Contents {
        fn copy(&mut self, copy: BlockCopy, block_len: usize) {
            for place in 0..block_len {
                if let Some(&value) = self.0.get(&(copy.from, place)) {
                    self.0.insert((copy.to, place), value);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Random growth, truncation, forks and releases: every sequence reads back what it
        /// wrote, and no block is lost.
        #[test]
        fn sequences_keep_their_tokens(
            block_len in 1_usize..5,
            actions in proptest::collection::vec((0_u8..4, 0_usize..4, 0_usize..9), 1..60),
        ) {
            let mut allocator = BlockAllocator::new(12, block_len).expect("shape");
            let mut contents = Contents::default();
            let mut sequences: Vec<(BlockTable, Vec<u32>)> = vec![Default::default()];
            let mut next_value = 0;
            for (action, which, n) in actions {
                let which = which % sequences.len();
                let (table, values) = &mut sequences[which];
                match action {
                    0 => match table.grow(&mut allocator, n) {
                        Ok(copy) => {
                            if let Some(copy) = copy {
                                contents.copy(copy, block_len);
                            }
                            for token in values.len()..values.len() + n {
                                let place = (table.blocks()[token / block_len], token % block_len);
                                contents.0.insert(place, next_value);
                                values.push(next_value);
                                next_value += 1;
                            }
                        }
                        Err(error) => {
                            let full = matches!(error, BlockError::OutOfBlocks { .. });
                            prop_assert!(full && n > 0);
                        }
                    },
                    1 => {
                        table.truncate(&mut allocator, n);
                        values.truncate(n);
                    }
                    2 => {
                        let fork = table.fork(&mut allocator, n);
                        let shared = values[..values.len().min(n)].to_vec();
                        sequences.push((fork, shared));
                    }
                    _ => {
                        let (table, _) = sequences.swap_remove(which);
                        table.release(&mut allocator);
                        sequences.push(Default::default());
                    }
                }
                let held: BTreeSet<u32> =
                    sequences.iter().flat_map(|(table, _)| table.blocks().to_vec()).collect();
                prop_assert_eq!(held.len() + allocator.n_free(), allocator.n_blocks());
                for (table, values) in &sequences {
                    prop_assert_eq!(table.n_tokens(), values.len());
                    prop_assert_eq!(table.blocks().len(), values.len().div_ceil(block_len));
                    for (token, value) in values.iter().enumerate() {
                        let place = (table.blocks()[token / block_len], token % block_len);
                        prop_assert_eq!(contents.0.get(&place), Some(value));
                    }
                }
            }
        }
    }
}
