//! A long zeroed array that begins at a cache line. An allocation of such an alignment is cleared
//! by hand, and so takes memory for every page at once; this one is cleared by the system, page by
//! page as they are used.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

/// Bytes of a cache line.
const LINE: usize = 64;

/// An array of `T`.
#[derive(Debug)]
pub(super) struct Lines<T> {
    /// The array, and room to move it to a line.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Lines<T> {
    /// `len` zeros, or `None` where the system refuses.
    pub(super) fn zeros(len: usize) -> Option<Self> {
        let size = len.checked_mul(size_of::<T>())?.checked_add(LINE)?;
        let bytes: Vec<u8> = bytemuck::allocation::try_zeroed_vec(size).ok()?;
        let start = bytes.as_ptr().align_offset(LINE);
        Some(Self { bytes, start, len, values: PhantomData })
    }
}

impl<T: Pod> Deref for Lines<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes[self.start..][..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.bytes[self.start..][..self.len * size_of::<T>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_begin_at_a_line() {
        for len in [0, 1, 17, 100_000] {
            let mut array = Lines::<[f32; 16]>::zeros(len).unwrap();
            assert_eq!(array.len(), len);
            assert!(array.as_ptr().addr().is_multiple_of(LINE));
            assert!(array.iter().flatten().all(|v| *v == 0.0));
            array.iter_mut().for_each(|line| line[15] = 1.0);
            assert!(array.iter().all(|line| line[15] == 1.0));
        }
        assert!(Lines::<u64>::zeros(usize::MAX / 8).is_none());
    }
}
