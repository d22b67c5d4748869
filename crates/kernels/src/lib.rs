//! Arithmetic on buffers for LLaMA. Knows shapes and weight formats, and no layer.
//!
//! * [`Backend`] is the narrow waist: every operation that a LLaMA needs, forward beside backward.
//! * [`mod@format`] holds the weight formats, one file each.
//! * [`Cpu`] is the default backend; [`cpu::kernels`] picks its instruction set once, at start.

pub mod backend;
pub mod cpu;
pub mod dtype;
pub mod format;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod naive;

pub use backend::{
    Activation, AdamW, AttentionForward, AttentionGrads, AttentionOutputs, AttentionSpec, Backend,
    KvShape, Mask, OutOfMemory, RmsNorm, RopeLayout, RopeTable, Span, WeightData,
};
pub use cpu::{Cpu, CpuKvCache, CpuOptions};
pub use dtype::{Dtype, KvDtype};
pub use format::Format;
