//! The number types that activations and caches are rounded to. In: an `f32`, or a name as
//! checkpoints spell it. Out: the nearest value that the type holds, ties to even, as an `f32`;
//! the bytes of a stored value; the name.

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
