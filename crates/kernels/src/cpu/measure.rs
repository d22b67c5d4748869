//! What this machine can do at most, measured and not looked up: bytes read from memory and
//! multiply-adds each second, with the pool's own threads. Every report of a share of the machine
//! divides by these. The multiply-add is the widest that products of many rows use: of `bf16`
//! pairs, in tiles (with the loads that they need) or in registers, else of `f32`, at the width of
//! the instruction set in use (on the portable one, a product and a sum); dots of bytes do not
//! count.

use std::hint::black_box;
use std::time::Instant;

use super::isa::{Isa, PairIsa};
use super::{Cpu, CpuBuf};
use crate::OutOfMemory;

/// Words of the buffer that is read: 512 MiB, beyond any cache of one socket.
const BUFFER_WORDS: usize = 1 << 26;
/// Words of one part: the pool hands parts to whichever thread is free.
const PART_WORDS: usize = 1 << 19;
/// How often each measurement is taken; the best counts, since nothing makes a machine faster
/// than it is.
const ROUNDS: usize = 5;
/// What a part of a round of multiply-adds takes, at least.
const PART_SECONDS: f64 = 1e-3;
/// Parts of one round for each thread.
const PARTS_PER_THREAD: usize = 32;
/// Independent chains of multiply-adds: more than latency times units, few enough for registers.
const CHAINS: usize = 12;

/// The machine's limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes that a plain loop reads from memory each second.
    pub read_bytes_per_second: f64,
    /// Additions and multiplications each second, in multiply-adds.
    pub flops: f64,
    /// Which multiply-add that is.
    pub flops_unit: &'static str,
}

impl Cpu {
    /// Measures the machine, in about a second; takes 512 MiB of memory meanwhile.
    pub fn measure_limits(&self) -> Result<Limits, OutOfMemory> {
        Ok(Limits {
            read_bytes_per_second: self.read_rate()?,
            flops: self.multiply_add_rate(),
            flops_unit: match self.pairs {
                Some(_) => "bf16 multiply-add",
                None => "f32 multiply-add",
            },
        })
    }

    fn read_rate(&self) -> Result<f64, OutOfMemory> {
        let mut buf = CpuBuf::zeros(2 * BUFFER_WORDS, "the buffer that measures memory")?;
        let words: &mut [u64] = bytemuck::cast_slice_mut(&mut buf);
        // Zeros of a fresh allocation would all be one page.
        self.pool.for_each_chunk(words, PART_WORDS, |part, chunk| {
            for (word, value) in chunk.iter_mut().zip(part as u64..) {
                *word = value;
            }
        });
        let parts = words.len() / PART_WORDS;
        let seconds = best_of(|| {
            self.pool.run(parts, |part| {
                let chunk = &words[part * PART_WORDS..(part + 1) * PART_WORDS];
                black_box(sum(chunk));
            });
        });
        Ok(size_of_val(words) as f64 / seconds)
    }

    fn multiply_add_rate(&self) -> f64 {
        let parts = self.threads() * PARTS_PER_THREAD;
        let multiply_adds = match self.pairs {
            Some(pairs) => pairs.kernels.multiply_adds,
            None => self.kernels.multiply_adds,
        };
        let turns = turns_of_a_part(multiply_adds);
        let per_part = multiply_adds(1) as f64 * turns as f64 * 2.0;
        let seconds = best_of(|| {
            self.pool.run(parts, |_| {
                black_box(multiply_adds(black_box(turns)));
            });
        });
        parts as f64 * per_part / seconds
    }
}

/// Turns of the loop that take [`PART_SECONDS`].
fn turns_of_a_part(multiply_adds: fn(usize) -> usize) -> usize {
    let mut turns = 1;
    loop {
        let start = Instant::now();
        black_box(multiply_adds(black_box(turns)));
        if start.elapsed().as_secs_f64() >= PART_SECONDS {
            return turns;
        }
        turns *= 2;
    }
}

/// Seconds of the fastest round, after one that does not count.
fn best_of(round: impl Fn()) -> f64 {
    round();
    let timed = || {
        let start = Instant::now();
        round();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| timed()).fold(f64::INFINITY, f64::min)
}

/// Sum of all words; eight sums side by side keep the loads and not the additions busy.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for eight in words.chunks_exact(8) {
        for (sum, word) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

/// Runs `turns` turns of `x = a x + x` in each chain, and says how many multiply-adds that was.
#[inline(always)]
pub(crate) fn multiply_adds<I: Isa>(isa: I, turns: usize) -> usize {
    // Values stay normal, and zeros would flatter the unit. The sum is the factor, since NEON
    // overwrites the one and would have to copy another first.
    let a = isa.splat(-1e-7);
    let mut chains = [isa.splat(1.25); CHAINS];
    for _ in 0..turns {
        for chain in &mut chains {
            *chain = isa.fma(*chain, a, *chain);
        }
    }
    turns * used(isa, chains)
}

/// Likewise of `bf16` pairs: `x += a a'` on both halves of a word.
#[inline(always)]
pub(crate) fn pair_multiply_adds<I: PairIsa>(isa: I, turns: usize) -> usize {
    let (a, b) = (isa.splat(0.999), isa.splat(0.5));
    let (a, b) = (black_box(isa.pair(a, b)), black_box(isa.pair(b, a)));
    let mut chains = [isa.splat(1.25); CHAINS];
    for _ in 0..turns {
        for chain in &mut chains {
            *chain = isa.dot_pairs(a, b, *chain);
        }
    }
    turns * used(isa, chains) * 2
}

/// Lanes of the chains, whose sum is used so that it is computed.
#[inline(always)]
fn used<I: Isa>(isa: I, chains: [I::F32; CHAINS]) -> usize {
    let mut total = chains[0];
    for chain in &chains[1..] {
        total = isa.add(total, *chain);
    }
    black_box(isa.reduce_sum(total));
    CHAINS * I::LANES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{CpuOptions, kernels};

    #[test]
    fn limits_are_those_of_a_machine() {
        for name in kernels::names() {
            let options =
                CpuOptions { threads: 2, isa: Some(name.to_owned()), ..CpuOptions::default() };
            let limits = Cpu::new(&options).unwrap().measure_limits().unwrap();
            // From a slow board under load to a socket of the next decade.
            assert!((1e8..1e13).contains(&limits.read_bytes_per_second), "{name} {limits:?}");
            assert!((1e7..1e15).contains(&limits.flops), "{name} {limits:?}");
        }
    }

    #[test]
    fn the_count_is_the_work() {
        for name in kernels::names() {
            let cpu = Cpu::new(&CpuOptions {
                threads: 1,
                isa: Some(name.to_owned()),
                ..CpuOptions::default()
            })
            .unwrap();
            let pairs = cpu.pairs.map(|pairs| pairs.kernels.multiply_adds);
            for multiply_adds in [Some(cpu.kernels.multiply_adds), pairs].into_iter().flatten() {
                let one = multiply_adds(1);
                assert!(one >= CHAINS, "{name}: {one}");
                assert_eq!(multiply_adds(7), 7 * one, "{name}");
            }
        }
    }
}
