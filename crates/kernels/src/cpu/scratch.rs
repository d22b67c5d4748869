//! Memory that a thread keeps between jobs, so that a decode step allocates nothing. Each user
//! takes its own out of the thread and puts it back: two models on two threads never meet, and a
//! job inside a job of the same kind finds none and makes its own.

use std::cell::Cell;
use std::thread::LocalKey;

use super::CpuBuf;

/// Lends the thread's value of `key` to `job`.
pub(super) fn lend<T: Default, R>(
    key: &'static LocalKey<Cell<T>>,
    job: impl FnOnce(&mut T) -> R,
) -> R {
    let mut value = key.take();
    let result = job(&mut value);
    key.set(value);
    result
}

/// Lends `len` values of the thread's buffer, whatever they hold. Panics where the system has no
/// memory for them, as a `Vec` would.
pub(super) fn lend_floats<R>(
    key: &'static LocalKey<Cell<CpuBuf>>,
    len: usize,
    job: impl FnOnce(&mut [f32]) -> R,
) -> R {
    lend(key, |buf| {
        if buf.len() < len {
            *buf = CpuBuf::zeros(len, "scratch memory").unwrap_or_else(|error| panic!("{error}"));
        }
        job(&mut buf[..len])
    })
}
