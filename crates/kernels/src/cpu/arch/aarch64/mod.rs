//! aarch64 instruction sets. Each has a token that stands for its features: a value of it exists
//! only where the processor has them.

pub(crate) mod neon;
