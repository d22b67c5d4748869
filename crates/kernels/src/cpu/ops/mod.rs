//! The operations, one file each, written once over the instruction set; forward and backward
//! side by side. Slices go in and out; no raw pointer lives here.

#![deny(unsafe_code)]

pub(crate) mod vector;
