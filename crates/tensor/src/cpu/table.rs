//! Embedding tables.

use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};

use super::pages::{Memory, zeroed};
use super::panels::{Element, all_finite, find_non_finite, read_run};
use super::parallel::Parallel;
use crate::checkpoint::HostTensor;
use crate::device::Result;
use crate::dtype::DType;

/// An embedding table `[n_rows, n_cols]`.
#[derive(Debug)]
pub struct Table {
    n_rows: usize,
    n_cols: usize,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    F32(Memory<f32>),
    Bf16(Memory<bf16>),
    F16(Memory<f16>),
}

impl Table {
    pub(crate) fn load(dtype: DType, host: &HostTensor<'_>, parallel: &Parallel) -> Result<Self> {
        let n_cols = host.shape.last().copied().unwrap_or(0);
        let n_rows = host.n_elements() / n_cols.max(1);
        let rows = match dtype {
            DType::F32 => Rows::F32(convert(dtype, host, n_cols, parallel)?),
            DType::BF16 => Rows::Bf16(convert(dtype, host, n_cols, parallel)?),
            DType::F16 => Rows::F16(convert(dtype, host, n_cols, parallel)?),
        };
        Ok(Self {
            n_rows,
            n_cols,
            rows,
        })
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// `out += scale · row`
    pub(crate) fn add_row(&self, row: usize, scale: f32, out: &mut [f32]) {
        let range = row * self.n_cols..(row + 1) * self.n_cols;
        match &self.rows {
            Rows::F32(r) => {
                out.iter_mut()
                    .zip(&r[range])
                    .for_each(|(o, x)| *o += scale * x);
            }
            Rows::Bf16(r) => {
                out.iter_mut()
                    .zip(&r[range])
                    .for_each(|(o, x)| *o += scale * x.to_f32());
            }
            Rows::F16(r) => {
                out.iter_mut()
                    .zip(&r[range])
                    .for_each(|(o, x)| *o += scale * x.to_f32());
            }
        }
    }
}

fn convert<E: Element>(
    dtype: DType,
    host: &HostTensor<'_>,
    n_cols: usize,
    parallel: &Parallel,
) -> Result<Memory<E>> {
    let mut out = zeroed(host.n_elements());
    let finite = AtomicBool::new(true);
    // Rows in groups, so that a piece of work is worth a task.
    let group = (n_cols * 64).max(1);
    parallel.for_each_chunk(&mut out, group, |i, out| {
        let mut wide = vec![0.0; out.len()];
        read_run(host, i * group, &mut wide);
        for (o, x) in out.iter_mut().zip(wide) {
            *o = E::from_f32(x);
        }
        if !all_finite(out) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    match finite.into_inner() {
        true => Ok(out),
        false => Err(find_non_finite(std::iter::once(host), dtype)),
    }
}
