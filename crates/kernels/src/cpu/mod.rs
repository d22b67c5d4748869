//! The processor as a backend: detects its instruction set once, splits rows over a thread pool
//! and calls the table of kernels.

mod arch;
mod backend;
mod buf;
mod embed;
mod isa;
pub mod kernels;
mod kv_cache;
mod linear;
pub mod measure;
mod operands;
mod ops;
mod packed;
mod plan;
mod pool;
mod product;
mod rect;
mod scratch;
mod tiles;
mod weight;

pub use buf::CpuBuf;
pub use kernels::UnknownIsa;
pub use kv_cache::CpuKvCache;
pub use plan::LinearPlan;
pub use weight::CpuWeight;

use kernels::{Kernels, Tables};
use pool::Pool;
use product::Pairs;

/// Most threads of one pool: more than any machine that LLaMA runs on has processors.
pub const MAX_THREADS: usize = 1024;

/// How to compute on the processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, the caller's included; 0 means one for each processor that the program may use.
    /// Above [`MAX_THREADS`] it is that.
    pub threads: usize,
    /// Instruction set by name; `None` takes `PUNA_ISA`, else the best.
    pub isa: Option<String>,
    /// Weights of every format are dequantised and multiplied in `f32`, on one path for every
    /// number of rows: slower, for comparisons. Else a few rows of activations are rounded to
    /// fifteen bits of their group's largest against packed weights: those of all quantised
    /// formats but IQ1 to IQ3, TQ1 and Q8_K, which stay `f32` on every path. Many rows are rounded
    /// to `bf16`, and packed weights with them, where the instruction set multiplies such pairs.
    pub exact: bool,
    /// One path for every number of rows: a row gives the same bits alone, in any batch, and in
    /// whatever chunks its prompt came. Packed weights are always multiplied in whole numbers, and
    /// the others in `f32` (many rows are slower). Nothing to do where `exact` is set.
    pub deterministic: bool,
}

/// The processor.
#[derive(Debug)]
pub struct Cpu {
    isa: &'static str,
    kernels: &'static Kernels,
    pairs: Option<&'static Pairs>,
    pool: Pool,
    exact: bool,
    deterministic: bool,
}

impl Cpu {
    /// Detects the instruction set and starts the threads.
    pub fn new(options: &CpuOptions) -> Result<Self, UnknownIsa> {
        let Tables { name: isa, kernels, pairs } = kernels::detect(options.isa.as_deref())?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = Pool::new(threads.min(MAX_THREADS));
        let &CpuOptions { exact, deterministic, .. } = options;
        Ok(Self { isa, kernels, pairs, pool, exact, deterministic })
    }

    /// Name of the instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.isa
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pool_is_larger_than_any_machine() {
        let cpu = Cpu::new(&CpuOptions { threads: 1 << 40, ..CpuOptions::default() }).unwrap();
        assert!(cpu.threads() <= MAX_THREADS);
    }
}
