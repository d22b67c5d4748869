//! LLaMA, whole: configuration, tokenizers, checkpoints, the model, generation.

pub mod tokenizer;
