//! A persistent pool of threads. A job is a number of parts and one closure; workers spin for a
//! short while between jobs, then sleep, so that a decode step pays no system call and an idle
//! program no processor time.
//!
//! A job waits for the workers that have entered it, not for those that the system has not let
//! run: where other programs hold the processors, the caller takes all parts itself.
//!
//! How a job is cut never depends on the number of threads, and parts never share a sum: results
//! are the same bits on 1 and on 64 threads.

use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::thread::{JoinHandle, Thread};

use super::tiles::Tiles;

/// Turns of the waiting loop before a worker sleeps: some 30 to 100 µs, as long as a processor
/// takes for a pause.
const SPINS: usize = 2_000;

/// Runs that each thread would take of what is left of a job, were they all as long as the next.
const RUNS_PER_THREAD: usize = 4;

type Job = *const (dyn Fn(usize) + Sync);

/// In [`Shared::door`]: workers may enter.
const OPEN: usize = 1 << (usize::BITS - 1);

/// State shared by the caller and the workers.
struct Shared {
    /// The closure of the running job; valid while the door is open or somebody is inside.
    job: UnsafeCell<Option<Job>>,
    /// Parts of the running job.
    parts: AtomicUsize,
    /// Next part that nobody has taken.
    next: AtomicUsize,
    /// How many workers are inside the running job, and [`OPEN`].
    door: AtomicUsize,
    /// Counts jobs; a change wakes the workers.
    generation: AtomicUsize,
    /// A part panicked.
    panicked: AtomicBool,
    /// The pool is being dropped.
    closing: AtomicBool,
    /// Which workers sleep.
    asleep: Box<[AtomicBool]>,
}

// SAFETY: `job` and `parts` are written only by the thread that holds `Pool::busy`, while the door
// is closed and nobody inside (`door` is 0), and read by workers only inside.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointee is `Sync`.
unsafe impl Send for Shared {}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    /// Some thread is running a job; another that comes meanwhile computes alone.
    busy: AtomicBool,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included. Starts fewer where the system refuses.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            parts: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            door: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let spawn = |index: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("puna-{index}"))
                .spawn(move || work(&shared, index))
                .ok()
        };
        let workers = (0..shared.asleep.len())
            .map_while(spawn)
            .map(|handle| (handle.thread().clone(), Some(handle)))
            .collect();
        Self { shared, workers, busy: AtomicBool::new(false) }
    }

    /// Threads that share a job, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `part(0)` … `part(parts - 1)`, each once, on any thread, and returns when all are
    /// done. A panic in a part is passed on.
    pub(crate) fn run(&self, parts: usize, part: impl Fn(usize) + Sync) {
        let alone = parts <= 1 || self.workers.is_empty();
        if alone || self.busy.swap(true, Acquire) {
            (0..parts).for_each(part);
            return;
        }
        let job: &(dyn Fn(usize) + Sync) = &part;
        self.publish(parts, job);
        let mine = catch_unwind(AssertUnwindSafe(|| take_parts(&self.shared, job)));
        self.close();
        let theirs = self.shared.panicked.swap(false, Relaxed);
        self.busy.store(false, Release);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(!theirs, "a worker thread panicked");
    }

    /// Calls `part(i, chunk)` for each chunk of `chunk_len` values of `data`; the last may be
    /// shorter.
    pub(crate) fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        part: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(chunk_len > 0);
        let len = data.len();
        let row = Tiles::new(data, 1, len);
        self.run(len.div_ceil(chunk_len), |i| {
            let start = i * chunk_len;
            // SAFETY: chunks of different parts do not overlap; a part has one.
            part(i, unsafe { row.row(0, &(start..len.min(start.saturating_add(chunk_len)))) });
        });
    }

    fn publish(&self, parts: usize, job: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: `busy` is held and `door` is 0, so no worker reads `job`. The lifetime is
        // erased; `run` does not return before `close` has seen every worker leave the closure.
        unsafe {
            *shared.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job));
        }
        shared.parts.store(parts, Relaxed);
        shared.next.store(0, Relaxed);
        shared.door.store(OPEN, Release);
        // Sequentially consistent with the worker's "asleep, then look again": one of the two
        // sees the other.
        shared.generation.fetch_add(1, SeqCst);
        for (asleep, (thread, _)) in shared.asleep.iter().zip(&self.workers) {
            if asleep.load(SeqCst) {
                thread.unpark();
            }
        }
    }

    /// Lets nobody in any more, and waits until nobody is inside.
    fn close(&self) {
        let mut inside = self.shared.door.fetch_and(!OPEN, Acquire) & !OPEN;
        let mut spins = 0;
        while inside > 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
            inside = self.shared.door.load(Acquire);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, Relaxed);
        self.shared.generation.fetch_add(1, SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker catches every panic of a part, so joining cannot fail.
                let _ = handle.join();
            }
        }
    }
}

/// Takes runs of neighbouring parts, for memory that follows on is read fastest: a share of what is
/// left, so that the last ones are short and all threads end together.
fn take_parts(shared: &Shared, job: &(dyn Fn(usize) + Sync)) {
    let parts = shared.parts.load(Relaxed);
    let shares = RUNS_PER_THREAD * (shared.asleep.len() + 1);
    let end = |first| first + (parts - first) / shares + 1;
    let take = |first| (first < parts).then(|| end(first));
    while let Ok(first) = shared.next.fetch_update(Relaxed, Relaxed, take) {
        (first..end(first)).for_each(job);
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        seen = next_generation(shared, index, seen);
        if shared.closing.load(Relaxed) {
            return;
        }
        if !enter(shared) {
            continue;
        }
        // SAFETY: this worker is inside: `job` was published before the door opened, and the
        // publisher waits until it has left before it returns or publishes again.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && catch_unwind(AssertUnwindSafe(|| take_parts(shared, job))).is_err()
        {
            shared.panicked.store(true, Relaxed);
        }
        shared.door.fetch_sub(1, Release);
    }
}

/// Goes inside the running job, if its door is open.
fn enter(shared: &Shared) -> bool {
    let inside = |door| (door & OPEN != 0).then_some(door + 1);
    shared.door.fetch_update(Acquire, Relaxed, inside).is_ok()
}

/// Waits until `generation` is not `seen`, spinning first, then asleep.
fn next_generation(shared: &Shared, index: usize, seen: usize) -> usize {
    for _ in 0..SPINS {
        let now = shared.generation.load(Acquire);
        if now != seen {
            return now;
        }
        std::hint::spin_loop();
    }
    shared.asleep[index].store(true, SeqCst);
    loop {
        let now = shared.generation.load(SeqCst);
        if now != seen {
            shared.asleep[index].store(false, Relaxed);
            return now;
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for parts in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                pool.run(parts, |i| {
                    counts[i].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{threads} {parts}");
            }
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut data = vec![0usize; 100];
            pool.for_each_chunk(&mut data, 7, |i, chunk| chunk.fill(i));
            assert!(data.iter().enumerate().all(|(at, &v)| v == at / 7));
        }
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_lives() {
        let pool = Pool::new(2);
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(8, |i| assert!(i != 5))));
        assert!(outcome.is_err());
        let mut data = vec![0; 8];
        pool.for_each_chunk(&mut data, 1, |_, chunk| chunk[0] = 1);
        assert_eq!(data, [1; 8]);
    }

    /// Workers come late to jobs this short: when one is over, or when the next has begun. Pauses
    /// of up to twice the time that a worker spins meet it as it falls asleep.
    #[test]
    fn short_jobs_back_to_back_run_every_part_once() {
        for threads in [2, 3, 5] {
            let pool = Pool::new(threads);
            for job in 0..35_000_usize {
                let mut data = [0; 9];
                let parts = job % 10;
                pool.for_each_chunk(&mut data[..parts], 1, |i, part| part[0] += job + i + 1);
                let expected = |i| if i < parts { job + i + 1 } else { 0 };
                assert!(data.iter().enumerate().all(|(i, v)| *v == expected(i)), "{threads} {job}");
                if job.is_multiple_of(512) {
                    (0..job * 7919 % (2 * SPINS)).for_each(|_| std::hint::spin_loop());
                }
            }
        }
    }

    /// One of two callers has parts that panic: it alone hears of it, and every other job is whole.
    #[test]
    fn panics_of_one_caller_do_not_reach_another() {
        let pool = Pool::new(3);
        let call = |panics: bool| {
            for job in 0..40_000_usize {
                let mut data = [0; 6];
                if panics && job.is_multiple_of(400) {
                    let part = |i| {
                        // Long enough that workers come for some.
                        (0..1000).for_each(|_| std::hint::spin_loop());
                        if i == 3 {
                            // Without the hook, which prints.
                            resume_unwind(Box::new("part 3"));
                        }
                    };
                    let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(6, part)));
                    assert!(outcome.is_err(), "job {job}");
                    continue;
                }
                pool.for_each_chunk(&mut data, 1, |i, part| part[0] += job + i + 1);
                assert!(data.iter().enumerate().all(|(i, v)| *v == job + i + 1), "job {job}");
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| call(true));
            scope.spawn(|| call(false));
        });
    }

    #[test]
    fn a_nested_job_runs_alone() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        pool.run(4, |_| {
            pool.run(4, |_| {
                total.fetch_add(1, Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 16);
    }
}
