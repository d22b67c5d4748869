//! The instruction set: some forty primitives that each ISA supplies. An algorithm is written once
//! over `Isa` and is marked `#[inline(always)]`; [`kernels`](super::kernels) instantiates the whole
//! list inside functions compiled for each instruction set. What several places use, or what has
//! many variants, is a `Piece`: a function of its own in each table, for one giant takes the
//! compiler far longer than its parts.

use std::ops::Range;

use crate::Dtype;

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

/// Numbers of fifteen bits, `128 high + low`, four to an element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fours<'a, const N: usize> {
    /// Signed bytes.
    pub(crate) high: &'a [[u8; 4]; N],
    /// Signed bytes.
    pub(crate) low: &'a [[u8; 4]; N],
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
    /// `Σ_i codes[i] · (128 high[i] + low[i]) + add` as `f32`: the dot of the four bytes of each lane
    /// with four numbers, of at most eight. Codes are unsigned and at most `MAX`; `high` and `low`
    /// are signed and within `-127..=127`.
    fn dot<const MAX: i32, const N: usize>(
        self,
        codes: &[Self::Ints; N],
        x: Fours<'_, N>,
        add: i32,
    ) -> Self::F32;
    /// Likewise of codes of any size, each less [`Isa::BYTE_ZERO`].
    fn dot_bytes<const N: usize>(
        self,
        codes: &[Self::Ints; N],
        x: Fours<'_, N>,
        add: i32,
    ) -> Self::F32;

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

#[cfg(test)]
mod tests {
    use crate::cpu::arch::scalar::Scalar;
    use crate::cpu::kernels::names;
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
