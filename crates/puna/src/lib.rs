//! LLaMA, whole: configuration, tokenizers, checkpoints, the model, generation.
