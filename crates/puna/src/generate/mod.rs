//! From logits to ids, and from ids to the end of an answer: the parts of generation that know
//! no model.
//!
//! Logits `(vocab_size)` enter a [`Sampler`], an id leaves. Text pieces enter a [`StopMatcher`],
//! text without the stop string leaves. A [`BlockAllocator`] keeps the books of the paged
//! key-value cache; it holds no key and no value.

mod block_allocator;
mod ngram_index;
mod params;
mod portable_math;
mod processors;
mod rng;
mod sampler;
mod stop;

pub use block_allocator::{BlockAllocator, BlockCopy, BlockError, BlockTable};
pub use params::{FinishReason, ParamError, SamplingParams, StopConditions};
pub use sampler::{SampleError, Sampled, Sampler};
pub use stop::StopMatcher;
