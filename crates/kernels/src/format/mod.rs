//! Weight formats: how a file's bytes encode a row of values. One file each.
//!
//! A format is a packed block struct with a size assertion and a `dequantize` that gives exactly
//! the values of the reference (ggml). A new format adds a file and one row to [`Format`]'s
//! tables; every backend, the model and the command then have it.

#![deny(unsafe_code)]

pub mod bf16;
pub mod f16;
pub mod f32;
pub mod iq1_m;
pub mod iq1_s;
pub mod iq2_s;
pub mod iq2_xs;
pub mod iq2_xxs;
pub mod iq3_s;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod iq_grid;
pub mod mxfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod q8_k;
pub mod tq1_0;
pub mod tq2_0;

use bytemuck::Pod;

/// One block of a format as a file holds it: plain bytes, alignment 1, so that a row can be read
/// where it lies. Backends write their loops once over `B: Block`.
pub trait Block: Pod + Send + Sync {
    /// Which format.
    const FORMAT: Format;
    /// Weights in one block.
    const LEN: usize = Self::FORMAT.block_len();
    /// `[f32; LEN]`.
    type Values: Pod + AsRef<[f32]> + AsMut<[f32]>;

    /// The weights, bit-equal to ggml's reference. Inlined into its caller, so that it is
    /// compiled for the caller's instruction set.
    fn dequantize(&self, out: &mut Self::Values);

    /// The blocks of a row, not copied. Panics where `bytes` is not a whole number of blocks.
    #[inline(always)]
    fn row(bytes: &[u8]) -> &[Self] {
        bytemuck::cast_slice(bytes)
    }

    /// The weights of a row; `out` holds `LEN` values per block.
    #[inline(always)]
    fn dequantize_row(row: &[Self], out: &mut [f32]) {
        assert_eq!(Some(out.len()), row.len().checked_mul(Self::LEN), "{}", Self::FORMAT);
        for (block, out) in row.iter().zip(bytemuck::cast_slice_mut(out)) {
            block.dequantize(out);
        }
    }
}

/// Work written once over every [`Block`]; [`Format::visit`] does it for one format. The choice
/// is made outside the loop, once per call.
pub trait BlockVisitor {
    /// What the work gives.
    type Output;
    /// Does it for the format whose block is `B`.
    fn visit<B: Block>(self) -> Self::Output;
}

/// Whether the block's size, alignment and length are those of the format's row in the table.
const fn layout_is_right<B: Block>() -> bool {
    size_of::<B>() == B::FORMAT.block_bytes()
        && align_of::<B>() == 1
        && B::LEN == B::FORMAT.block_len()
        && size_of::<B::Values>() == B::LEN * size_of::<f32>()
}

/// An encoding of weights. Rows are whole numbers of blocks; blocks of one row are contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant's file says what it is")]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq4Nl,
    Iq4Xs,
    Tq1_0,
    Tq2_0,
    Mxfp4,
}

impl Format {
    /// Every format, in declaration order.
    pub const ALL: [Self; 26] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
        Self::Iq1S,
        Self::Iq1M,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq2S,
        Self::Iq3Xxs,
        Self::Iq3S,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Mxfp4,
    ];

    /// Name, weights per block, bytes per block.
    const fn row(self) -> (&'static str, usize, usize) {
        match self {
            Self::F32 => ("f32", 1, 4),
            Self::F16 => ("f16", 1, 2),
            Self::Bf16 => ("bf16", 1, 2),
            Self::Q4_0 => ("q4_0", 32, 18),
            Self::Q4_1 => ("q4_1", 32, 20),
            Self::Q5_0 => ("q5_0", 32, 22),
            Self::Q5_1 => ("q5_1", 32, 24),
            Self::Q8_0 => ("q8_0", 32, 34),
            Self::Q2K => ("q2_k", 256, 84),
            Self::Q3K => ("q3_k", 256, 110),
            Self::Q4K => ("q4_k", 256, 144),
            Self::Q5K => ("q5_k", 256, 176),
            Self::Q6K => ("q6_k", 256, 210),
            Self::Q8K => ("q8_k", 256, 292),
            Self::Iq1S => ("iq1_s", 256, 50),
            Self::Iq1M => ("iq1_m", 256, 56),
            Self::Iq2Xxs => ("iq2_xxs", 256, 66),
            Self::Iq2Xs => ("iq2_xs", 256, 74),
            Self::Iq2S => ("iq2_s", 256, 82),
            Self::Iq3Xxs => ("iq3_xxs", 256, 98),
            Self::Iq3S => ("iq3_s", 256, 110),
            Self::Iq4Nl => ("iq4_nl", 32, 18),
            Self::Iq4Xs => ("iq4_xs", 256, 136),
            Self::Tq1_0 => ("tq1_0", 256, 54),
            Self::Tq2_0 => ("tq2_0", 256, 66),
            Self::Mxfp4 => ("mxfp4", 32, 17),
        }
    }

    /// Lower-case name, as ggml spells it.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// Weights in one block.
    pub const fn block_len(self) -> usize {
        self.row().1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.row().2
    }

    /// Bytes of a row of `cols` weights; `None` where `cols` is not a whole number of blocks or
    /// the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Hands this format's block type to `visitor`.
    #[inline(always)]
    pub fn visit<V: BlockVisitor>(self, visitor: V) -> V::Output {
        match self {
            Self::F32 => visitor.visit::<f32::F32>(),
            Self::F16 => visitor.visit::<f16::F16>(),
            Self::Bf16 => visitor.visit::<bf16::Bf16>(),
            Self::Q4_0 => visitor.visit::<q4_0::Q4_0>(),
            Self::Q4_1 => visitor.visit::<q4_1::Q4_1>(),
            Self::Q5_0 => visitor.visit::<q5_0::Q5_0>(),
            Self::Q5_1 => visitor.visit::<q5_1::Q5_1>(),
            Self::Q8_0 => visitor.visit::<q8_0::Q8_0>(),
            Self::Q2K => visitor.visit::<q2_k::Q2K>(),
            Self::Q3K => visitor.visit::<q3_k::Q3K>(),
            Self::Q4K => visitor.visit::<q4_k::Q4K>(),
            Self::Q5K => visitor.visit::<q5_k::Q5K>(),
            Self::Q6K => visitor.visit::<q6_k::Q6K>(),
            Self::Q8K => visitor.visit::<q8_k::Q8K>(),
            Self::Iq1S => visitor.visit::<iq1_s::Iq1S>(),
            Self::Iq1M => visitor.visit::<iq1_m::Iq1M>(),
            Self::Iq2Xxs => visitor.visit::<iq2_xxs::Iq2Xxs>(),
            Self::Iq2Xs => visitor.visit::<iq2_xs::Iq2Xs>(),
            Self::Iq2S => visitor.visit::<iq2_s::Iq2S>(),
            Self::Iq3Xxs => visitor.visit::<iq3_xxs::Iq3Xxs>(),
            Self::Iq3S => visitor.visit::<iq3_s::Iq3S>(),
            Self::Iq4Nl => visitor.visit::<iq4_nl::Iq4Nl>(),
            Self::Iq4Xs => visitor.visit::<iq4_xs::Iq4Xs>(),
            Self::Tq1_0 => visitor.visit::<tq1_0::Tq1_0>(),
            Self::Tq2_0 => visitor.visit::<tq2_0::Tq2_0>(),
            Self::Mxfp4 => visitor.visit::<mxfp4::Mxfp4>(),
        }
    }

    /// The weights of whole blocks, bit-equal to ggml's reference. `bytes` holds any number of
    /// rows without gaps, `out` their `(rows, cols)` values: as many as the blocks encode, else
    /// it panics. Any bytes give some values.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.row_bytes(out.len()), Some(bytes.len()), "{self}: {} values", out.len());
        self.visit(Dequantize { bytes, out });
    }
}

struct Dequantize<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl BlockVisitor for Dequantize<'_> {
    type Output = ();

    fn visit<B: Block>(self) {
        B::dequantize_row(B::row(self.bytes), self.out);
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FormatOf;

    impl BlockVisitor for FormatOf {
        type Output = Format;

        fn visit<B: Block>(self) -> Format {
            B::FORMAT
        }
    }

    #[test]
    fn each_format_meets_its_own_block() {
        for format in Format::ALL {
            assert_eq!(format.visit(FormatOf), format);
        }
    }
}
