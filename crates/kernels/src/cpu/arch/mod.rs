//! The primitives of each instruction set, and nothing else: one folder for each processor
//! family, and `scalar` for any. In and out: the vectors that [`Isa`](super::isa::Isa) names.

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
