//! One folder per processor family: the primitives of each instruction set, and nothing else.

pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
