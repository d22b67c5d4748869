//! The model. Knows no files, HTTP or threads.

mod pow;
pub mod rope;
