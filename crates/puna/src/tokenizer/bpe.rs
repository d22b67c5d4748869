//! Byte-pair merging: symbols enter, fewer symbols leave.
//!
//! The table maps a pair of ids to a rank and the id of the merged symbol. The adjacent pair of
//! lowest rank merges first, the leftmost of equals. Short inputs scan for it, O(n²) with n up to
//! 24; long ones keep a heap of candidates over a linked list and drop the stale ones: O(n log n).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};

/// A symbol that no merge contains.
pub(super) const NO_SYMBOL: u32 = u32::MAX;
/// A pair that does not merge.
pub(super) const NO_PAIR: u64 = u64::MAX;
const NONE: u32 = u32::MAX;
const EMPTY_KEY: u64 = u64::MAX;
/// Bits of the filter of a merge table at most: 256 KiB.
const MAX_FILTER_BITS: u32 = 21;
/// Up to here a scan over the row beats the heap.
const SCAN_LIMIT: usize = 24;

/// Hashes short strings of a vocabulary; seeded, so that a file cannot choose collisions.
#[derive(Clone, Debug)]
pub(super) struct SeededState(u64);

impl Default for SeededState {
    fn default() -> Self {
        Self(random_u64())
    }
}

impl BuildHasher for SeededState {
    type Hasher = FoldHasher;

    fn build_hasher(&self) -> FoldHasher {
        FoldHasher(self.0)
    }
}

/// Folds 128-bit products of eight bytes each.
#[derive(Debug)]
pub(super) struct FoldHasher(u64);

pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    (product as u64) ^ ((product >> 64) as u64)
}

impl Hasher for FoldHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((head, tail)) = rest.split_first_chunk::<8>() {
            self.0 = fold(self.0 ^ u64::from_le_bytes(*head), 0x9e37_79b9_7f4a_7c15);
            rest = tail;
        }
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        let tagged = u64::from_le_bytes(last) ^ ((rest.len() as u64) << 56);
        self.0 = fold(self.0 ^ tagged, 0xd6e8_feb8_6659_fd93);
    }

    fn write_u8(&mut self, value: u8) {
        self.0 = fold(self.0 ^ u64::from(value), 0xa076_1d64_78bd_642f);
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = fold(self.0 ^ u64::from(value), 0xa076_1d64_78bd_642f);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(super) fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    pair: u64,
}

/// Pairs of symbols that merge, in one open-addressed array.
#[derive(Clone, Debug)]
pub(super) struct MergeTable {
    slots: Vec<Slot>,
    /// A bit for the hash of each pair. It is small enough to stay near the processor, and spares
    /// most of the walks for pairs that are not there.
    filter: Vec<u64>,
    multiplier: u64,
    shift: u32,
    filter_shift: u32,
}

/// One pair that merges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    pub(super) left: u32,
    pub(super) right: u32,
    pub(super) rank: u32,
    pub(super) merged: u32,
}

fn key_of(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32) | u64::from(right)
}

fn rank_of(pair: u64) -> u32 {
    (pair >> 32) as u32
}

impl MergeTable {
    /// Of a pair that is there twice, the lowest rank stays.
    pub(super) fn new(merges: impl ExactSizeIterator<Item = Merge>) -> Self {
        let bits = (merges.len().max(8) * 2).next_power_of_two().trailing_zeros();
        let filter_bits = (bits + 3).min(MAX_FILTER_BITS);
        let mut table = Self {
            slots: vec![Slot { key: EMPTY_KEY, pair: NO_PAIR }; 1 << bits],
            filter: vec![0; 1 << (filter_bits - 6)],
            multiplier: random_u64() | 1,
            shift: 64 - bits,
            filter_shift: 64 - filter_bits,
        };
        for merge in merges {
            let pair = (u64::from(merge.rank) << 32) | u64::from(merge.merged);
            table.insert(Slot { key: key_of(merge.left, merge.right), pair });
        }
        table
    }

    fn insert(&mut self, new: Slot) {
        let mask = self.slots.len() - 1;
        let hash = new.key.wrapping_mul(self.multiplier);
        let bit = hash >> self.filter_shift;
        self.filter[(bit / 64) as usize] |= 1 << (bit % 64);
        let mut at = (hash >> self.shift) as usize;
        loop {
            let slot = &mut self.slots[at];
            let is_same = slot.key == new.key;
            if slot.key == EMPTY_KEY || (is_same && rank_of(new.pair) < rank_of(slot.pair)) {
                *slot = new;
                return;
            }
            if is_same {
                return;
            }
            at = (at + 1) & mask;
        }
    }

    /// Rank (high half) and merged id (low half) of a pair; `NO_PAIR` where it does not merge.
    #[inline]
    pub(super) fn get(&self, left: u32, right: u32) -> u64 {
        let key = key_of(left, right);
        let hash = key.wrapping_mul(self.multiplier);
        let bit = hash >> self.filter_shift;
        if self.filter[(bit / 64) as usize] >> (bit % 64) & 1 == 0 {
            return NO_PAIR;
        }
        let mask = self.slots.len() - 1;
        let mut at = (hash >> self.shift) as usize;
        loop {
            // Half the slots are empty, so the walk ends; an empty slot holds no pair.
            let slot = self.slots[at & mask];
            if slot.key == key || slot.key == EMPTY_KEY {
                return slot.pair;
            }
            at += 1;
        }
    }
}

/// The pairs of a few symbols that texts are mostly made of, side by side in memory.
#[derive(Clone, Debug)]
pub(super) struct FirstPairs {
    pairs: Vec<u64>,
    width: usize,
}

impl FirstPairs {
    pub(super) fn new(table: &MergeTable, symbols: &[u32]) -> Self {
        let row = |&left: &u32| symbols.iter().map(move |&right| table.get(left, right));
        Self { pairs: symbols.iter().flat_map(row).collect(), width: symbols.len() }
    }

    /// The pair of two symbols by their places in the list.
    #[inline]
    pub(super) fn get(&self, left: usize, right: usize) -> u64 {
        self.pairs[left * self.width + right]
    }
}

/// Symbols of one piece of text, kept between calls so that encoding allocates rarely.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// Id of each symbol that is left.
    pub(super) ids: Vec<u32>,
    /// The pair that each symbol makes with the one behind it.
    pairs: Vec<u64>,
    prev: Vec<u32>,
    next: Vec<u32>,
    /// Rank and place, the lowest on top.
    heap: BinaryHeap<Reverse<u64>>,
    /// Where set: the pair that was last offered for each merged id.
    pub(super) offered: Option<HashMap<u32, (u32, u32)>>,
}

impl Symbols {
    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.pairs.clear();
    }

    /// Appends a symbol; `pair` is what it makes with the one before it, if there is one.
    #[inline]
    pub(super) fn push(&mut self, id: u32, pair: u64) {
        if let Some(last) = self.pairs.last_mut() {
            *last = pair;
        }
        self.ids.push(id);
        self.pairs.push(NO_PAIR);
    }

    /// Merges until nothing merges any more. `ids` holds fewer than 2³² symbols.
    pub(super) fn merge(&mut self, table: &MergeTable) {
        if self.ids.len() < 2 {
            return;
        }
        if self.ids.len() <= SCAN_LIMIT && self.offered.is_none() {
            self.merge_by_scan(table);
        } else {
            self.merge_by_heap(table);
        }
    }

    fn merge_by_scan(&mut self, table: &MergeTable) {
        let n = self.ids.len();
        let (ids, pairs) = (self.ids.as_mut_slice(), self.pairs.as_mut_slice());
        let mut next: [u8; SCAN_LIMIT] = std::array::from_fn(|at| at as u8 + 1);
        let mut prev: [u8; SCAN_LIMIT] = std::array::from_fn(|at| (at as u8).saturating_sub(1));
        loop {
            let (mut best, mut at) = (NO_PAIR, 0);
            for (index, &pair) in pairs.iter().enumerate() {
                if rank_of(pair) < rank_of(best) {
                    (best, at) = (pair, index);
                }
            }
            if best == NO_PAIR {
                break;
            }
            let right = usize::from(next[at]);
            let after = usize::from(next[right]);
            next[at] = after as u8;
            (ids[at], ids[right]) = (best as u32, NO_SYMBOL);
            (pairs[at], pairs[right]) = (NO_PAIR, NO_PAIR);
            if after < n {
                prev[after] = at as u8;
                pairs[at] = table.get(ids[at], ids[after]);
            }
            if at > 0 {
                let before = usize::from(prev[at]);
                pairs[before] = table.get(ids[before], ids[at]);
            }
        }
        self.ids.retain(|&id| id != NO_SYMBOL);
    }

    /// The entry of the heap for the pair at `at`, where it merges.
    fn candidate(&mut self, at: u32) -> Option<Reverse<u64>> {
        let next = self.next[at as usize];
        let pair = self.pairs[at as usize];
        if pair == NO_PAIR {
            return None;
        }
        if let Some(offered) = &mut self.offered {
            offered.insert(pair as u32, (self.ids[at as usize], self.ids[next as usize]));
        }
        Some(Reverse((pair & !u64::from(u32::MAX)) | u64::from(at)))
    }

    fn offer(&mut self, table: &MergeTable, at: u32) {
        self.pairs[at as usize] = match self.next[at as usize] {
            NONE => NO_PAIR,
            next => table.get(self.ids[at as usize], self.ids[next as usize]),
        };
        let candidate = self.candidate(at);
        self.heap.extend(candidate);
    }

    fn merge_by_heap(&mut self, table: &MergeTable) {
        let n = self.ids.len() as u32;
        self.prev.clear();
        self.prev.extend((0..n).map(|at| at.checked_sub(1).unwrap_or(NONE)));
        self.next.clear();
        self.next.extend((1..n).chain([NONE]));
        let mut initial = std::mem::take(&mut self.heap).into_vec();
        initial.clear();
        for at in 0..n {
            initial.extend(self.candidate(at));
        }
        self.heap = BinaryHeap::from(initial);
        while let Some(Reverse(top)) = self.heap.pop() {
            let at = top as u32 as usize;
            let pair = self.pairs[at];
            // A candidate is stale once either side has merged into something else.
            if rank_of(pair) != rank_of(top) || pair == NO_PAIR {
                continue;
            }
            let next = self.next[at] as usize;
            let after = self.next[next];
            self.ids[at] = pair as u32;
            self.next[at] = after;
            // A removed symbol must not look like the head of a later pair.
            self.pairs[next] = NO_PAIR;
            if after != NONE {
                self.prev[after as usize] = at as u32;
            }
            if self.prev[at] != NONE {
                self.offer(table, self.prev[at]);
            }
            self.offer(table, at as u32);
        }
        self.compact();
    }

    fn compact(&mut self) {
        let mut kept = 0;
        let mut at = 0;
        while at != NONE {
            self.ids[kept] = self.ids[at as usize];
            kept += 1;
            at = self.next[at as usize];
        }
        self.ids.truncate(kept);
    }

    /// Gives back what one very long text took.
    pub(super) fn shrink(&mut self, limit: usize) {
        if self.ids.capacity() > limit {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, without any cleverness.
    fn naive(mut ids: Vec<u32>, table: &MergeTable) -> Vec<u32> {
        loop {
            let best = (0..ids.len().saturating_sub(1))
                .map(|at| (table.get(ids[at], ids[at + 1]), at))
                .filter(|&(pair, _)| pair != NO_PAIR)
                .min_by_key(|&(pair, at)| (rank_of(pair), at));
            let Some((pair, at)) = best else { return ids };
            ids[at] = pair as u32;
            ids.remove(at + 1);
        }
    }

    #[test]
    fn scan_and_heap_equal_the_definition() {
        // Symbols 0..4 are letters; every pair of ids below 30 merges into some id, ranks collide.
        let mut entries = Vec::new();
        let mut state = 7u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) % bound) as u32
        };
        for left in 0..12 {
            for right in 0..12 {
                if next(3) > 0 {
                    entries.push(Merge { left, right, rank: next(20), merged: next(40) });
                }
            }
        }
        let table = MergeTable::new(entries.into_iter());
        let first = FirstPairs::new(&table, &[0, 1, 2, 3, 4]);
        for n in [1usize, 2, 3, 10, 24, 25, 40, 200] {
            for _ in 0..50 {
                let ids: Vec<u32> = (0..n).map(|_| next(5)).collect();
                let mut symbols = Symbols::default();
                for by_heap in [false, true] {
                    symbols.offered = by_heap.then(HashMap::new);
                    symbols.clear();
                    for (at, &id) in ids.iter().enumerate() {
                        let pair = at
                            .checked_sub(1)
                            .map_or(NO_PAIR, |b| first.get(ids[b] as usize, id as usize));
                        symbols.push(id, pair);
                    }
                    symbols.merge(&table);
                    assert_eq!(symbols.ids, naive(ids.clone(), &table), "{ids:?} {by_heap}");
                }
            }
        }
    }
}
