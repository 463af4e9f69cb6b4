//! What is known of a tensor before its bytes are read.

use std::fmt;

use crate::dtype::DType;

/// The number format of a stored tensor.
///
/// Checkpoints carry integer buffers (`position_ids`) and now and then double precision. They
/// are listed, and refused only when read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredDType {
    /// A format that moeshard reads.
    Float(DType),
    /// Any other format, as the file spells it.
    Other(String),
}

impl StoredDType {
    /// The format, if it can be read.
    pub fn float(&self) -> Option<DType> {
        match self {
            Self::Float(dtype) => Some(*dtype),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for StoredDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => dtype.fmt(f),
            Self::Other(name) => f.pad(name),
        }
    }
}

/// The format and shape of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The stored format.
    pub dtype: StoredDType,
    /// The size of every axis, outermost first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// How many numbers the tensor holds. Opening a checkpoint has checked that it fits.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}
