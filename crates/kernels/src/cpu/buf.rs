//! A buffer in main memory, aligned to the cache line. In: a length. Out: as many zeros, or
//! [`OutOfMemory`] where the system refuses.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

use crate::OutOfMemory;

/// One cache line; also the width of the widest vector.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Line([f32; 16]);

/// An array of `f32`, 64-byte aligned.
#[derive(Debug, Default)]
pub struct CpuBuf {
    lines: Vec<Line>,
    len: usize,
}

impl CpuBuf {
    /// `len` zeros. Untouched pages cost nothing until they are written.
    pub(crate) fn zeros(len: usize, what: &str) -> Result<Self, OutOfMemory> {
        let lines = bytemuck::allocation::try_zeroed_vec(len.div_ceil(16)).map_err(|()| {
            OutOfMemory { what: what.to_owned(), bytes: (len as u64).saturating_mul(4) }
        })?;
        Ok(Self { lines, len })
    }
}

impl Deref for CpuBuf {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for CpuBuf {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
