//! A decode step takes no memory from the allocator once its first steps have made room: every
//! operation between the linear layers runs here with a counting allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use puna_kernels::{
    Activation, AttentionOutputs, AttentionSpec, Backend, Cpu, CpuKvCache, CpuOptions, Dtype,
    KvShape, Mask, RmsNorm, RopeLayout, RopeTable, Span,
};

struct Counting;

thread_local! {
    /// Of this thread alone: the harness allocates on its own meanwhile.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

const N_HEADS: usize = 4;
const N_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const WIDTH: usize = N_HEADS * HEAD_DIM;
const MAX_KEYS: usize = 1024;

struct Step {
    buffers: [puna_kernels::cpu::CpuBuf; 4],
    weight: puna_kernels::cpu::CpuBuf,
    angles: puna_kernels::cpu::CpuBuf,
    cache: CpuKvCache,
}

/// Everything but the linear layers, for one token of each of two sequences.
fn decode(cpu: &Cpu, step: &mut Step, n_keys: usize, dtype: Dtype) {
    let Step { buffers: [x, q, k, y], weight, angles, cache } = step;
    let norm = RmsNorm { weight, width: WIDTH, eps: 1e-5, dtype };
    cpu.rms_norm(x, &norm, 2, q);
    let layout = RopeLayout::HalfSplit;
    let table = RopeTable { cos: angles, sin: angles, rotary_dim: HEAD_DIM, layout, dtype };
    cpu.rope(q, 2, N_HEADS, HEAD_DIM, &table);
    let blocks: [u32; 128] = std::array::from_fn(|i| i as u32);
    let mask = Mask::Causal;
    let spans = [
        Span { rows: 0..1, n_keys, blocks: &blocks[..64], mask },
        Span { rows: 1..2, n_keys: n_keys / 3 + 1, blocks: &blocks[64..], mask },
    ];
    cpu.append_kv(cache, 0, k, k, &spans);
    let spec = AttentionSpec { layer: 0, n_heads: N_HEADS, scale: 0.25, dtype };
    cpu.attention(q, cache, &spans, spec, y, AttentionOutputs::default());
    cpu.act_mul(Activation::Silu, q, y, 2 * WIDTH, dtype, k);
    cpu.add_scaled(x, y, 1.0, 2 * WIDTH, dtype);
}

#[test]
fn decode_allocates_nothing() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        // One thread: which worker takes a part, and so makes its room, is a matter of chance.
        let options = CpuOptions { threads: 1, ..Default::default() };
        let cpu = Cpu::new(&options).expect("an instruction set");
        let shape = KvShape {
            n_layers: 1,
            n_blocks: 128,
            block_len: MAX_KEYS / 64,
            n_kv_heads: N_KV_HEADS,
            head_dim: HEAD_DIM,
            dtype: Dtype::F16,
        };
        let buffer = || cpu.alloc(2 * WIDTH, "test").expect("a small buffer");
        let mut step = Step {
            buffers: std::array::from_fn(|_| buffer()),
            weight: buffer(),
            angles: buffer(),
            cache: cpu.kv_cache(shape).expect("a small cache"),
        };
        decode(&cpu, &mut step, 1, dtype);
        let before = ALLOCATIONS.get();
        assert!(before > 0, "the counter counts");
        for n_keys in 2..MAX_KEYS {
            decode(&cpu, &mut step, n_keys, dtype);
        }
        assert_eq!(ALLOCATIONS.get(), before, "{dtype:?}");
    }
}
