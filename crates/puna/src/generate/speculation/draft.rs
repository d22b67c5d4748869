//! Guesses of a draft model. Sequences enter, with what its cache holds of each; up to as many ids
//! as each is allowed are appended. It chooses as the model would: with the sequence's sampler, its
//! penalties, its seed, and so the same random number for the same place.

use puna_kernels::{Backend, OutOfMemory};

use super::super::runner::{Cached, Rows, Runner};
use super::super::scheduler;
use super::super::sequence::Sequence;
use crate::generate::Sampler;

/// A sequence that is being guessed for.
struct Drafting<'a> {
    sequence: &'a mut Sequence,
    sampler: Sampler,
    /// Drafts still to come.
    n_left: usize,
}

/// Rounds of forwards in which a sequence only catches up with what its cache lacks: bounds how
/// long a long prompt holds up the others.
const CATCH_UP_ROUNDS: usize = 4;

/// Appends up to `shares` drafts to each of the sequences.
pub(super) fn guess<B: Backend>(
    runner: &mut Runner<B>,
    sequences: &mut [Sequence],
    shares: &[usize],
) -> Result<(), OutOfMemory> {
    let mut drafting = Vec::new();
    for (sequence, &n_left) in sequences.iter_mut().zip(shares).filter(|(_, n)| **n > 0) {
        let cached = &mut sequence.guesses.draft;
        if cached.n_tokens == 0 {
            runner.release(cached);
            *cached = runner.begin(&sequence.ids);
        }
        // The last draft is only guessed, not computed.
        if runner.place(cached, sequence.ids.len() + n_left - 1) {
            let sampler = sequence.sampler.fork();
            drafting.push(Drafting { sequence, sampler, n_left });
        } else {
            runner.release(cached);
        }
    }
    let most = shares.iter().copied().max().unwrap_or(0);
    for _ in 0..most + CATCH_UP_ROUNDS {
        if drafting.is_empty() {
            break;
        }
        round(runner, &mut drafting)?;
        drafting.retain(|drafting| drafting.n_left > 0);
    }
    Ok(())
}

/// One forward, and a draft for each sequence that it completes.
fn round<B: Backend>(
    runner: &mut Runner<B>,
    drafting: &mut [Drafting<'_>],
) -> Result<(), OutOfMemory> {
    let lacks = |d: &Drafting<'_>| d.sequence.ids.len() - d.sequence.guesses.draft.n_tokens;
    let pending: Vec<usize> = drafting.iter().map(lacks).collect();
    let planned = scheduler::plan(&pending, runner.max_rows());
    let rows: Vec<Rows<'_>> =
        drafting.iter().zip(&planned).map(|(d, &n)| rows(d.sequence, n)).collect();
    runner.forward(&rows)?;
    let (mut last_rows, mut due) = (Vec::new(), Vec::new());
    let mut end = 0;
    for (drafting, n) in drafting.iter_mut().zip(planned) {
        end += n;
        drafting.sequence.guesses.draft.n_tokens += n;
        if n > 0 && lacks(drafting) == 0 {
            last_rows.push(end as u32 - 1);
            due.push(drafting);
        }
    }
    runner.head(&last_rows)?;
    for (row, drafting) in due.into_iter().enumerate() {
        drafting.push(runner.scores(row));
    }
    Ok(())
}

fn rows(sequence: &Sequence, n: usize) -> Rows<'_> {
    let cached: &Cached = &sequence.guesses.draft;
    Rows { ids: &sequence.ids, n_prompt: sequence.n_prompt, cached, n }
}

impl Drafting<'_> {
    fn push(&mut self, logits: &mut [f32]) {
        // Logits that nothing can be chosen from end the draft: they are no fault of the model.
        let Ok(sampled) = self.sampler.sample(logits) else {
            self.n_left = 0;
            return;
        };
        self.sequence.push_draft(sampled.id);
        let ends = self.sequence.stop.after_id(sampled.id, 0).is_some();
        self.n_left = if ends { 0 } else { self.n_left - 1 };
    }
}
