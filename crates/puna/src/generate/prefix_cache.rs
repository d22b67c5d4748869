//! Keys and values of sequences that have ended, kept for a prompt that begins the same way: the
//! next turn of a chat computes its new tokens only.
//!
//! The newest sequences are kept as long as nobody needs their blocks.

use std::collections::VecDeque;

use super::{BlockAllocator, BlockTable};

/// Ended sequences kept at most; bounds the search for a common beginning.
const MAX_KEPT: usize = 32;

#[derive(Debug)]
struct Ended {
    /// The ids whose keys and values the blocks hold.
    ids: Vec<u32>,
    blocks: BlockTable,
}

/// Ended sequences, the oldest first.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    ended: VecDeque<Ended>,
}

impl PrefixCache {
    /// Keeps the blocks of a sequence that ended; `ids` are those that were computed.
    pub(super) fn keep(
        &mut self,
        ids: Vec<u32>,
        blocks: BlockTable,
        allocator: &mut BlockAllocator,
    ) {
        if self.ended.len() == MAX_KEPT {
            self.evict_oldest(allocator);
        }
        self.ended.push_back(Ended { ids, blocks });
    }

    /// The blocks of the longest beginning of `ids` that is kept, and its length; shorter than
    /// `ids`, because the last token has to be computed for its logits.
    pub(super) fn share(
        &mut self,
        ids: &[u32],
        allocator: &mut BlockAllocator,
    ) -> Option<(BlockTable, usize)> {
        let usable = &ids[..ids.len().saturating_sub(1)];
        let common = |ended: &Ended| {
            usable.iter().zip(&ended.ids).take_while(|(ours, theirs)| ours == theirs).count()
        };
        let (n_tokens, index) =
            self.ended.iter().enumerate().map(|(index, ended)| (common(ended), index)).max()?;
        if n_tokens == 0 {
            return None;
        }
        let table = self.ended[index].blocks.fork(allocator, n_tokens);
        Some((table, n_tokens))
    }

    /// Gives back the blocks of the oldest sequence; false where none is left.
    pub(super) fn evict_oldest(&mut self, allocator: &mut BlockAllocator) -> bool {
        match self.ended.pop_front() {
            Some(ended) => {
                ended.blocks.release(allocator);
                true
            }
            None => false,
        }
    }
}
