//! How near attention comes to the machine: decode against a plain read loop over as many bytes as
//! the cache has, prefill against a loop of multiply-adds in `f32` (causal: half of the rectangle
//! counts). Everything is timed in short calls, of which the lower quartile is printed: on a busy
//! machine most long ones are interrupted.
//!
//! `cargo bench -p puna-kernels --bench attention
//! [-- THREADS [decode|prefill|CACHE_TYPE|scattered ...]]`; `scattered` puts the blocks anywhere.

use std::hint::black_box;
use std::time::Instant;

use puna_kernels::{
    AttentionOutputs, AttentionSpec, Backend, Cpu, CpuOptions, Dtype, KvDtype, KvShape, Mask, Span,
};

const BLOCK_LEN: usize = 32;
const HEAD_DIM: usize = 64;
/// Name, query heads, key-value heads.
const SHAPES: [(&str, usize, usize); 2] = [("SmolLM2", 9, 3), ("1.1B", 32, 4)];
/// Bytes of cache that a round of decode reads at least: beyond the caches of the processor.
const ROUND_BYTES: usize = 192 << 20;

type Buf = <Cpu as Backend>::Buf;
type KvCache = <Cpu as Backend>::KvCache;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let threads = args.next().map_or(1, |n| n.parse().expect("THREADS is a number"));
    let names: Vec<String> = args.collect();
    let cpu = Cpu::new(&CpuOptions { threads, ..CpuOptions::default() }).expect("PUNA_ISA");
    let (read, peak) = (read_loop(threads), multiply_add_loop(&cpu));
    println!(
        "{} with {threads} threads: read loop {read:.1} GB/s, multiply-adds {peak:.1} GFLOP/s",
        cpu.isa()
    );
    let asked = |name: &str, among: &[&str]| {
        let mut named = names.iter().filter(|name| among.contains(&name.as_str())).peekable();
        named.peek().is_none() || named.any(|n| n == name)
    };
    for dtype in KvDtype::ALL {
        if !asked(dtype.name(), &KvDtype::ALL.map(KvDtype::name)) {
            continue;
        }
        for (name, n_heads, n_kv_heads) in SHAPES {
            let step = if names.iter().any(|name| name == "scattered") { 7 } else { 1 };
            let bench = |n_keys| Bench::new(&cpu, dtype, (n_heads, n_kv_heads), n_keys, step);
            print!("{:5} {name:8}", dtype.name());
            if asked("decode", &["decode", "prefill"]) {
                print!(" decode");
                [512, 4096, 16384].into_iter().for_each(|n| bench(n).decode(read));
            }
            if asked("prefill", &["decode", "prefill"]) {
                print!(" prefill");
                [512, 2048].into_iter().for_each(|n| bench(n).prefill(peak));
            }
            println!();
        }
    }
}

/// A filled cache of one sequence.
struct Bench<'a> {
    cpu: &'a Cpu,
    cache: KvCache,
    blocks: Vec<u32>,
    n_heads: usize,
    n_layers: usize,
    n_keys: usize,
    /// Bytes of keys and values in a layer.
    layer_bytes: usize,
    q: Buf,
}

impl<'a> Bench<'a> {
    fn new(
        cpu: &'a Cpu,
        dtype: KvDtype,
        (n_heads, n_kv_heads): (usize, usize),
        n_keys: usize,
        step: usize,
    ) -> Self {
        let n_blocks = n_keys.div_ceil(BLOCK_LEN);
        let shape = KvShape {
            n_layers: 1,
            n_blocks,
            block_len: BLOCK_LEN,
            n_kv_heads,
            head_dim: HEAD_DIM,
            dtype,
        };
        let layer_bytes = shape.bytes().expect("no overflow");
        let n_layers = ROUND_BYTES.div_ceil(layer_bytes);
        let mut cache = cpu.kv_cache(KvShape { n_layers, ..shape }).expect("memory");
        let blocks: Vec<u32> = (0..n_blocks).map(|i| (i * step % n_blocks) as u32).collect();
        let row = n_kv_heads * HEAD_DIM;
        let (k, v) = (buf(cpu, n_keys * row, 1.0), buf(cpu, n_keys * row, 0.7));
        let span = Span { rows: 0..n_keys, n_keys, blocks: &blocks, mask: Mask::Causal };
        for layer in 0..n_layers {
            cpu.append_kv(&mut cache, layer, &k, &v, std::slice::from_ref(&span));
        }
        let q = buf(cpu, n_keys * n_heads * HEAD_DIM, 2.0);
        Self { cpu, cache, blocks, n_heads, n_layers, n_keys, layer_bytes, q }
    }

    /// Seconds of one layer for the last `n_rows` rows; `rounds` over so many layers.
    fn seconds(&self, n_rows: usize, layers: usize, rounds: usize) -> f64 {
        let mut y = self.cpu.alloc(n_rows * self.n_heads * HEAD_DIM, "bench").expect("memory");
        let (n_heads, mask) = (self.n_heads, Mask::Causal);
        let span = Span { rows: 0..n_rows, n_keys: self.n_keys, blocks: &self.blocks, mask };
        lower_quartile(rounds * layers, |call| {
            let layer = call % layers;
            let spec = AttentionSpec { layer, n_heads, scale: 0.125, dtype: Dtype::F32 };
            let (spans, outputs) = (std::slice::from_ref(&span), AttentionOutputs::default());
            self.cpu.attention(&self.q, &self.cache, spans, spec, &mut y, outputs);
        })
    }

    fn decode(&self, read: f64) {
        let seconds = self.seconds(1, self.n_layers, 5);
        let rate = self.layer_bytes as f64 / seconds / 1e9;
        print!(" {}: {rate:.1} GB/s = {:.0} %,", self.n_keys, 100.0 * rate / read);
    }

    fn prefill(&self, peak: f64) {
        let calls = 40 * 512 / self.n_keys;
        let seconds = self.seconds(self.n_keys, self.n_layers.min(calls), 1);
        let pairs = self.n_keys * (self.n_keys + 1) / 2 * self.n_heads;
        let rate = (4 * pairs * HEAD_DIM) as f64 / seconds / 1e9;
        let share = 100.0 * rate / peak;
        print!(" {}: {:.2} ms = {rate:.0} GFLOP/s = {share:.0} %,", self.n_keys, 1e3 * seconds);
    }
}

/// Seconds of `call(0)`, `call(1)` …: a quarter of the calls were faster.
fn lower_quartile(calls: usize, mut call: impl FnMut(usize)) -> f64 {
    call(0);
    let mut times: Vec<f64> = (0..calls)
        .map(|index| {
            let start = Instant::now();
            call(index);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

/// GB/s of adding up a large array by so many threads: the sum of what each reaches by itself, which
/// on a busy machine is more than they reach at once.
fn read_loop(threads: usize) -> f64 {
    const PART: usize = 1 << 17;
    let data: Vec<u64> = (0..ROUND_BYTES as u64 / 8).collect();
    let one = || {
        let parts = data.as_chunks::<PART>().0;
        let seconds = lower_quartile(3 * parts.len(), |call| {
            let mut sums = [0u64; 16];
            for words in parts[call % parts.len()].as_chunks::<16>().0 {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            black_box(sums);
        });
        (8 * PART) as f64 / seconds / 1e9
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    })
}

/// GFLOP/s of multiply-adds, as the library measures them.
fn multiply_add_loop(cpu: &Cpu) -> f64 {
    cpu.measure_limits().expect("memory").flops / 1e9
}

fn buf(cpu: &Cpu, len: usize, size: f32) -> Buf {
    let mut buf = cpu.alloc(len, "bench").expect("memory");
    let values: Vec<f32> =
        (0..len).map(|i| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * size).collect();
    cpu.write(&mut buf, 0, &values);
    buf
}
