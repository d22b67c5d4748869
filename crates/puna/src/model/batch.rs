//! What one forward computes: the newest tokens of any number of sequences, ragged.

use puna_kernels::Span;

/// The tokens of a batch: ids, or vectors that stand in their place.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// `(rows)`, each below `vocab_size`.
    Ids(&'a [u32]),
    /// `(rows, hidden_size)`.
    Embeds(&'a [f32]),
}

/// Rows of one or more sequences, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Prefill chunks and decode rows alike.
    pub tokens: Tokens<'a>,
    /// Position of each row in its sequence `(rows)`.
    pub positions: &'a [u32],
    /// Length of the sequence that each row's rotary frequencies are for `(rows)`; see
    /// [`Rope::inv_freq`](super::rope::Rope::inv_freq). A prompt that comes in chunks has its
    /// whole length in each.
    pub lengths: &'a [u32],
    /// Which rows belong together, and which keys they see. Covers every row once, in order.
    pub spans: &'a [Span<'a>],
}

impl Batch<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }
}
