//! What runs: how the processor keeps a weight and which path a product with it takes. A weight and
//! a number of rows enter, names for a report leave.

use super::linear::Path;
use super::{Cpu, CpuWeight};

/// How a product `y = x · Wᵀ` is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearPlan {
    /// The arithmetic.
    pub path: &'static str,
    /// How the weight is kept.
    pub stored: &'static str,
    /// Bytes of the weight that one product reads.
    pub bytes: usize,
}

impl Cpu {
    /// The plan for `rows` rows of activations.
    pub fn linear_plan(&self, weight: &CpuWeight, rows: usize) -> LinearPlan {
        LinearPlan {
            path: match Path::of(self, weight, rows) {
                Path::Integer => "15-bit integer dots",
                Path::Float => "f32 dots",
                Path::Row => "f32 dots of one dequantised row at a time",
                Path::Panel => "f32 panels",
                Path::Pairs => self.pairs.map_or("bf16 pairs", |pairs| pairs.path),
            },
            stored: match weight {
                CpuWeight::Packed(_) => "packed, 16 rows side by side",
                CpuWeight::Frozen(_) => "as in the file",
                CpuWeight::Trainable { .. } => "trainable f32",
            },
            bytes: weight.bytes(),
        }
    }

    /// Rows, at most 64, up to which one batch gives each row the bits that it has alone: those
    /// that take the path of a single row.
    pub fn rows_like_one(&self, weight: &CpuWeight) -> usize {
        let alone = Path::of(self, weight, 1);
        (1..=64).take_while(|&rows| Path::of(self, weight, rows) == alone).count()
    }
}
