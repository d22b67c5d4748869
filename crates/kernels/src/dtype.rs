//! The number types that activations are rounded to and that caches hold. In: an `f32`, or a name
//! as checkpoints spell it. Out: the nearest value that the type holds, ties to even, as an `f32`;
//! the bytes of stored values; the name.

use half::{bf16, f16};

/// A floating-point type. Buffers always hold `f32`; a narrower type means that every value in
/// them is one that the type can represent, as if it had been stored in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one stored value.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// `value` rounded to the nearest one that the type holds, ties to even.
    #[inline]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// The name that PyTorch and `config.json` use: `float32`, `float16`, `bfloat16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Reads [`Dtype::name`], with or without a leading `torch.`, and the short spellings.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" | "float" | "f32" => Some(Self::F32),
            "float16" | "half" | "f16" => Some(Self::F16),
            "bfloat16" | "bf16" => Some(Self::Bf16),
            _ => None,
        }
    }
}

/// How a cache holds keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KvDtype {
    /// As [`Dtype::F32`].
    #[default]
    F32,
    /// As [`Dtype::F16`].
    F16,
    /// As [`Dtype::Bf16`].
    Bf16,
    /// Signed bytes, each 32 dimensions of a key or a value under one `f16` scale (the last of a
    /// head may be fewer): a quarter of the memory of `f32`, and an error of at most 0.4 % of the
    /// largest of the 32, where that lies between 0.01 and 8 million.
    Q8,
}

impl KvDtype {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8];

    /// Bytes of a key or a value of `head_dim` dimensions.
    pub const fn row_bytes(self, head_dim: usize) -> Option<usize> {
        match self {
            Self::F32 => head_dim.checked_mul(Dtype::F32.size()),
            Self::F16 | Self::Bf16 => head_dim.checked_mul(Dtype::F16.size()),
            Self::Q8 => head_dim.div_ceil(32).checked_mul(34),
        }
    }

    /// The name that [`KvDtype::from_name`] reads: `f32`, `f16`, `bf16`, `q8_0`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8_0",
        }
    }

    /// Reads [`KvDtype::name`], and what [`Dtype::from_name`] reads.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "q8_0" => Some(Self::Q8),
            _ => Dtype::from_name(name).map(Self::from),
        }
    }
}

impl From<Dtype> for KvDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}
