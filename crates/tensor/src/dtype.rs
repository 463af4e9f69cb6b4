//! The number formats that weights and activations may have.

use std::fmt;
use std::str::FromStr;

/// A floating-point format that moeshard computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// IEEE 754 half precision, 2 bytes.
    F16,
    /// The upper half of an `F32`, 2 bytes.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        })
    }
}

/// A name that is none of the formats of [`DType`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a dtype of float32 (f32), float16 (f16) or bfloat16 (bf16), found {found:?}")]
pub struct ParseDTypeError {
    /// What was given.
    pub found: String,
}

impl FromStr for DType {
    type Err = ParseDTypeError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "f32" | "float32" => Ok(Self::F32),
            "f16" | "float16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::BF16),
            _ => Err(ParseDTypeError { found: name.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_and_the_display_form_is_one_of_them() {
        for (name, want) in [
            ("f32", DType::F32),
            ("Float32", DType::F32),
            ("F16", DType::F16),
            ("float16", DType::F16),
            ("BF16", DType::BF16),
            ("bfloat16", DType::BF16),
        ] {
            assert_eq!(name.parse(), Ok(want));
            assert_eq!(want.to_string().parse(), Ok(want));
        }
        let err = "int8".parse::<DType>().unwrap_err().to_string();
        assert!(err.contains("int8") && err.contains("bf16"), "{err}");
    }
}
