//! The tables of kernels, one for each instruction set. In: algorithms over `Isa`. Out: functions
//! compiled for the features that a table names. `detect` picks a table once, at start.

use std::ops::Range;

use half::{bf16, f16};

use super::arch::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::arch::x86_64::amx;
use super::kv_cache::units::Q8;
use super::ops::activations::SplitRows;
use super::ops::attention::tile::{Pass, Tile};
use super::ops::dot_packed::Groups;
use super::ops::panel::Start;
use super::ops::{self, attention};
use super::product::Pairs;
use super::rect::Rect;
use super::weight::RowBytes;
use crate::{Activation, Dtype, Format};

/// Declares a struct of kernels and one static table of it per instruction set.
///
/// Each kernel is a generic function over [`Isa`] that takes the token first.
macro_rules! kernels {
    ($(#[$table_doc:meta])* $table:ident, isas: [$($isa:tt)*], kernels: $list:tt) => {
        kernels!(@declare [$(#[$table_doc])*] $table $list);
        $(kernels!(@table $table $isa $list);)*
    };
    (@declare [$(#[$table_doc:meta])*] $table:ident
        { $($(#[$doc:meta])* $name:ident = $path:path: ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;)* }) => {
        $(#[$table_doc])*
        #[derive(Debug)]
        pub(crate) struct $table {
            $($(#[$doc])* pub(crate) $name: fn($($ty),*) $(-> $ret)?,)*
        }
    };
    (@table $table:ident ($module:ident, $token:expr, $features:meta, $arch:meta)
        { $($(#[$doc:meta])* $name:ident = $path:path: ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)* }) => {
        // A module of its own is compiled by a thread of its own.
        #[$arch]
        mod $module {
            use super::*;

            pub(super) static TABLE: $table = {
                $(
                    #[allow(unused_unsafe, reason = "the portable table needs no features")]
                    fn $name($($arg: $ty),*) $(-> $ret)? {
                        #[$features]
                        fn inner($($arg: $ty),*) $(-> $ret)? {
                            $path($token, $($arg),*)
                        }
                        // SAFETY: `available` hands out a table only after it has seen every
                        // feature that the table names.
                        unsafe { inner($($arg),*) }
                    }
                )*
                $table { $($name,)* }
            };
        }
    };
}

kernels! {
    /// The kernels of one instruction set.
    Kernels,
    isas: [
        (scalar, Scalar, inline, cfg(all()))
        (
            avx2,
            crate::cpu::arch::x86_64::avx2::Avx2::assume(),
            target_feature(enable = "avx2,fma,f16c"),
            cfg(target_arch = "x86_64")
        )
        (
            avx512,
            crate::cpu::arch::x86_64::avx512::Avx512::assume(),
            target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"),
            cfg(target_arch = "x86_64")
        )
        (
            neon,
            crate::cpu::arch::aarch64::neon::Neon::assume(),
            target_feature(enable = "neon,dotprod"),
            cfg(target_arch = "aarch64")
        )
    ],
    kernels: {
        /// Multiply-adds in registers, and how many: see [`super::measure`].
        multiply_adds = crate::cpu::measure::multiply_adds: (turns: usize) -> usize;
        /// The weights of whole blocks as `f32`.
        dequantize = ops::panel::dequantize: (format: Format, bytes: &[u8], out: &mut [f32]);
        /// Rows of activations as whole numbers with a scale for each 32.
        quantize_rows = ops::activations::quantize: (x: &[f32], cols: usize, out: &mut SplitRows);
        /// A few rows of such activations against groups of packed weights.
        dot_packed = ops::dot_packed::rows: (
            weights: Groups<'_>, x: &SplitRows, first: usize, y: &mut [&mut [f32]]
        );
        /// Packed blocks of sixteen rows as a panel.
        packed_panel = ops::panel::from_packed: (format: Format, blocks: &[u8], panel: &mut [f32]);
        /// A few rows of activations against rows of `f32`, `f16` or `bf16` weights.
        dot_float = ops::dot_float::rows: (
            weights: RowBytes<'_>, x: &[f32], y: &mut [&mut [f32]]
        );
        /// Sixteen rows, a stride apart, as a panel.
        pack_panel = ops::panel::pack: (rows: &[f32], stride: usize, panel: &mut [f32]);
        /// Adds strips of packed rows times packed panels to their rectangle of a product.
        multiply = ops::panel::multiply: (
            a: &[f32], panels: &[f32], start: Start, c: &mut Rect<'_, f32>
        );
        /// One row of a norm: x, weight, eps, y.
        rms_norm = ops::rms_norm::row:
            (x: &[f32], weight: &[f32], eps: f32, dtype: Dtype, y: &mut [f32]);
        /// `1 / sqrt(mean(x²) + eps)`.
        rms_factor = ops::rms_norm::factor: (x: &[f32], eps: f32) -> f32;
        /// One row of dx of a norm.
        rms_norm_backward = ops::rms_norm::row_backward:
            (x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]);
        /// A strip of columns of dweight of a norm, over all rows.
        rms_norm_backward_weight = ops::rms_norm::strip_backward_weight:
            (x_dy: (&[f32], &[f32]), width: usize, at: usize, factors: &[f32], dw: &mut [f32]);
        /// The heads of one row, rotated in place; angles are cosines and sines.
        rope = ops::rope::row: (
            x: &mut [f32],
            head_dim: usize,
            angles: (&[f32], &[f32]),
            rotation: ops::rope::Rotation
        );
        /// Ranges of keys into the states of a tile of queries.
        attend_f32 = attention::tile::attend: (
            tile: &Tile<'_, f32>,
            ranges: Range<usize>,
            pass: Pass,
            states: &mut [f32],
            scratch: &mut [f32]
        );
        /// Likewise.
        attend_f16 = attention::tile::attend: (
            tile: &Tile<'_, f16>,
            ranges: Range<usize>,
            pass: Pass,
            states: &mut [f32],
            scratch: &mut [f32]
        );
        /// Likewise.
        attend_bf16 = attention::tile::attend: (
            tile: &Tile<'_, bf16>,
            ranges: Range<usize>,
            pass: Pass,
            states: &mut [f32],
            scratch: &mut [f32]
        );
        /// Likewise.
        attend_q8 = attention::tile::attend: (
            tile: &Tile<'_, Q8>,
            ranges: Range<usize>,
            pass: Pass,
            states: &mut [f32],
            scratch: &mut [f32]
        );
        /// The states of later keys into those of earlier ones.
        attention_merge = attention::tile::merge:
            (pass: Pass, head_dim: usize, later: &[f32], states: &mut [f32]);
        /// States into output values.
        attention_finish = attention::tile::finish:
            (pass: Pass, head_dim: usize, dtype: Dtype, states: &mut [f32]);
        /// Probabilities of one query.
        probabilities_f32 = attention::tile::probabilities:
            (tile: &Tile<'_, f32>, probs: &mut [f32], scratch: &mut [f32]);
        /// Likewise.
        probabilities_f16 = attention::tile::probabilities:
            (tile: &Tile<'_, f16>, probs: &mut [f32], scratch: &mut [f32]);
        /// Likewise.
        probabilities_bf16 = attention::tile::probabilities:
            (tile: &Tile<'_, bf16>, probs: &mut [f32], scratch: &mut [f32]);
        /// Likewise.
        probabilities_q8 = attention::tile::probabilities:
            (tile: &Tile<'_, Q8>, probs: &mut [f32], scratch: &mut [f32]);
        /// Gradients of one tile of queries and of the keys that it sees.
        attention_backward = attention::tile_backward: (
            tile: &Tile<'_, f32>,
            incoming: attention::Incoming<'_>,
            dq: &mut [f32],
            dkv: (&mut [f32], &mut [f32]),
            scratch: &mut [f32]
        );
        /// `y = act(gate) * up`.
        act_mul = ops::act_mul::slice:
            (activation: Activation, gate: &[f32], up: &[f32], dtype: Dtype, y: &mut [f32]);
        /// Its gradients: dgate and dup.
        act_mul_backward = ops::act_mul::slice_backward: (
            activation: Activation,
            gate: &[f32],
            up: &[f32],
            dy: &[f32],
            grads: (&mut [f32], &mut [f32])
        );
        /// `sums += Σ_r x[r][at..]`.
        sum_rows = ops::bias::sum_rows: (x: &[f32], width: usize, at: usize, sums: &mut [f32]);
        /// `y += scale * x`.
        add_scaled = ops::elementwise::add_scaled_slice:
            (y: &mut [f32], x: &[f32], scale: f32, dtype: Dtype);
        /// `y *= scale`.
        scale = ops::elementwise::scale_slice: (y: &mut [f32], scale: f32);
        /// `log Σ exp(x)`.
        log_sum_exp = ops::cross_entropy::log_sum_exp: (x: &[f32]) -> f32;
        /// `dx += weight softmax(x)`.
        softmax_add = ops::cross_entropy::softmax_add: (x: &[f32], weight: f32, dx: &mut [f32]);
        /// `Σ x²` in `f64`.
        sum_squares = ops::sum_squares::chunk: (x: &[f32]) -> f64;
        /// One slice of an AdamW step: parameters, gradients, moments.
        adamw = ops::adamw::slice: (
            params: &mut [f32],
            grads: &[f32],
            first: &mut [f32],
            second: &mut [f32],
            factors: &ops::adamw::Factors
        );
    }
}

kernels! {
    /// Products of `bf16` pairs.
    PairKernels,
    isas: [
        (
            avx512bf16,
            crate::cpu::arch::x86_64::avx512::Avx512Bf16::assume(),
            target_feature(
                enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
            ),
            cfg(target_arch = "x86_64")
        )
        (
            neonbf16,
            crate::cpu::arch::aarch64::neon::NeonBf16::assume(),
            target_feature(enable = "neon,dotprod,bf16"),
            cfg(target_arch = "aarch64")
        )
    ],
    kernels: {
        /// [`Kernels::multiply_adds`] of pairs.
        multiply_adds = crate::cpu::measure::pair_multiply_adds: (turns: usize) -> usize;
        /// Values as words of neighbours; a last one alone beside a zero.
        pair_up = ops::panel::pair_up: (x: &[f32], words: &mut [f32]);
        /// A run of a `bf16` row as words.
        copy_pairs = ops::panel::copy_pairs: (run: &[u8], words: &mut [f32]);
        /// Packed blocks of sixteen rows as a panel of words.
        packed_panel = ops::panel::pairs_from_packed:
            (format: Format, blocks: &[u8], panel: &mut [f32]);
        /// [`Kernels::multiply`] of words.
        multiply = ops::panel::multiply_pairs: (
            a: &[f32], panels: &[f32], start: Start, c: &mut Rect<'_, f32>
        );
    }
}

/// Pairs in vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const fn in_vectors(kernels: &'static PairKernels) -> Pairs {
    Pairs {
        path: "bf16 pair panels",
        kernels,
        blocking: super::product::VECTORS,
        few_integer: super::linear::FEW_INTEGER,
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512BF16: Pairs = in_vectors(&avx512bf16::TABLE);

#[cfg(target_arch = "aarch64")]
static NEONBF16: Pairs = in_vectors(&neonbf16::TABLE);

/// The tables of a processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    /// Name that `PUNA_ISA` selects it by.
    pub(crate) name: &'static str,
    pub(crate) kernels: &'static Kernels,
    /// Where products of `bf16` pairs are faster than of `f32`.
    pub(crate) pairs: Option<&'static Pairs>,
}

/// The tables that this processor can run, best first.
fn available() -> Vec<Tables> {
    let mut tables = Vec::new();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
        {
            let kernels = &avx512::TABLE;
            if is_x86_feature_detected!("avx512bf16") {
                if amx::is_available() {
                    tables.push(Tables { name: "amx", kernels, pairs: Some(&amx::AMX) });
                }
                tables.push(Tables { name: "avx512bf16", kernels, pairs: Some(&AVX512BF16) });
            }
            tables.push(Tables { name: "avx512", kernels, pairs: None });
        }
        tables.push(Tables { name: "avx2", kernels: &avx2::TABLE, pairs: None });
    }
    // The lanes of a big-endian processor are numbered the other way.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    if std::arch::is_aarch64_feature_detected!("neon")
        && std::arch::is_aarch64_feature_detected!("dotprod")
    {
        let kernels = &neon::TABLE;
        if std::arch::is_aarch64_feature_detected!("bf16") {
            tables.push(Tables { name: "neonbf16", kernels, pairs: Some(&NEONBF16) });
        }
        tables.push(Tables { name: "neon", kernels, pairs: None });
    }
    tables.push(Tables { name: "scalar", kernels: &scalar::TABLE, pairs: None });
    tables
}

/// `PUNA_ISA` names an instruction set that this processor or this build does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction set '{asked}' is not available here; this machine can run: {available}")]
pub struct UnknownIsa {
    /// The name asked for.
    pub asked: String,
    /// The names that can be asked for.
    pub available: String,
}

/// The table named by `isa`, else by the environment variable `PUNA_ISA`, else the best.
pub(crate) fn detect(isa: Option<&str>) -> Result<Tables, UnknownIsa> {
    let from_env = std::env::var("PUNA_ISA").ok().filter(|name| !name.is_empty());
    let tables = available();
    match isa.or(from_env.as_deref()) {
        None => Ok(tables[0]),
        Some(name) => tables.iter().find(|t| t.name == name).copied().ok_or_else(|| UnknownIsa {
            asked: name.to_owned(),
            available: tables.iter().map(|t| t.name).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Names of the instruction sets that this processor can run, best first.
pub fn names() -> Vec<&'static str> {
    available().iter().map(|t| t.name).collect()
}
