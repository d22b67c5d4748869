//! `puna bench --explain`: which path the matrices of each kind take for so many rows, and what share
//! of the machine that reaches. All matrices of a kind are multiplied one after the other, so that
//! those of a large model come from memory as they do in a forward.
//!
//! `bandwidth share = bytes / seconds / read bandwidth`,
//! `peak share = 2 * weights * rows / seconds / peak`.

use std::time::Instant;

use puna::model::LlamaForCausalLM;
use puna_kernels::cpu::CpuWeight;
use puna_kernels::cpu::measure::Limits;
use puna_kernels::{Backend, Cpu, Dtype};
use serde::Serialize;

use super::bench::median;
use crate::interrupt::Graceful;
use crate::output::{Output, human_bytes};
use crate::session::CHUNK_ROWS;

/// One sequence, a handful of them or of guesses, a chunk of a prompt.
const ROWS: [usize; 4] = [1, 4, 16, CHUNK_ROWS];
/// Matrices of one name, shape and format.
#[derive(Debug, Serialize)]
pub(super) struct Kind {
    tensor: &'static str,
    format: &'static str,
    stored: &'static str,
    /// `[out, in]`.
    shape: [usize; 2],
    matrices: usize,
    /// Of all of them.
    bytes: u64,
    products: Vec<Product>,
}

/// What `rows` rows of activations take through all matrices of a kind.
#[derive(Debug, Serialize)]
struct Product {
    rows: usize,
    path: &'static str,
    ms: f64,
    bandwidth_share: f64,
    peak_share: f64,
}

/// Measures every kind of matrix of `model`.
pub(super) fn kinds(
    model: &LlamaForCausalLM<Cpu>,
    limits: &Limits,
    repetitions: usize,
    interrupts: &Graceful,
) -> anyhow::Result<Vec<Kind>> {
    let backend = &*model.model.backend;
    let mut groups: Vec<(&'static str, Vec<&CpuWeight>)> = Vec::new();
    for (name, weight) in model.matrices() {
        let same = |group: &&mut (&'static str, Vec<&CpuWeight>)| {
            group.0 == name && group.1.iter().all(|other| shape_of(other) == shape_of(weight))
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.1.push(weight),
            None => groups.push((name, vec![weight])),
        }
    }
    groups
        .into_iter()
        .map(|(name, weights)| {
            let plan = backend.linear_plan(weights[0], 1);
            // A prompt asks for the logits of its last row alone.
            let rows = ROWS.iter().filter(|rows| name != "lm_head" || **rows < CHUNK_ROWS);
            Ok(Kind {
                tensor: name,
                format: weights[0].format().name(),
                stored: plan.stored,
                shape: [weights[0].rows(), weights[0].cols()],
                matrices: weights.len(),
                bytes: (plan.bytes * weights.len()) as u64,
                products: rows
                    .map(|&rows| {
                        interrupts.check()?;
                        product(backend, &weights, rows, limits, repetitions)
                    })
                    .collect::<anyhow::Result<_>>()?,
            })
        })
        .collect()
}

/// What must be equal in one line of the report.
fn shape_of(weight: &CpuWeight) -> (&'static str, usize, usize) {
    (weight.format().name(), weight.rows(), weight.cols())
}

fn product(
    backend: &Cpu,
    weights: &[&CpuWeight],
    rows: usize,
    limits: &Limits,
    repetitions: usize,
) -> anyhow::Result<Product> {
    let (out, cols) = (weights[0].rows(), weights[0].cols());
    let plan = backend.linear_plan(weights[0], rows);
    let mut x = backend.alloc(rows * cols, "activations to measure with")?;
    let values: Vec<f32> =
        (0..rows * cols).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    backend.write(&mut x, 0, &values);
    let mut y = backend.alloc(rows * out, "results to measure with")?;
    let mut seconds = Vec::new();
    // The first does not count.
    for _ in 0..=repetitions {
        let start = Instant::now();
        for weight in weights {
            backend.linear(&x, rows, Dtype::F32, &mut [(*weight, &mut y)]);
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    let seconds = median(&mut seconds[1..]);
    let (n, flops) = (weights.len() as f64, 2.0 * (out * cols * rows) as f64);
    Ok(Product {
        rows,
        path: plan.path,
        ms: seconds * 1e3,
        bandwidth_share: n * plan.bytes as f64 / seconds / limits.read_bytes_per_second,
        peak_share: n * flops / seconds / limits.flops,
    })
}

/// A line for each kind, and below it one for each number of rows.
pub(super) fn print(kinds: &[Kind], output: &mut Output) -> anyhow::Result<()> {
    for kind in kinds {
        let [out, cols] = kind.shape;
        output.line(&format!(
            "{} x {:<10} {out} x {cols} {}, {}, {}",
            kind.matrices,
            kind.tensor,
            kind.format,
            human_bytes(kind.bytes),
            kind.stored
        ))?;
        for product in &kind.products {
            output.line(&format!(
                "  {:>4} rows  {:>9.3} ms  {:>5.1} % of the bandwidth  {:>5.1} % of the peak  {}",
                product.rows,
                product.ms,
                product.bandwidth_share * 100.0,
                product.peak_share * 100.0,
                product.path
            ))?;
        }
    }
    Ok(())
}
