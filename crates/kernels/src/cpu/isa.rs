//! The instruction set: a dozen primitives that each ISA supplies, and the table of kernels made
//! from them.
//!
//! An algorithm is written once over [`Isa`] and is marked `#[inline(always)]`; `kernels!`
//! instantiates the whole list inside functions compiled for each instruction set. [`detect`]
//! picks a table once, at start.

use half::{bf16, f16};

use super::arch::scalar::Scalar;
use super::ops;

/// Vector primitives. A value of an `Isa` type is proof that the processor has its features.
pub(crate) trait Isa: Copy {
    /// A vector of [`Isa::LANES`] values.
    type F32: Copy;
    /// Values in a vector.
    const LANES: usize;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F32;
    /// The first `LANES` values of `src`; panics where it is shorter.
    fn load(self, src: &[f32]) -> Self::F32;
    /// Likewise, widened.
    fn load_f16(self, src: &[f16]) -> Self::F32;
    /// Likewise, widened.
    fn load_bf16(self, src: &[bf16]) -> Self::F32;
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
    (@declare { $($(#[$doc:meta])* $name:ident = $path:path: ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)* }) => {
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
        /// Multiply-adds in registers, and how many: see [`super::measure`].
        multiply_adds = super::measure::multiply_adds: (turns: usize) -> usize;
        /// `Σ a b`.
        dot_f32 = ops::vector::dot: (a: &[f32], b: &[f32]) -> f32;
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
