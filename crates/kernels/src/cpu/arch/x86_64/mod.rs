//! x86-64 instruction sets, a file each. Each has a token that stands for its features: a value
//! of it exists only where the processor has them.

pub(crate) mod amx;
pub(crate) mod avx2;
pub(crate) mod avx512;
