//! Prompt lookup: what followed the last ids of a sequence where they stood before will follow them
//! again. The ids of a sequence enter, a guess of the next ones leaves. Places with the same last
//! two ids hang in a chain, newest first, as in LZ77; the longest agreement up to `max_ngram` ids
//! wins, of equal ones the newest. (`NgramIndex` knows which ids followed, but not where.)

use std::collections::HashMap;

/// Ids that two places must share: one alone agrees by chance too often.
const MIN_NGRAM: usize = 2;
/// Places that one search looks at.
const MAX_PLACES: usize = 64;
/// Longest agreement that is of use; with [`MAX_PLACES`] it bounds a search.
pub(super) const MAX_NGRAM: usize = 64;

/// Where the last ids of every beginning of a sequence stood before.
#[derive(Clone, Debug, Default)]
pub(super) struct PromptLookup {
    /// From the last ids of a beginning to the longest such beginning, by its length.
    newest: HashMap<[u32; MIN_NGRAM], usize>,
    /// For each length, the next shorter beginning with the same last ids; 0 where there is none.
    shorter: Vec<usize>,
}

impl PromptLookup {
    /// At most `n` ids that may follow `ids`, which begins with the ids of the calls before.
    pub(super) fn guess(&mut self, ids: &[u32], max_ngram: usize, n: usize) -> Vec<u32> {
        self.catch_up(ids, max_ngram);
        let Some(from) = self.place(ids, max_ngram) else { return Vec::new() };
        // The guess may run into itself: a sequence that repeats goes on repeating.
        let period = ids.len() - from;
        (0..n).map(|i| ids[from + i % period]).collect()
    }

    /// Indexes every beginning shorter than `ids`.
    fn catch_up(&mut self, ids: &[u32], max_ngram: usize) {
        for length in self.shorter.len()..ids.len() {
            let place =
                key(&ids[..length], max_ngram).and_then(|key| self.newest.insert(key, length));
            self.shorter.push(place.unwrap_or(0));
        }
    }

    /// The length of the beginning whose last ids agree best with the last ids of all.
    fn place(&self, ids: &[u32], max_ngram: usize) -> Option<usize> {
        let mut length = *self.newest.get(&key(ids, max_ngram)?)?;
        let (mut best, mut best_agreement) = (None, 0);
        for _ in 0..MAX_PLACES {
            let backwards = ids[..length].iter().rev().zip(ids.iter().rev()).take(max_ngram);
            let agreement = backwards.take_while(|(a, b)| a == b).count();
            if agreement > best_agreement {
                (best, best_agreement) = (Some(length), agreement);
            }
            length = self.shorter[length];
            if length == 0 || best_agreement == max_ngram {
                break;
            }
        }
        best
    }
}

/// The last ids, as many as must agree; `None` where there are not enough.
fn key(ids: &[u32], max_ngram: usize) -> Option<[u32; MIN_NGRAM]> {
    match *ids {
        [.., a, b] if max_ngram >= MIN_NGRAM => Some([a, b]),
        [.., b] if max_ngram < MIN_NGRAM => Some([b, b]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::rng::Philox;

    /// Scans every place.
    fn naive(ids: &[u32], max_ngram: usize, n: usize) -> Vec<u32> {
        let agreement = |length: usize| {
            (0..max_ngram.min(length))
                .take_while(|i| ids[length - 1 - i] == ids[ids.len() - 1 - i])
                .count()
        };
        let best = (1..ids.len()).max_by_key(|&length| (agreement(length), length));
        let Some(from) = best.filter(|&length| agreement(length) >= max_ngram.min(MIN_NGRAM))
        else {
            return Vec::new();
        };
        let mut grown = ids.to_vec();
        for i in 0..n {
            grown.push(grown[from + i]);
        }
        grown.split_off(ids.len())
    }

    #[test]
    fn grows_to_the_same_guesses_as_a_scan() {
        let random = Philox::new(5);
        let ids: Vec<u32> = (0..200).map(|i| (random.uniform(i) * 6.0) as u32).collect();
        for max_ngram in [1, 2, 3, 6] {
            let mut lookup = PromptLookup::default();
            let mut n_found = 0;
            // Few enough places for a whole search.
            for length in (0..60).chain((60..200).step_by(7)) {
                let found = lookup.guess(&ids[..length], max_ngram, 9);
                assert_eq!(found, naive(&ids[..length], max_ngram, 9), "{max_ngram} {length}");
                n_found += usize::from(!found.is_empty());
            }
            assert!(n_found > 40, "{n_found}");
        }
    }

    #[test]
    fn the_longest_agreement_wins_then_the_newest() {
        let mut lookup = PromptLookup::default();
        let ids = [1, 2, 3, 10, 9, 2, 3, 11, 8, 2, 3, 12, 1, 2, 3];
        assert_eq!(lookup.guess(&ids, 3, 2), [10, 9]);
        assert_eq!(PromptLookup::default().guess(&ids, 2, 2), [12, 1]);
    }

    #[test]
    fn repetition_goes_on() {
        assert_eq!(PromptLookup::default().guess(&[5, 7, 8, 7, 8], 4, 5), [7, 8, 7, 8, 7]);
    }

    #[test]
    fn nothing_new_has_a_guess() {
        for ids in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4]] {
            assert_eq!(PromptLookup::default().guess(ids, 4, 5), [0; 0]);
        }
    }

    /// Of a hundred places that agree on two ids only the newest are looked at: not the oldest,
    /// which agrees on four.
    #[test]
    fn old_places_are_not_looked_at() {
        let mut ids = vec![1, 2, 3, 4, 50];
        for _ in 0..100 {
            ids.extend([9, 3, 4, 60]);
        }
        ids.extend([1, 2, 3, 4]);
        assert_eq!(naive(&ids, 4, 1), [50]);
        assert_eq!(PromptLookup::default().guess(&ids, 4, 1), [60]);
    }

    /// 100,000 equal ids are one chain: every search must end early.
    #[test]
    fn a_long_chain_is_searched_in_part() {
        let ids = vec![3; 100_000];
        let mut lookup = PromptLookup::default();
        for length in (50_000..100_000).step_by(10) {
            assert_eq!(lookup.guess(&ids[..length], MAX_NGRAM, 3), [3; 3]);
        }
    }
}
