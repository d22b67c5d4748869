//! LLaMA, whole: configuration, tokenizers, checkpoints, the model, generation.

pub mod checkpoint;
pub mod config;
pub mod generate;
pub mod model;
pub mod tokenizer;
