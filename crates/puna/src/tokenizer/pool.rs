//! Buffers of encoding, handed from call to call.
//!
//! A tokenizer keeps as many as have encoded at the same time, up to a bound, so that a call
//! allocates little and finds what earlier calls learnt. They belong to one tokenizer: a clone
//! starts with none.

use std::sync::{Mutex, PoisonError};

use super::char_bpe::Scratch;

/// Buffers that wait at most; each is below five megabytes.
const MAX_IDLE: usize = 16;

/// Idle buffers.
#[derive(Debug, Default)]
pub(super) struct ScratchPool(Mutex<Vec<Scratch>>);

impl Clone for ScratchPool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl ScratchPool {
    /// Runs `encode` with buffers that no other call has. The lock is held only to fetch them and
    /// to put them back.
    pub(super) fn with<R>(&self, encode: impl FnOnce(&mut Scratch) -> R) -> R {
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut scratch = taken.unwrap_or_default();
        let result = encode(&mut scratch);
        scratch.shrink();
        let mut idle = idle();
        if idle.len() < MAX_IDLE {
            idle.push(scratch);
        }
        result
    }
}
