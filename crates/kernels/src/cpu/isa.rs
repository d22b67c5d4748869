//! The instruction set: a dozen primitives that each ISA supplies, and the table of kernels made
//! from them.
//!
//! An algorithm is written once over [`Isa`] and is marked `#[inline(always)]`; `kernels!`
//! instantiates the whole list inside functions compiled for each instruction set. [`detect`]
//! picks a table once, at start.

use super::arch::scalar::Scalar;
use super::ops;
use super::ops::activations::Int8Rows;
use super::ops::panel::Start;
use super::weight::RowBytes;
use crate::Format;

/// Vector primitives. A value of an `Isa` type is proof that the processor has its features.
pub(crate) trait Isa: Copy {
    /// A vector of [`Isa::LANES`] values.
    type F32: Copy;
    /// Thirty-two bytes, signed or not: one group of quantised weights or activations.
    type Bytes: Copy;
    /// Values in a vector.
    const LANES: usize;

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
    /// Nearest integer, ties to even.
    fn round(self, v: Self::F32) -> Self::F32;
    /// `2^n` for integral `n` in `-126..=127`.
    fn exp2_int(self, n: Self::F32) -> Self::F32;
    /// Sum of the lanes, in one fixed order.
    fn reduce_sum(self, v: Self::F32) -> f32;
    /// Largest lane.
    fn reduce_max(self, v: Self::F32) -> f32;

    /// Value of the binary16 whose bits are `bits`.
    fn f16(self, bits: u16) -> f32;
    /// The lower half of the lanes `low`, the upper half `high`.
    fn splat_halves(self, low: f32, high: f32) -> Self::F32;

    /// All bytes `value`.
    fn splat_byte(self, value: u8) -> Self::Bytes;
    /// Thirty-two bytes.
    fn load_bytes(self, src: &[u8; 32]) -> Self::Bytes;
    /// The low halves of sixteen bytes, then their high halves: numbers below 16.
    fn load_nibbles(self, src: &[u8; 16]) -> Self::Bytes;
    /// Byte `i` is 255 where bit `i` is set, else 0.
    fn expand_bits(self, bits: u32) -> Self::Bytes;
    /// Bits that are set in both.
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Bits that are set in either.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte moved `N` bits down, zeros following.
    fn shift_down<const N: i32>(self, v: Self::Bytes) -> Self::Bytes;
    /// Each byte, which must stay below 256, moved `N` bits up.
    fn shift_up<const N: i32>(self, v: Self::Bytes) -> Self::Bytes;
    /// 255 where the bytes are equal, else 0.
    fn equal(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// `table[v]` for bytes below 16.
    fn look_up(self, table: &[i8; 16], v: Self::Bytes) -> Self::Bytes;
    /// Thirty-two integral values in `-127..=127` as signed bytes.
    fn narrow(self, src: &[f32; 32], dst: &mut [u8; 32]);
    /// `Σ u s` of unsigned and signed bytes in `LANES` partial sums, exact where `u <= 127`; the
    /// lower half of the lanes sums the first sixteen products, the upper half the others.
    fn dot_unsigned(self, u: Self::Bytes, s: Self::Bytes) -> Self::F32;
    /// Likewise of signed bytes `a` and signed bytes `b` in `-127..=127`.
    fn dot_signed(self, a: Self::Bytes, b: Self::Bytes) -> Self::F32;

    /// `e^x` within 2 ulp; 0 below -104, infinity above 88.8, NaN for NaN.
    ///
    /// `x = n ln 2 + r`, `|r| <= ln 2 / 2`, a polynomial in `r`, then `2^n` in two factors so
    /// that neither leaves the exponent's range.
    #[inline(always)]
    fn exp(self, x: Self::F32) -> Self::F32 {
        const LN2_HI: f32 = 0.693_359_4;
        const LN2_LO: f32 = -2.121_944_4e-4;
        // Minimax coefficients of e^r - 1 - r over the reduced range, from r^7 down to r^2.
        const POLY: [f32; 6] =
            [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
        let x = self.max(self.splat(-105.0), self.min(self.splat(89.0), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-LN2_HI), x);
        let r = self.fma(n, self.splat(-LN2_LO), r);
        let mut p = self.splat(POLY[0]);
        for c in &POLY[1..] {
            p = self.fma(p, r, self.splat(*c));
        }
        let y = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        let half = self.round(self.mul(n, self.splat(0.5)));
        self.mul(self.mul(y, self.exp2_int(half)), self.exp2_int(self.sub(n, half)))
    }
}

/// Declares [`Kernels`] and one static table per instruction set.
///
/// Each kernel is a generic function over [`Isa`] that takes the token first.
macro_rules! kernels {
    (isas: [$($isa:tt)*], kernels: $list:tt) => {
        kernels!(@declare $list);
        $(kernels!(@table $isa $list);)*
    };
    (@declare { $($(#[$doc:meta])* $name:ident = $path:path: ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;)* }) => {
        /// The kernels of one instruction set.
        #[derive(Debug)]
        pub(crate) struct Kernels {
            /// Name that `PUNA_ISA` selects it by.
            pub(crate) isa: &'static str,
            $($(#[$doc])* pub(crate) $name: fn($($ty),*) $(-> $ret)?,)*
        }
    };
    (@table ($table:ident, $token:expr, $isa:literal, $features:meta, $arch:meta)
        { $($(#[$doc:meta])* $name:ident = $path:path: ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)* }) => {
        #[$arch]
        pub(crate) static $table: Kernels = {
            $(
                #[allow(unused_unsafe, reason = "the portable table needs no features")]
                fn $name($($arg: $ty),*) $(-> $ret)? {
                    #[$features]
                    fn inner($($arg: $ty),*) $(-> $ret)? {
                        $path($token, $($arg),*)
                    }
                    // SAFETY: `available` hands out a table only after it has seen every feature
                    // that the table names.
                    unsafe { inner($($arg),*) }
                }
            )*
            Kernels { isa: $isa, $($name,)* }
        };
    };
}

kernels! {
    isas: [
        (SCALAR, Scalar, "scalar", inline, cfg(all()))
        (
            AVX2,
            super::arch::x86_64::avx2::Avx2::assume(),
            "avx2",
            target_feature(enable = "avx2,fma,f16c"),
            cfg(target_arch = "x86_64")
        )
    ],
    kernels: {
        /// `Σ a b`.
        dot_f32 = ops::vector::dot: (a: &[f32], b: &[f32]) -> f32;
        /// The weights of whole blocks as `f32`.
        dequantize = ops::panel::dequantize: (format: Format, bytes: &[u8], out: &mut [f32]);
        /// Rows of activations as signed bytes with a scale for each 32.
        quantize_rows = ops::activations::quantize: (x: &[f32], cols: usize, out: &mut Int8Rows);
        /// A few rows of int8 activations against rows of quantised weights.
        dot_int8 = ops::dot_int8::rows: (
            weights: RowBytes<'_>, x: &Int8Rows, first: usize, y: &mut [&mut [f32]]
        );
        /// A few rows of activations against rows of `f32`, `f16` or `bf16` weights.
        dot_float = ops::dot_float::rows: (
            weights: RowBytes<'_>, x: &[f32], y: &mut [&mut [f32]]
        );
        /// Adds a strip of packed rows times packed panels to its tile of a product.
        multiply = ops::panel::multiply: (
            a: &[f32], panels: &[f32], start: Start, c: &mut [&mut [f32]]
        );
    }
}

/// The tables that this processor can run, best first.
fn available() -> Vec<&'static Kernels> {
    let mut tables = Vec::new();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
    {
        tables.push(&AVX2);
    }
    tables.push(&SCALAR);
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
pub(crate) fn detect(isa: Option<&str>) -> Result<&'static Kernels, UnknownIsa> {
    let from_env = std::env::var("PUNA_ISA").ok().filter(|name| !name.is_empty());
    let tables = available();
    match isa.or(from_env.as_deref()) {
        None => Ok(tables[0]),
        Some(name) => tables.iter().find(|t| t.isa == name).copied().ok_or_else(|| UnknownIsa {
            asked: name.to_owned(),
            available: tables.iter().map(|t| t.isa).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Names of the instruction sets that this processor can run, best first.
pub fn names() -> Vec<&'static str> {
    available().iter().map(|t| t.isa).collect()
}
