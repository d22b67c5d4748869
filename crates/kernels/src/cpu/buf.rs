//! A buffer in main memory, aligned to the cache line. In: a length. Out: as many zeros, or
//! [`OutOfMemory`] where the system refuses.
//!
//! Large buffers ask for huge pages. A read of weights passes over hundreds of megabytes once for
//! each token: on pages of 4 KiB half of its time goes into the tables that say where they lie.

use std::ops::{Deref, DerefMut, Range};

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use crate::OutOfMemory;

/// One cache line; also the width of the widest vector.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Line([f32; 16]);

/// Bytes of a huge page on the systems that have them; a smaller buffer cannot fill one.
const HUGE_PAGE: usize = 2 << 20;

/// An array of `f32`, 64-byte aligned.
#[derive(Debug, Default)]
pub struct CpuBuf {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<Line>),
    /// The bytes of `range`, which begins on a huge page. Untouched pages cost nothing.
    Pages {
        map: MmapMut,
        range: Range<usize>,
    },
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl CpuBuf {
    /// `len` zeros; `what` they are for goes into the error.
    pub(crate) fn zeros(len: usize, what: &str) -> Result<Self, OutOfMemory> {
        let lines = len.div_ceil(16);
        let bytes = lines.checked_mul(size_of::<Line>()).filter(|bytes| *bytes >= HUGE_PAGE);
        let heap = || bytemuck::allocation::try_zeroed_vec(lines).ok().map(Memory::Heap);
        let memory = bytes.and_then(pages).or_else(heap);
        let bytes = (len as u64).saturating_mul(4);
        let memory = memory.ok_or_else(|| OutOfMemory { what: what.to_owned(), bytes })?;
        Ok(Self { memory, len })
    }
}

/// `bytes` zeros on huge pages, of which a last part has small ones; `None` on systems without.
#[cfg(target_os = "linux")]
fn pages(bytes: usize) -> Option<Memory> {
    // A mapping begins on any page: one more huge page, never touched, has room for the alignment.
    let map = MmapMut::map_anon(bytes.checked_add(HUGE_PAGE)?).ok()?;
    let start = map.as_ptr().align_offset(HUGE_PAGE);
    // Refused where this machine has no huge pages: then small ones serve.
    let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes / HUGE_PAGE * HUGE_PAGE);
    Some(Memory::Pages { map, range: start..start + bytes })
}

/// `None`: other systems are not asked.
#[cfg(not(target_os = "linux"))]
fn pages(_: usize) -> Option<Memory> {
    None
}

impl Deref for CpuBuf {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        let all: &[f32] = match &self.memory {
            Memory::Heap(lines) => bytemuck::cast_slice(lines),
            Memory::Pages { map, range } => bytemuck::cast_slice(&map[range.clone()]),
        };
        &all[..self.len]
    }
}

impl DerefMut for CpuBuf {
    fn deref_mut(&mut self) -> &mut [f32] {
        let all: &mut [f32] = match &mut self.memory {
            Memory::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Memory::Pages { map, range } => bytemuck::cast_slice_mut(&mut map[range.clone()]),
        };
        &mut all[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_every_size_are_aligned_zeros_that_keep_what_is_written() {
        for len in [0, 1, 16, 17, HUGE_PAGE / 4 - 16, HUGE_PAGE / 4, HUGE_PAGE / 4 + 5, 3 << 20] {
            let mut buf = CpuBuf::zeros(len, "test").unwrap();
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|value| *value == 0.0));
            assert!(buf.as_ptr().cast::<Line>().is_aligned());
            let huge = cfg!(target_os = "linux") && 4 * len >= HUGE_PAGE;
            assert!(!huge || (buf.as_ptr() as usize).is_multiple_of(HUGE_PAGE), "{len}");
            for (i, value) in buf.iter_mut().enumerate() {
                *value = i as f32;
            }
            assert!(buf.iter().enumerate().all(|(i, value)| *value == i as f32));
        }
    }

    #[test]
    fn what_no_machine_has_is_an_error() {
        for len in [usize::MAX, usize::MAX / 4, usize::MAX / 8] {
            let error = CpuBuf::zeros(len, "an absurd request").unwrap_err();
            assert_eq!(error.what, "an absurd request");
        }
    }
}
