//! The model. Knows no files, HTTP or threads.

pub mod rope;
