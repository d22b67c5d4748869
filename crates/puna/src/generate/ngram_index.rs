//! Which id has followed which run of ids, kept up to date as a sequence grows.
//!
//! Enters: the ids of a sequence. Leaves: for its last `size - 1` ids, every id that already came
//! after the same ids. A hash finds the run and its ids confirm it, so the answer is exact; one
//! token costs `O(size)` and the answer, however long the sequence is.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

/// The runs of `size` ids that a sequence holds.
#[derive(Clone, Debug)]
pub(super) struct NgramIndex {
    size: usize,
    /// Ids of the sequence that are indexed as the end of a run.
    n_indexed: usize,
    hasher: RandomState,
    /// From the hash of `size - 1` ids, or the next free number after it, to `contexts`.
    numbers: HashMap<u64, usize>,
    contexts: Vec<Context>,
    /// Pairs of context and follower, so that `followers` holds each once.
    seen: HashSet<(usize, u32)>,
}

/// `size - 1` ids and what came after them.
#[derive(Clone, Debug)]
struct Context {
    /// Where the sequence first holds these ids.
    start: usize,
    followers: Vec<u32>,
}

impl NgramIndex {
    /// An index of runs of `size` ids, at least 1.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size: size.max(1),
            n_indexed: 0,
            hasher: RandomState::new(),
            numbers: HashMap::new(),
            contexts: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// Every id that would make the last `size` ids of `ids` a repetition. `ids` must begin with
    /// the ids of the calls before.
    pub(super) fn repeats(&mut self, ids: &[u32]) -> &[u32] {
        self.catch_up(ids);
        let Some(start) = (ids.len() + 1).checked_sub(self.size) else {
            return &[];
        };
        match self.find(ids, start).1 {
            Some(number) => &self.contexts[number].followers,
            None => &[],
        }
    }

    /// Indexes the runs that end at the ids that came since the last call.
    fn catch_up(&mut self, ids: &[u32]) {
        for end in self.n_indexed.max(self.size - 1)..ids.len() {
            let start = end + 1 - self.size;
            let (key, found) = self.find(ids, start);
            let number = found.unwrap_or_else(|| {
                self.contexts.push(Context { start, followers: Vec::new() });
                self.numbers.insert(key, self.contexts.len() - 1);
                self.contexts.len() - 1
            });
            if self.seen.insert((number, ids[end])) {
                self.contexts[number].followers.push(ids[end]);
            }
        }
        self.n_indexed = ids.len();
    }

    /// The context that equals the `size - 1` ids from `start`, and the key where it is or
    /// belongs. Two runs with one hash take neighbouring keys.
    fn find(&self, ids: &[u32], start: usize) -> (u64, Option<usize>) {
        let width = self.size - 1;
        let run = &ids[start..start + width];
        let mut key = self.hasher.hash_one(run);
        while let Some(&number) = self.numbers.get(&key) {
            let first = self.contexts[number].start;
            if &ids[first..first + width] == run {
                return (key, Some(number));
            }
            key = key.wrapping_add(1);
        }
        (key, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::rng::Philox;

    /// Scans the whole sequence.
    fn naive(ids: &[u32], size: usize) -> Vec<u32> {
        if ids.len() + 1 < size {
            return Vec::new();
        }
        let tail = &ids[ids.len() + 1 - size..];
        let mut repeats: Vec<u32> = ids
            .windows(size)
            .filter(|window| &window[..size - 1] == tail)
            .map(|window| window[size - 1])
            .collect();
        repeats.sort_unstable();
        repeats.dedup();
        repeats
    }

    #[test]
    fn grows_to_the_same_answer_as_a_scan() {
        let random = Philox::new(11);
        for size in 1..6 {
            let ids: Vec<u32> = (0..300).map(|i| (random.uniform(i) * 4.0) as u32).collect();
            let mut index = NgramIndex::new(size);
            // Steps of 1 and of 7: prompts come whole, completions id by id.
            let lengths = (0..150).chain((150..300).step_by(7));
            for length in lengths {
                let mut repeats = index.repeats(&ids[..length]).to_vec();
                repeats.sort_unstable();
                assert_eq!(repeats, naive(&ids[..length], size), "size {size}, length {length}");
            }
        }
    }

    #[test]
    fn one_hash_for_two_runs_does_not_mix_them() {
        let ids = [1, 2, 3, 1, 2, 4, 9, 9, 1, 2];
        let mut index = NgramIndex::new(3);
        index.catch_up(&ids[..3]);
        // Plant a foreign run on the key that (9, 9) will take.
        let key = index.hasher.hash_one(&ids[6..8]);
        index.numbers.insert(key, 0);
        assert_eq!(index.repeats(&ids[..8]), &[] as &[u32]);
        assert_eq!(index.repeats(&ids), &[3, 4]);
        assert_eq!(index.repeats(&[1, 2, 3, 1, 2, 4, 9, 9, 1, 2, 7, 9, 9]), &[1]);
    }

    /// 100,000 ids with one context that has 50,000 followers: a list searched at every insertion
    /// would take minutes here.
    #[test]
    fn a_prompt_with_many_followers_is_linear() {
        let ids: Vec<u32> = (0..50_000).flat_map(|i| [7, 100 + i]).chain([7]).collect();
        let mut index = NgramIndex::new(2);
        assert_eq!(index.repeats(&ids).len(), 50_000);
    }
}
