//! A decode step takes no memory from the allocator once its first steps have made room: every
//! operation of one runs here with a counting allocator, the linear layers with packed weights and
//! with `f32` weights.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use puna_kernels::cpu::{CpuBuf, CpuWeight};
use puna_kernels::{
    Activation, AttentionOutputs, AttentionSpec, Backend, Cpu, CpuKvCache, CpuOptions, Dtype,
    Format, KvDtype, KvShape, Mask, RmsNorm, RopeLayout, RopeTable, Span, WeightData,
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
    buffers: [CpuBuf; 4],
    weight: CpuBuf,
    angles: CpuBuf,
    /// Packed and `f32`, `(WIDTH, WIDTH)` both.
    projections: [CpuWeight; 2],
    cache: CpuKvCache,
}

/// A layer's operations for one token of each of two sequences.
fn decode(cpu: &Cpu, step: &mut Step, n_keys: usize, dtype: Dtype) {
    let Step { buffers: [x, q, k, y], weight, angles, projections: [packed, float], cache } = step;
    let norm = RmsNorm { weight, width: WIDTH, eps: 1e-5, dtype };
    cpu.rms_norm(x, &norm, 2, y);
    cpu.linear(y, 2, dtype, &mut [(packed, q), (float, k)]);
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

fn packed(cpu: &Cpu) -> CpuWeight {
    let row_bytes = Format::Q4_1.row_bytes(WIDTH).expect("whole blocks");
    let bytes = vec![0x31; WIDTH * row_bytes].into();
    let data = WeightData { format: Format::Q4_1, rows: WIDTH, cols: WIDTH, bytes };
    cpu.weight(data).expect("a small weight")
}

fn square(cpu: &Cpu) -> CpuBuf {
    cpu.alloc(WIDTH * WIDTH, "test").expect("a small buffer")
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
            dtype: KvDtype::F16,
        };
        let buffer = || cpu.alloc(2 * WIDTH, "test").expect("a small buffer");
        let mut step = Step {
            buffers: std::array::from_fn(|_| buffer()),
            weight: buffer(),
            angles: buffer(),
            projections: [packed(&cpu), cpu.weight_from(square(&cpu), WIDTH, WIDTH)],
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
