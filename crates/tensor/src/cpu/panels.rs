//! Weight matrices in the layout that the matrix product reads.
//!
//! A matrix `[n_out, n_in]` is cut into panels of sixteen outputs. A panel stores, for each step of
//! one or two inputs ([`Element::STEP`]), its sixteen outputs' weights side by side, zero past
//! `n_out` and `n_in`. The product then reads every panel from front to back.

use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};

use super::lanes::LANES;
use super::pages::{Memory, zeroed};
use super::parallel::Parallel;
use crate::checkpoint::HostTensor;
use crate::device::{DeviceError, HostMatrix, MatrixLayout, Result};
use crate::dtype::DType;

/// An element type of packed weights.
pub(crate) trait Element:
    Copy + Default + bytemuck::Zeroable + Send + Sync + 'static
{
    /// Consecutive inputs that lie side by side.
    const STEP: usize;

    fn from_f32(x: f32) -> Self;
    fn is_finite(self) -> bool;
    /// The panels of a matrix that holds this type.
    fn panels(matrix: &Matrix) -> Option<&Panels<Self>>;
}

macro_rules! element {
    ($element:ty, $step:literal, $variant:ident, $from_f32:expr) => {
        impl Element for $element {
            const STEP: usize = $step;

            fn from_f32(x: f32) -> Self {
                $from_f32(x)
            }
            fn is_finite(self) -> bool {
                self.is_finite()
            }
            fn panels(matrix: &Matrix) -> Option<&Panels<Self>> {
                match &matrix.0 {
                    Packed::$variant(panels) => Some(panels),
                    _ => None,
                }
            }
        }
    };
}

element!(f32, 1, F32, |x| x);
// As the instruction that multiplies pairs wants them.
element!(bf16, 2, Bf16, bf16::from_f32);
element!(f16, 1, F16, f16::from_f32);

/// A packed matrix of one element type.
#[derive(Debug)]
pub(crate) struct Panels<E> {
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    /// `[n_panels, n_steps, 16, STEP]`
    data: Memory<E>,
}

impl<E: Element> Panels<E> {
    pub(crate) fn n_panels(&self) -> usize {
        self.n_out.div_ceil(LANES)
    }

    /// Inputs, in groups of `STEP`.
    pub(crate) fn n_steps(&self) -> usize {
        self.n_in.div_ceil(E::STEP)
    }

    /// `[n_steps, 16, STEP]`
    #[inline(always)]
    pub(crate) fn panel(&self, panel_idx: usize) -> &[E] {
        let size = self.n_steps() * LANES * E::STEP;
        &self.data[panel_idx * size..][..size]
    }

    /// `[panels, n_steps, 16, STEP]`
    pub(crate) fn several(&self, panels: std::ops::Range<usize>) -> &[E] {
        let size = self.n_steps() * LANES * E::STEP;
        &self.data[panels.start * size..panels.end * size]
    }

    pub(crate) fn n_bytes(&self) -> usize {
        size_of_val(&*self.data)
    }

    /// Packs matrices stacked along `n_out`, panels in parallel.
    fn pack(parts: &[HostMatrix<'_>], dtype: DType, parallel: &Parallel) -> Result<Self> {
        let n_in = parts.first().map_or(0, HostMatrix::n_in);
        let n_out: usize = parts.iter().map(HostMatrix::n_out).sum();
        let size = n_in.div_ceil(E::STEP) * LANES * E::STEP;
        let data = zeroed(n_out.div_ceil(LANES) * size);
        let mut panels = Self { n_out, n_in, data };
        let mut starts = vec![0];
        for part in parts {
            starts.push(starts[starts.len() - 1] + part.n_out());
        }
        let finite = AtomicBool::new(true);
        parallel.for_each_chunk(&mut panels.data, size.max(1), |panel_idx, panel| {
            let rows = panel_idx * LANES..n_out.min((panel_idx + 1) * LANES);
            for (part, &start) in parts.iter().zip(&starts) {
                let from = rows.start.max(start);
                let to = rows.end.min(start + part.n_out());
                if from < to {
                    pack_panel(part, from - start..to - start, from - rows.start, panel);
                }
            }
            if !all_finite(panel) {
                finite.store(false, Ordering::Relaxed);
            }
        });
        match finite.into_inner() {
            true => Ok(panels),
            false => Err(find_non_finite(parts.iter().map(|p| &p.tensor), dtype)),
        }
    }
}

/// Whether every number is one. Without an early exit, the loop is vectorised.
pub(crate) fn all_finite<E: Element>(numbers: &[E]) -> bool {
    numbers.iter().fold(true, |all, x| all & x.is_finite())
}

/// The error for `tensors`, of which one is not finite in `dtype`.
pub(crate) fn find_non_finite<'a>(
    tensors: impl Iterator<Item = &'a HostTensor<'a>>,
    dtype: DType,
) -> DeviceError {
    let tensors = tensors.enumerate();
    let mut found = tensors.filter_map(|(i, tensor)| Some((i, tensor.first_non_finite()?)));
    let (part_idx, element_idx) = found.next().map_or((0, None), |(i, at)| (i, Some(at)));
    DeviceError::NotFinite {
        part_idx,
        element_idx,
        dtype,
    }
}

/// Copies outputs `outs` of `part` into lanes `lane ..` of one panel.
fn pack_panel<E: Element>(
    part: &HostMatrix<'_>,
    outs: std::ops::Range<usize>,
    lane: usize,
    panel: &mut [E],
) {
    let (n_in, n_out) = (part.n_in(), part.n_out());
    let at = |inp: usize, lane: usize| (inp / E::STEP * LANES + lane) * E::STEP + inp % E::STEP;
    match part.layout {
        MatrixLayout::OutIn => {
            let mut row = vec![0.0; n_in];
            for (i, out) in outs.enumerate() {
                read_run(&part.tensor, out * n_in, &mut row);
                for (inp, &x) in row.iter().enumerate() {
                    panel[at(inp, lane + i)] = E::from_f32(x);
                }
            }
        }
        MatrixLayout::InOut => {
            let mut run = vec![0.0; outs.len()];
            for inp in 0..n_in {
                read_run(&part.tensor, inp * n_out + outs.start, &mut run);
                for (i, &x) in run.iter().enumerate() {
                    panel[at(inp, lane + i)] = E::from_f32(x);
                }
            }
        }
    }
}

/// Widens `to.len()` consecutive numbers of a tensor, whose bytes may have any alignment.
pub(crate) fn read_run(tensor: &HostTensor<'_>, first: usize, to: &mut [f32]) {
    let size = tensor.dtype.size();
    let bytes = &tensor.data[first * size..][..to.len() * size];
    let halves = || {
        bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
    };
    match tensor.dtype {
        DType::F32 => to
            .iter_mut()
            .zip(bytes.as_chunks::<4>().0)
            .for_each(|(x, b)| *x = f32::from_le_bytes(*b)),
        DType::BF16 => to
            .iter_mut()
            .zip(halves())
            .for_each(|(x, b)| *x = f32::from_bits(u32::from(b) << 16)),
        DType::F16 => {
            to.iter_mut()
                .zip(halves())
                .for_each(|(x, b)| *x = f16::from_bits(b).to_f32());
        }
    }
}

/// A packed weight matrix of any element type.
#[derive(Debug)]
pub struct Matrix(pub(crate) Packed);

#[derive(Debug)]
pub(crate) enum Packed {
    F32(Panels<f32>),
    Bf16(Panels<bf16>),
    F16(Panels<f16>),
}

/// Runs `$body` with `$panels` bound to the panels of whichever type.
macro_rules! with_panels {
    ($matrix:expr, $panels:ident => $body:expr) => {
        match &$matrix.0 {
            Packed::F32($panels) => $body,
            Packed::Bf16($panels) => $body,
            Packed::F16($panels) => $body,
        }
    };
}

impl Matrix {
    /// Packs matrices stacked along `n_out`, as `dtype`.
    pub(crate) fn pack(
        dtype: DType,
        parts: &[HostMatrix<'_>],
        parallel: &Parallel,
    ) -> Result<Self> {
        Ok(Self(match dtype {
            DType::F32 => Packed::F32(Panels::pack(parts, dtype, parallel)?),
            DType::BF16 => Packed::Bf16(Panels::pack(parts, dtype, parallel)?),
            DType::F16 => Packed::F16(Panels::pack(parts, dtype, parallel)?),
        }))
    }

    /// Number of outputs.
    pub fn n_out(&self) -> usize {
        with_panels!(self, panels => panels.n_out)
    }

    /// Number of inputs.
    pub fn n_in(&self) -> usize {
        with_panels!(self, panels => panels.n_in)
    }

    /// Bytes of one weight.
    pub(crate) fn weight_size(&self) -> usize {
        match &self.0 {
            Packed::F32(_) => size_of::<f32>(),
            Packed::Bf16(_) => size_of::<bf16>(),
            Packed::F16(_) => size_of::<f16>(),
        }
    }

    /// Bytes held, the padding of the last panel counted.
    pub fn n_bytes(&self) -> usize {
        with_panels!(self, panels => panels.n_bytes())
    }
}
