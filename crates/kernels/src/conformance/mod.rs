//! The suite that every backend must pass. A case is a function over any [`Backend`]: it computes
//! with odd sizes and poisoned buffers, holds the results against the `f64` oracle of
//! [`crate::naive`], and returns them, so that runs can be compared bit for bit.
//!
//! The tests at the end run each case on every instruction set of this processor, with 1, 2, 3 and
//! 5 threads. A new backend adds one such list.

mod act_mul;
mod attention;
mod attention_backward;
mod elementwise;
mod kv_cache;
mod linear;
mod loss;
mod rms_norm;
mod rope;
mod rows;

use crate::{Activation, Backend, Cpu, CpuOptions, Dtype, naive};

/// Values behind the end of every buffer, which nobody may touch.
const GUARD: usize = 5;

/// Pseudo-random numbers (xorshift64*), the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// `len` values, even over `-size..size`.
    fn values(&mut self, len: usize, size: f32) -> Vec<f32> {
        let one = |bits: u64| ((bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size;
        (0..len).map(|_| one(self.next())).collect()
    }

    /// The same, each one a value that `dtype` holds.
    fn rounded(&mut self, len: usize, size: f32, dtype: Dtype) -> Vec<f32> {
        self.values(len, size).into_iter().map(|v| dtype.round(v)).collect()
    }
}

/// A buffer of `values` and a guard of NaN.
fn upload<B: Backend>(b: &B, values: &[f32]) -> B::Buf {
    let mut buf = b.alloc(values.len() + GUARD, "test").expect("a small buffer");
    b.write(&mut buf, 0, values);
    b.write(&mut buf, values.len(), &[f32::NAN; GUARD]);
    buf
}

/// A buffer of NaN, for results that overwrite.
fn poisoned<B: Backend>(b: &B, len: usize) -> B::Buf {
    upload(b, &vec![f32::NAN; len])
}

/// The first `len` values; the guard behind them must be whole.
fn download<B: Backend>(b: &B, buf: &B::Buf, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len + GUARD];
    b.read(buf, 0, &mut values);
    assert!(values[len..].iter().all(|v| v.is_nan()), "wrote behind the end");
    values.truncate(len);
    values
}

/// Widened, for the oracle.
fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// `a + b`, for what accumulates.
fn sum(a: &[f32], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) + b).collect()
}

/// Results may differ from the oracle by `absolute + relative * |expected|`.
#[derive(Clone, Copy)]
struct Tolerance {
    absolute: f64,
    relative: f64,
}

impl Tolerance {
    const fn new(absolute: f64, relative: f64) -> Self {
        Self { absolute, relative }
    }

    /// Two neighbouring values of `dtype`: an `f32` sum that falls on the other side of a
    /// rounding border than the exact one moves a result, or a factor of it, by one step. For
    /// `f32` it is `otherwise`.
    fn steps_of(dtype: Dtype, otherwise: Self) -> Self {
        match dtype {
            Dtype::F32 => otherwise,
            Dtype::F16 => Self::new(otherwise.absolute.max(1e-6), 2.0 / 1024.0),
            Dtype::Bf16 => Self::new(otherwise.absolute.max(1e-6), 2.0 / 128.0),
        }
    }

    fn check(self, what: &str, got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let limit = self.absolute + self.relative * expected.abs();
            let same = f64::from(*got) == *expected;
            let near = (f64::from(*got) - expected).abs() <= limit;
            assert!(same || near, "{what}[{i}]: {got} is not {expected} within {limit}");
        }
    }
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

const ACTIVATIONS: [Activation; 15] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::Gelu10,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Relu2,
    Activation::Relu6,
    Activation::LeakyRelu,
    Activation::Linear,
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::Mish,
    Activation::HardSwish,
    Activation::Laplace,
];

/// Runs a case on every instruction set; more threads must give the same bits as one.
fn on_every_cpu(case: fn(&Cpu) -> Vec<f32>) {
    for isa in crate::cpu::kernels::names() {
        let cpu = |threads| {
            let options = CpuOptions { threads, isa: Some(isa.to_owned()), ..Default::default() };
            Cpu::new(&options).expect("a name from the list")
        };
        let bits = |cpu: &Cpu| case(cpu).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let alone = bits(&cpu(1));
        assert!(!alone.is_empty());
        for threads in [2, 3, 5] {
            assert_eq!(alone, bits(&cpu(threads)), "{isa}, {threads} threads");
        }
    }
}

#[test]
fn rms_norms() {
    on_every_cpu(rms_norm::forward);
    on_every_cpu(rms_norm::backward);
}

#[test]
fn rotary_embeddings() {
    on_every_cpu(rope::forward);
    on_every_cpu(rope::backward);
}

#[test]
fn gated_products() {
    on_every_cpu(act_mul::forward);
    on_every_cpu(act_mul::backward);
    on_every_cpu(act_mul::extremes);
}

#[test]
fn elementwise_sums() {
    on_every_cpu(elementwise::add_scaled);
    on_every_cpu(elementwise::scale);
    on_every_cpu(elementwise::bias);
}

#[test]
fn chosen_rows() {
    on_every_cpu(rows::gather);
    on_every_cpu(rows::embed);
}

#[test]
fn linear_layers() {
    on_every_cpu(linear::forward);
    on_every_cpu(linear::backward);
}

#[test]
fn losses_and_optimiser() {
    on_every_cpu(loss::cross_entropy);
    on_every_cpu(loss::sum_squares);
    on_every_cpu(loss::adamw);
}

#[test]
fn key_value_caches() {
    on_every_cpu(kv_cache::append_read_copy);
    on_every_cpu(kv_cache::extremes);
}

#[test]
fn attention_matches() {
    on_every_cpu(attention::small);
    on_every_cpu(attention::masks);
    on_every_cpu(attention::narrow_types);
    on_every_cpu(attention::long_contexts);
}

#[test]
fn attention_does_not_depend_on_the_batch() {
    on_every_cpu(attention::row_by_row);
}

#[test]
fn attention_gradients() {
    on_every_cpu(attention_backward::gradients);
}

#[test]
fn a_cache_that_cannot_be_is_refused() {
    kv_cache::too_large(&Cpu::new(&CpuOptions::default()).expect("some instruction set"));
}
