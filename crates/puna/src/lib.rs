//! LLaMA, whole. Files enter: [`config`] reads what a model looks like, [`tokenizer`] turns text
//! into ids, [`checkpoint`] gives tensors by name. [`model`] makes logits out of ids, [`generate`]
//! text out of logits, for many sequences at once.
//!
//! Arrows point one way: `config, tokenizer <- checkpoint <- model <- generate`. The library prints
//! nothing, and panics on no input.

#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod checkpoint;
pub mod config;
pub mod generate;
pub mod model;
pub mod tokenizer;
