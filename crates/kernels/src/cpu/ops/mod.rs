//! The operations, one file each, written once over the instruction set; forward and backward
//! side by side. Slices go in and out; no raw pointer lives here.
//!
//! The upper half of a file cuts the work into parts for the pool, the lower half is what the
//! table of kernels holds: a row, a slice or a tile at a time.

#![deny(unsafe_code)]

pub(crate) mod act_mul;
pub(crate) mod activations;
pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod bias;
pub(crate) mod cross_entropy;
pub(crate) mod dot_float;
pub(crate) mod dot_packed;
pub(crate) mod elementwise;
pub(crate) mod gather_rows;
pub(crate) mod panel;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sum_squares;
pub(crate) mod vector;

/// Values of one part of an elementwise job: a few microseconds of work.
const CHUNK: usize = 4096;

/// Rows of one part, so that a part has about [`CHUNK`] values.
const fn rows_per_part(width: usize) -> usize {
    match CHUNK / width {
        0 => 1,
        rows => rows,
    }
}
