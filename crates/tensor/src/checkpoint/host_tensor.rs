//! A tensor, or a slice of one, in host memory.

use std::borrow::Cow;

use bytemuck::{cast_slice, try_cast_slice};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::dtype::DType;

/// Numbers in row-major order, still in the format they were stored in.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor<'a> {
    /// The format of `data`.
    pub dtype: DType,
    /// The size of every axis, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian numbers without padding; borrowed from the file where the slice is
    /// contiguous there, and then of any alignment.
    pub data: Cow<'a, [u8]>,
}

impl HostTensor<'_> {
    /// How many numbers the tensor holds.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Widens every number to f32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => words4(&self.data).map(f32::from_bits).collect(),
            DType::BF16 => words2(&self.data)
                .map(|bits| f32::from_bits(u32::from(bits) << 16))
                .collect(),
            DType::F16 => f16_to_f32(&self.data),
        }
    }

    /// The index, in row-major order, of the first NaN or infinity.
    pub fn first_non_finite(&self) -> Option<usize> {
        match self.dtype {
            DType::F32 => first_masked(&self.data, |word| {
                u32::from_le_bytes(word) & 0x7f80_0000 == 0x7f80_0000
            }),
            DType::BF16 => first_masked(&self.data, |word| {
                u16::from_le_bytes(word) & 0x7f80 == 0x7f80
            }),
            DType::F16 => first_masked(&self.data, |word| {
                u16::from_le_bytes(word) & 0x7c00 == 0x7c00
            }),
        }
    }
}

impl HostTensor<'static> {
    /// A tensor of f32 that owns a copy of `values`.
    ///
    /// # Panics
    /// If `values` is not as long as `shape` says.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: &[f32]) -> Self {
        let shape = shape.into();
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "{shape:?} does not describe {} values",
            values.len()
        );
        let bits: Vec<[u8; 4]> = values.iter().map(|v| v.to_le_bytes()).collect();
        Self {
            dtype: DType::F32,
            shape,
            data: Cow::Owned(cast_slice(&bits).to_vec()),
        }
    }
}

/// The little-endian 4-byte words of `data`, whatever its alignment.
fn words4(data: &[u8]) -> impl Iterator<Item = u32> {
    data.as_chunks::<4>()
        .0
        .iter()
        .map(|w| u32::from_le_bytes(*w))
}

/// The little-endian 2-byte words of `data`, whatever its alignment.
fn words2(data: &[u8]) -> impl Iterator<Item = u16> {
    data.as_chunks::<2>()
        .0
        .iter()
        .map(|w| u16::from_le_bytes(*w))
}

/// Converts through `half`, which uses the processor's own instruction where there is one.
///
/// Bytes that are not aligned go through a small aligned buffer.
fn f16_to_f32(data: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; data.len() / 2];
    if cfg!(target_endian = "little")
        && let Ok(halves) = try_cast_slice::<u8, f16>(data)
    {
        halves.convert_to_f32_slice(&mut out);
        return out;
    }
    const BLOCK: usize = 2048;
    let mut aligned = [f16::ZERO; BLOCK];
    for (bytes, out) in data.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
        let aligned = &mut aligned[..out.len()];
        for (half, bits) in aligned.iter_mut().zip(words2(bytes)) {
            *half = f16::from_bits(bits);
        }
        aligned.convert_to_f32_slice(out);
    }
    out
}

/// The index of the first `N`-byte word of `data` for which `is_bad` holds.
///
/// Whole blocks are tested without a branch, which the compiler turns into vector code; only a
/// block with a hit is searched word by word.
fn first_masked<const N: usize>(data: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let words = data.as_chunks::<N>().0;
    for (block_idx, block) in words.chunks(BLOCK).enumerate() {
        if block.iter().fold(false, |bad, word| bad | is_bad(*word)) {
            let within = block.iter().position(|word| is_bad(*word))?;
            return Some(block_idx * BLOCK + within);
        }
    }
    None
}
