//! From a prompt to an answer.
//!
//! A [`Request`] enters the [`Engine`], which runs all sequences together and says each id as it
//! comes; a [`TextStream`] makes text of the ids of one sequence. Underneath: logits
//! `(vocab_size)` enter a [`Sampler`], an id leaves. Text pieces enter a [`StopMatcher`], text
//! without the stop string leaves. A [`BlockAllocator`] keeps the books of the paged key-value
//! cache; it holds no key and no value.

mod block_allocator;
mod engine;
mod ngram_index;
mod params;
mod portable_math;
mod prefix_cache;
mod processors;
mod rng;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod speculation;
mod stop;
mod text;

pub use block_allocator::{BlockAllocator, BlockCopy, BlockError, BlockTable};
pub use engine::{Engine, EngineError, EngineOptions, Event, RequestError};
pub use params::{FinishReason, ParamError, SamplingParams, StopConditions};
pub use sampler::{SampleError, Sampled, Sampler};
pub use sequence::{Request, SequenceId};
pub use speculation::{DraftCounts, Proposer, Speculation, SpeculationError};
pub use stop::StopMatcher;
pub use text::{TextPiece, TextStream};
