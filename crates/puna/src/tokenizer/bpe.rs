//! Byte-pair merging: symbols enter, fewer symbols leave.
//!
//! The table maps a pair of ids to a rank and the id of the merged symbol. The adjacent pair of
//! lowest rank merges first, the leftmost of equals. Short inputs scan for it; long ones keep a
//! heap of candidates over a linked list and drop the stale ones: O(n log n).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};

/// A symbol that no merge contains.
pub(super) const NO_SYMBOL: u32 = u32::MAX;
const NONE: u32 = u32::MAX;
const EMPTY_KEY: u64 = u64::MAX;
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

fn fold(a: u64, b: u64) -> u64 {
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

fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    rank: u32,
    id: u32,
}

/// Pairs of symbols that merge, in one open-addressed array.
#[derive(Clone, Debug)]
pub(super) struct MergeTable {
    slots: Vec<Slot>,
    multiplier: u64,
    shift: u32,
}

fn key_of(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32) | u64::from(right)
}

impl MergeTable {
    /// Each entry is `(left, right, rank, merged)`; the lowest rank of a repeated pair stays.
    pub(super) fn new(entries: &[(u32, u32, u32, u32)]) -> Self {
        let bits = (entries.len().max(8) * 2).next_power_of_two().trailing_zeros();
        let mut table = Self {
            slots: vec![Slot { key: EMPTY_KEY, rank: 0, id: 0 }; 1 << bits],
            multiplier: random_u64() | 1,
            shift: 64 - bits,
        };
        for &(left, right, rank, id) in entries {
            table.insert(Slot { key: key_of(left, right), rank, id });
        }
        table
    }

    fn home(&self, key: u64) -> usize {
        (key.wrapping_mul(self.multiplier) >> self.shift) as usize
    }

    fn insert(&mut self, new: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = self.home(new.key);
        loop {
            let slot = &mut self.slots[at];
            if slot.key == EMPTY_KEY || (slot.key == new.key && new.rank < slot.rank) {
                *slot = new;
                return;
            }
            if slot.key == new.key {
                return;
            }
            at = (at + 1) & mask;
        }
    }

    /// Rank and merged id of a pair.
    #[inline]
    pub(super) fn get(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let key = key_of(left, right);
        let mask = self.slots.len() - 1;
        let mut at = self.home(key);
        loop {
            let slot = self.slots[at];
            if slot.key == key && key != EMPTY_KEY {
                return Some((slot.rank, slot.id));
            }
            if slot.key == EMPTY_KEY {
                return None;
            }
            at = (at + 1) & mask;
        }
    }
}

/// Symbols of one piece of text, kept between calls so that encoding allocates rarely.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// Id of each symbol that is left.
    pub(super) ids: Vec<u32>,
    /// Byte offset at which each symbol starts.
    pub(super) starts: Vec<u32>,
    ranks: Vec<u32>,
    prev: Vec<u32>,
    next: Vec<u32>,
    heap: BinaryHeap<Reverse<Candidate>>,
    /// Where set: the pair that was last offered for each merged id.
    pub(super) offered: Option<HashMap<u32, (u32, u32)>>,
}

/// Orders by rank, then by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    at: u32,
    left: u32,
    right: u32,
    merged: u32,
}

impl Symbols {
    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.starts.clear();
    }

    pub(super) fn push(&mut self, id: u32, start: u32) {
        self.ids.push(id);
        self.starts.push(start);
    }

    /// Merges until nothing merges any more.
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
        let rank_at =
            |ids: &[u32], at: usize| table.get(ids[at], ids[at + 1]).map_or(NONE, |(rank, _)| rank);
        self.ranks.clear();
        for at in 0..self.ids.len() - 1 {
            self.ranks.push(rank_at(&self.ids, at));
        }
        loop {
            let mut best = (NONE, 0);
            for (at, &rank) in self.ranks.iter().enumerate() {
                if rank < best.0 {
                    best = (rank, at);
                }
            }
            let at = best.1;
            if best.0 == NONE {
                return;
            }
            let Some((_, merged)) = table.get(self.ids[at], self.ids[at + 1]) else { return };
            self.ids[at] = merged;
            self.ids.remove(at + 1);
            self.starts.remove(at + 1);
            self.ranks.remove(at);
            if at < self.ranks.len() {
                self.ranks[at] = rank_at(&self.ids, at);
            }
            if at > 0 {
                self.ranks[at - 1] = rank_at(&self.ids, at - 1);
            }
        }
    }

    fn candidate(&mut self, table: &MergeTable, at: u32) -> Option<Reverse<Candidate>> {
        let next = self.next[at as usize];
        if next == NONE {
            return None;
        }
        let (left, right) = (self.ids[at as usize], self.ids[next as usize]);
        let (rank, merged) = table.get(left, right)?;
        if let Some(offered) = &mut self.offered {
            offered.insert(merged, (left, right));
        }
        Some(Reverse(Candidate { rank, at, left, right, merged }))
    }

    fn offer(&mut self, table: &MergeTable, at: u32) {
        let candidate = self.candidate(table, at);
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
            initial.extend(self.candidate(table, at));
        }
        self.heap = BinaryHeap::from(initial);
        while let Some(Reverse(top)) = self.heap.pop() {
            let at = top.at as usize;
            let next = self.next[at];
            // A candidate is stale once either side has merged into something else.
            if next == NONE || self.ids[at] != top.left || self.ids[next as usize] != top.right {
                continue;
            }
            self.ids[at] = top.merged;
            let after = self.next[next as usize];
            self.next[at] = after;
            // A removed symbol must not look like the head of a later pair.
            self.next[next as usize] = NONE;
            self.ids[next as usize] = NO_SYMBOL;
            if after != NONE {
                self.prev[after as usize] = top.at;
            }
            if self.prev[at] != NONE {
                self.offer(table, self.prev[at]);
            }
            self.offer(table, top.at);
        }
        self.compact();
    }

    fn compact(&mut self) {
        let mut kept = 0;
        let mut at = 0;
        while at != NONE {
            self.ids[kept] = self.ids[at as usize];
            self.starts[kept] = self.starts[at as usize];
            kept += 1;
            at = self.next[at as usize];
        }
        self.ids.truncate(kept);
        self.starts.truncate(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, without any cleverness.
    fn naive(mut ids: Vec<u32>, table: &MergeTable) -> Vec<u32> {
        loop {
            let best = (0..ids.len().saturating_sub(1))
                .filter_map(|at| table.get(ids[at], ids[at + 1]).map(|(rank, id)| (rank, at, id)))
                .min();
            let Some((_, at, id)) = best else { return ids };
            ids[at] = id;
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
                    entries.push((left, right, next(20), next(40)));
                }
            }
        }
        let table = MergeTable::new(&entries);
        for n in [1usize, 2, 3, 10, 24, 25, 40, 200] {
            for _ in 0..50 {
                let ids: Vec<u32> = (0..n).map(|_| next(5)).collect();
                let mut symbols = Symbols::default();
                for (at, &id) in ids.iter().enumerate() {
                    symbols.push(id, at as u32);
                }
                symbols.merge(&table);
                assert_eq!(symbols.ids, naive(ids.clone(), &table), "{ids:?}");
                assert_eq!(symbols.ids.len(), symbols.starts.len());
                assert!(symbols.starts.is_sorted());
            }
        }
    }
}
