//! The instruction set: some forty primitives that each ISA supplies, and the table of kernels
//! made from them. An algorithm is written once over `Isa` and is marked `#[inline(always)]`;
//! `kernels!` instantiates the whole list inside functions compiled for each instruction set. What
//! several places use, or what has many variants, is a `Piece`: a function of its own in each
//! table, for one giant takes the compiler far longer than its parts. `detect` picks a table once,
//! at start.

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
use super::product::Blocking;
use super::rect::Rect;
use super::weight::RowBytes;
use crate::{Activation, Dtype, Format};

/// Work that each instruction set compiles as a function of its own; see [`Isa::call`].
pub(crate) trait Piece {
    /// What it returns.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// A cache of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// The nearest; it has few places for what is on its way.
    First,
    /// The next.
    Second,
}

/// Vector primitives. A value of an `Isa` type is proof that the processor has its features.
pub(crate) trait Isa: Copy {
    /// A vector of [`Isa::LANES`] values.
    type F32: Copy;
    /// A vector of [`Isa::LANES`] dwords: whole numbers, or four bytes of a row each.
    type Ints: Copy;
    /// Values in a vector.
    const LANES: usize;
    /// Whether the sums of four rows fit in registers beside what they are made of; else dots of
    /// few rows take one row at a time, and less code.
    const FOUR_ROWS: bool;
    /// Whether there are thirty-two vector registers, and not sixteen.
    const MANY_REGISTERS: bool;
    /// What [`Isa::dot_bytes`] takes from each code.
    const BYTE_ZERO: i32;

    /// Calls `piece` without inlining it, in a function compiled for this instruction set.
    fn call<P: Piece>(self, piece: P) -> P::Output;

    /// Asks for the cache lines of the bytes `range` of `src`, which may lie beyond its end, to
    /// `cache`. Changes nothing but the time.
    #[inline(always)]
    fn prefetch(self, _cache: Cache, _src: &[u8], _range: Range<usize>) {}

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F32;
    /// The first `LANES` values of `src`; panics where it is shorter.
    fn load(self, src: &[f32]) -> Self::F32;
    /// The first `4 * LANES` bytes of `src`, at any address, as little-endian `f32`.
    fn load_f32_bytes(self, src: &[u8]) -> Self::F32;
    /// The first `2 * LANES` bytes, at any address, as little-endian `f16`, widened.
    fn load_f16_bytes(self, src: &[u8]) -> Self::F32;
    /// Likewise, as `bf16`.
    fn load_bf16_bytes(self, src: &[u8]) -> Self::F32;
    /// Writes to the first `LANES` values of `dst`; panics where it is shorter.
    fn store(self, v: Self::F32, dst: &mut [f32]);
    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a b + c`, rounded once where the machine can, else twice.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Square root, rounded once.
    fn sqrt(self, v: Self::F32) -> Self::F32;
    /// `x` in the lanes where `a > b`, else `y`.
    fn select_gt(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32;
    /// Rounded to the nearest value that an `f16` holds, ties to even.
    fn round_f16(self, v: Self::F32) -> Self::F32;
    /// Rounded to the nearest value that a `bf16` holds, ties to even.
    fn round_bf16(self, v: Self::F32) -> Self::F32;
    /// Nearest integer, ties to even.
    fn round(self, v: Self::F32) -> Self::F32;
    /// `2^n` for integral `n` in `-126..=127`.
    fn exp2_int(self, n: Self::F32) -> Self::F32;
    /// Sum of the lanes, in one fixed order.
    fn reduce_sum(self, v: Self::F32) -> f32;
    /// Largest lane.
    fn reduce_max(self, v: Self::F32) -> f32;
    /// Rounded to what `dtype` holds.
    #[inline(always)]
    fn round_to(self, dtype: Dtype, v: Self::F32) -> Self::F32 {
        match dtype {
            Dtype::F32 => v,
            Dtype::F16 => self.round_f16(v),
            Dtype::Bf16 => self.round_bf16(v),
        }
    }

    /// Eight columns of eight rows, `from` apart in `src`, to rows `to` apart in `dst`.
    fn transpose(self, src: &[f32], from: usize, dst: &mut [f32], to: usize);

    /// All lanes `value`.
    fn splat_int(self, value: i32) -> Self::Ints;
    /// The first `4 * LANES` bytes of `src`, at any address.
    fn load_ints(self, src: &[u8]) -> Self::Ints;
    /// The first `LANES` bytes of `src`, signed, as `f32`.
    fn load_signed_bytes(self, src: &[u8]) -> Self::F32;
    /// The first `LANES` bytes of `src`, one to a dword.
    fn load_wide_bytes(self, src: &[u8]) -> Self::Ints;
    /// The low and the high halves of the first `LANES` bytes of `src`, as `f32`.
    fn load_halves_of_bytes(self, src: &[u8]) -> (Self::F32, Self::F32);
    /// Bits `FROM..FROM + N` of each byte, moved to its bottom.
    fn bits<const FROM: i32, const N: i32>(self, v: Self::Ints) -> Self::Ints;
    /// `a`, and at bit `TO` of each byte, where `a` has none, bits `FROM..FROM + N` of `b`.
    fn or_bits<const FROM: i32, const TO: i32, const N: i32>(
        self,
        a: Self::Ints,
        b: Self::Ints,
    ) -> Self::Ints;
    /// `table[v] + 128` for bytes below 16.
    fn look_up(self, table: &[i8; 16], v: Self::Ints) -> Self::Ints;
    /// Byte `N` of each dword as `f32`.
    fn byte<const N: i32>(self, v: Self::Ints) -> Self::F32;
    /// Thirty-two integral values in `-127..=127` as signed bytes.
    fn narrow(self, src: &[f32; 32], dst: &mut [u8; 32]);
    /// `Σ_i codes[i] · x[i]`, the dot of the four bytes of each lane with those of `x[i]`, of at
    /// most eight. Codes are unsigned and at most `MAX`, `x` is signed and within `-127..=127`.
    fn dot<const MAX: i32, const N: usize>(
        self,
        codes: &[Self::Ints; N],
        x: &[[u8; 4]; N],
    ) -> Self::Ints;
    /// Likewise of codes of any size, each less [`Isa::BYTE_ZERO`].
    fn dot_bytes<const N: usize>(self, codes: &[Self::Ints; N], x: &[[u8; 4]; N]) -> Self::Ints;
    /// `128 high + low + add` as `f32`.
    fn combine(self, high: Self::Ints, low: Self::Ints, add: i32) -> Self::F32;

    /// `v 2^n` for integral `n` in `-252..=254`, rounded once where it is subnormal.
    #[inline(always)]
    fn scale_exp2(self, v: Self::F32, n: Self::F32) -> Self::F32 {
        let half = self.round(self.mul(n, self.splat(0.5)));
        self.mul(self.mul(v, self.exp2_int(half)), self.exp2_int(self.sub(n, half)))
    }

    /// `e^x` within 2 ulp; 0 below -104, infinity above 88.8, NaN for NaN.
    #[inline(always)]
    fn exp(self, x: Self::F32) -> Self::F32 {
        let x = self.max(self.splat(-105.0), self.min(self.splat(89.0), x));
        let (n, p) = exp_parts(self, x);
        self.scale_exp2(self.add(p, self.splat(1.0)), n)
    }

    /// `e^x - 1` for `-80 <= x <= 80`, without loss near 0: within 4 ulp. Outside it is clamped
    /// to the value at the border.
    #[inline(always)]
    fn exp_m1(self, x: Self::F32) -> Self::F32 {
        let x = self.max(self.splat(-80.0), self.min(self.splat(80.0), x));
        let (n, p) = exp_parts(self, x);
        let power = self.exp2_int(n);
        self.fma(power, p, self.sub(power, self.splat(1.0)))
    }
}

/// `n` and `e^r - 1` of `x = n ln 2 + r`, `|r| <= ln 2 / 2`.
#[inline(always)]
fn exp_parts<I: Isa>(isa: I, x: I::F32) -> (I::F32, I::F32) {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Minimax coefficients of (e^r - 1 - r) / r² over the reduced range, from r^5 down to 1.
    const POLY: [f32; 6] =
        [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let n = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
    let r = isa.fma(n, isa.splat(-LN2_HI), x);
    let r = isa.fma(n, isa.splat(-LN2_LO), r);
    let mut p = isa.splat(POLY[0]);
    for c in &POLY[1..] {
        p = isa.fma(p, r, isa.splat(*c));
    }
    (n, isa.fma(p, isa.mul(r, r), r))
}

/// Instruction sets that multiply `bf16` values two at a time. A word is the 32 bits of a pair: the
/// first value in the low half, as memory holds two neighbours. Words travel as `f32`.
pub(crate) trait PairIsa: Isa {
    /// `low` and `high`, each rounded to the nearest `bf16`, ties to even, as words.
    fn pair(self, low: Self::F32, high: Self::F32) -> Self::F32;
    /// The first `2 * LANES` values of `src` as words of neighbours.
    fn pair_up(self, src: &[f32]) -> Self::F32;
    /// `sum + a_low b_low + a_high b_high` of each lane; subnormal values may count as zeros.
    fn dot_pairs(self, a: Self::F32, b: Self::F32, sum: Self::F32) -> Self::F32;
}

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
        /// Packed blocks of sixteen rows as a panel of words.
        packed_panel = ops::panel::pairs_from_packed:
            (format: Format, blocks: &[u8], panel: &mut [f32]);
        /// [`Kernels::multiply`] of words.
        multiply = ops::panel::multiply_pairs: (
            a: &[f32], panels: &[f32], start: Start, c: &mut Rect<'_, f32>
        );
    }
}

/// How a processor multiplies `bf16` pairs.
#[derive(Debug)]
pub(crate) struct Pairs {
    /// Name of the path in a plan.
    pub(crate) path: &'static str,
    pub(crate) kernels: &'static PairKernels,
    /// How operands are cut for these kernels.
    pub(crate) blocking: Blocking,
    /// Rows up to which whole-number dots of packed weights are faster.
    pub(crate) few_integer: usize,
    /// Likewise `f32` dots of `bf16` weights.
    pub(crate) few_float: usize,
}

/// Pairs in vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const fn in_vectors(kernels: &'static PairKernels) -> Pairs {
    Pairs {
        path: "bf16 pair panels",
        kernels,
        blocking: super::product::VECTORS,
        few_integer: super::linear::FEW_INTEGER,
        few_float: super::linear::FEW_FLOAT,
    }
}

#[cfg(target_arch = "x86_64")]
static AVX512BF16: Pairs = in_vectors(&avx512bf16::TABLE);

#[cfg(target_arch = "aarch64")]
static NEONBF16: Pairs = in_vectors(&neonbf16::TABLE);

/// Pairs in tiles.
#[cfg(target_arch = "x86_64")]
static AMX: Pairs = Pairs {
    path: "bf16 pair tiles",
    kernels: &AMX_KERNELS,
    blocking: amx::BLOCKING,
    few_integer: amx::FEW_INTEGER,
    few_float: amx::FEW_FLOAT,
};

#[cfg(target_arch = "x86_64")]
static AMX_KERNELS: PairKernels =
    PairKernels { multiply_adds: amx::multiply_adds, multiply: amx::multiply, ..avx512bf16::TABLE };

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
                    tables.push(Tables { name: "amx", kernels, pairs: Some(&AMX) });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::ops::vector::exp_sum;

    /// `e^x` of each value by the instruction set's own code.
    fn exp(isa: &str, x: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if isa == "avx2" {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn inner(x: &mut [f32]) {
                exp_sum(crate::cpu::arch::x86_64::avx2::Avx2::assume(), x, 0.0);
            }
            // SAFETY: the name came from `names`, which saw the features.
            unsafe { inner(x) };
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if isa.starts_with("avx512") || isa == "amx" {
            #[target_feature(
                enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
            )]
            fn inner(x: &mut [f32]) {
                exp_sum(crate::cpu::arch::x86_64::avx512::Avx512::assume(), x, 0.0);
            }
            // SAFETY: the name came from `names`, which saw the features.
            unsafe { inner(x) };
            return;
        }
        #[cfg(target_arch = "aarch64")]
        if isa.starts_with("neon") {
            #[target_feature(enable = "neon,dotprod")]
            fn inner(x: &mut [f32]) {
                exp_sum(crate::cpu::arch::aarch64::neon::Neon::assume(), x, 0.0);
            }
            // SAFETY: the name came from `names`, which saw the features.
            unsafe { inner(x) };
            return;
        }
        assert_eq!(isa, "scalar", "an instruction set without a case");
        exp_sum(Scalar, x, 0.0);
    }

    /// Every 6101st `f32` between -104 and 88.7: some 360 thousand values.
    #[test]
    fn exp_is_within_two_ulp() {
        for isa in names() {
            let mut worst = (0.0, 0.0);
            let negative = (1u32 << 31..(-104.0f32).to_bits()).step_by(6101);
            let bits: Vec<u32> = (0..88.7f32.to_bits()).step_by(6101).chain(negative).collect();
            for bits in bits.chunks(4096) {
                let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
                let mut y = x.clone();
                exp(isa, &mut y);
                for (x, y) in x.iter().zip(&y) {
                    let exact = f64::from(*x).exp();
                    let nearest = (exact as f32).max(f32::from_bits(1));
                    let ulp = f64::from(nearest.next_up()) - f64::from(nearest);
                    let error = (f64::from(*y) - exact).abs() / ulp;
                    worst = if error > worst.0 { (error, *x) } else { worst };
                }
            }
            assert!(worst.0 <= 2.0, "{isa}: {} ulp at {}", worst.0, worst.1);
        }
    }

    #[test]
    fn exp_saturates() {
        let x = [f32::NEG_INFINITY, f32::MIN, -104.5, 88.9, f32::MAX, f32::INFINITY, f32::NAN, 0.0];
        for isa in names() {
            let mut y = x;
            exp(isa, &mut y);
            assert_eq!(y[..3], [0.0; 3], "{isa}");
            assert_eq!(y[3..6], [f32::INFINITY; 3], "{isa}");
            assert!(y[6].is_nan() && y[7] == 1.0, "{isa}");
        }
    }
}
