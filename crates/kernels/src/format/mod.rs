//! Weight formats: how a file's bytes encode a row of values. One file each.
//!
//! A format is a packed block struct with a size assertion and a `dequantize` that gives exactly
//! the values of the reference (ggml). A new format adds a file and one row to [`Format`]'s
//! tables; every backend, the model and the command then have it.

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
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
