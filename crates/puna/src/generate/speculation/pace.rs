//! How many ids of a sequence to guess ahead. What became of earlier drafts enters, a length leaves:
//! it doubles while everything is accepted, falls to just beyond what was, and pauses for longer and
//! longer while nothing is. Hopeless guessing so costs one short draft in 32 steps.

/// Length of the first draft.
const FIRST: usize = 4;
/// Doublings of the pause: at most `2^5 - 1` steps.
const MAX_DOUBLINGS: u32 = 5;

/// The length of the next draft of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    length: usize,
    /// Drafts in a row of which nothing was accepted.
    n_misses: u32,
    /// Steps still to pass without a draft.
    pause: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { length: FIRST, n_misses: 0, pause: 0 }
    }
}

impl Pace {
    /// The length for this step, at most `most`; 0 during a pause. Called once a step.
    pub(super) fn next(&mut self, most: usize) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        self.length.min(most)
    }

    /// `n_accepted` of `n_drafted` ids, at least one, were what the model said.
    pub(super) fn learn(&mut self, n_drafted: usize, n_accepted: usize) {
        if n_accepted == 0 {
            self.length = (self.length / 2).max(1);
            self.pause = (1 << self.n_misses) - 1;
            self.n_misses = (self.n_misses + 1).min(MAX_DOUBLINGS);
            return;
        }
        self.n_misses = 0;
        self.length = if n_accepted < n_drafted {
            n_accepted + 1
        } else {
            // A draft may have been shorter than it was allowed to be.
            self.length.max(n_drafted.saturating_mul(2))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drafts and guessed ids of `steps` steps, if `accepted` says how many of a draft are right.
    fn run(steps: usize, accepted: impl Fn(usize) -> usize) -> (usize, usize) {
        let mut pace = Pace::default();
        let (mut n_drafts, mut n_ids) = (0, 0);
        for _ in 0..steps {
            let n = pace.next(16);
            if n > 0 {
                (n_drafts, n_ids) = (n_drafts + 1, n_ids + n);
                pace.learn(n, accepted(n));
            }
        }
        (n_drafts, n_ids)
    }

    #[test]
    fn success_grows_to_the_most() {
        let mut pace = Pace::default();
        let lengths: Vec<usize> = (0..5)
            .map(|_| {
                let n = pace.next(16);
                pace.learn(n, n);
                n
            })
            .collect();
        assert_eq!(lengths, [4, 8, 16, 16, 16]);
        pace.learn(16, 5);
        assert_eq!(pace.next(16), 6);
        assert_eq!(pace.next(3), 3);
    }

    #[test]
    fn failure_costs_little() {
        let (n_drafts, n_ids) = run(1000, |_| 0);
        assert!(n_drafts <= 40 && n_ids <= n_drafts + 4, "{n_drafts} {n_ids}");
        assert!(n_drafts >= 1000 / 32, "it tries again: {n_drafts}");
    }

    #[test]
    fn one_right_id_ends_the_pauses() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.learn(1, 0);
        }
        let paused = (0..100).take_while(|_| pace.next(16) == 0).count();
        assert_eq!(paused, 31);
        pace.learn(1, 1);
        assert_eq!(pace.next(16), 2);
        assert_eq!(run(100, |_| 1).0, 100);
    }
}
