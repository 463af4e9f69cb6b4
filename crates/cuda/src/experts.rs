//! Loading the experts of a layer.

use std::rc::Rc;

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::checks::check;
use moeshard_tensor::device::{Activation, DeviceError, ExpertSlice, HostMatrix, Result};
use moeshard_tensor::dtype::DType;

use crate::driver::Driver;
use crate::gemm::{Gemm, Map};
use crate::memory::Heap;
use crate::weights::{Buffer, COLS, Experts, HeldExperts, check_width, encode};

const OP: &str = "load_experts";

impl<R: Driver> Experts<R> {
    pub(crate) fn load(
        heap: &Rc<Heap<R>>,
        (gemm, dtype): (Gemm, DType),
        n_all: usize,
        slices: &[ExpertSlice<'_>],
        activation: Activation,
        counter: usize,
    ) -> Result<Self> {
        let mut held: Vec<(usize, &ExpertSlice<'_>)> = Vec::new();
        for (slice_idx, slice) in slices.iter().enumerate() {
            if slice.w_in.n_out() > 0 {
                held.push((slice_idx, slice));
            }
        }
        held.sort_by_key(|(_, slice)| slice.expert_idx);
        let held = match held.first() {
            Some(_) => Some(HeldExperts::load(
                heap,
                (gemm, dtype),
                n_all,
                &held,
                activation,
            )?),
            None => None,
        };
        Ok(Self {
            held,
            n_all,
            counter,
        })
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let bytes = |buffer: &Option<Buffer<R>>| buffer.as_ref().map_or(0, Buffer::n_bytes);
        self.held.as_ref().map_or(0, |held| {
            held.w_in.n_bytes() + held.w_out.n_bytes() + bytes(&held.b_in) + bytes(&held.b_out)
        })
    }
}

impl<R: Driver> HeldExperts<R> {
    fn load(
        heap: &Rc<Heap<R>>,
        (gemm, dtype): (Gemm, DType),
        n_all: usize,
        held: &[(usize, &ExpertSlice<'_>)],
        activation: Activation,
    ) -> Result<Self> {
        let first = held[0].1;
        let (d_model, n_hidden) = (first.w_in.n_in(), first.w_in.n_out());
        check_width(OP, dtype, d_model)?;
        for (i, (_, slice)) in held.iter().enumerate() {
            // Ranks hold neighbours.
            check(OP, "expert_idx", first.expert_idx + i, slice.expert_idx)?;
            check_slice(slice, d_model, n_hidden)?;
        }
        let n_experts = held.len();
        check(
            OP,
            "n_experts",
            n_all,
            n_all.max(first.expert_idx + n_experts),
        )?;
        let f = n_hidden.next_multiple_of(COLS);
        let n_bytes = n_experts * f * d_model * dtype.size();
        let w_in = Buffer::new(heap, n_bytes)?;
        let w_out = Buffer::new(heap, n_bytes)?;
        let size = n_bytes / n_experts;
        for (i, &(slice_idx, slice)) in held.iter().enumerate() {
            w_in.fill(
                i * size,
                &encode(&slice.w_in, dtype, (f, d_model), 2 * slice_idx)?,
            )?;
            w_out.fill(
                i * size,
                &encode(&slice.w_out, dtype, (d_model, f), 2 * slice_idx + 1)?,
            )?;
        }
        Ok(Self {
            first: first.expert_idx,
            n_experts,
            d_model,
            n_hidden,
            f,
            activation,
            map_in: Map::new(heap, gemm, &w_in, dtype, [n_experts * f, d_model])?,
            w_in,
            b_in: biases(heap, held, (f, 0), |slice| slice.b_in.as_ref())?,
            map_out: Map::new(heap, gemm, &w_out, dtype, [n_experts * d_model, f])?,
            w_out,
            b_out: biases(heap, held, (d_model, 1), |slice| slice.b_out.as_ref())?,
        })
    }
}

fn check_slice(slice: &ExpertSlice<'_>, d_model: usize, n_hidden: usize) -> Result<()> {
    let ExpertSlice {
        w_in,
        b_in,
        w_out,
        b_out,
        ..
    } = slice;
    check(OP, "d_model of w_in", d_model, w_in.n_in())?;
    check(OP, "hidden units", n_hidden, w_in.n_out())?;
    check(
        OP,
        "hidden units of w_out",
        n_hidden,
        HostMatrix::n_in(w_out),
    )?;
    check(OP, "d_model of w_out", d_model, w_out.n_out())?;
    let len = |bias: &Option<HostTensor<'_>>, n| bias.as_ref().map_or(n, HostTensor::n_elements);
    check(OP, "b_in", n_hidden, len(b_in, n_hidden))?;
    check(OP, "b_out", d_model, len(b_out, d_model))
}

/// One row an expert, zeroes where it has none; nothing if no expert has one. `part` is 0 for those that go
/// with W_in, 1 with W_out.
fn biases<R: Driver>(
    heap: &Rc<Heap<R>>,
    held: &[(usize, &ExpertSlice<'_>)],
    (width, part): (usize, usize),
    bias: impl for<'a, 'b> Fn(&'a ExpertSlice<'b>) -> Option<&'a HostTensor<'b>>,
) -> Result<Option<Buffer<R>>> {
    let mut rows = vec![0.0_f32; held.len() * width];
    let mut is_any = false;
    for (row, &(slice_idx, slice)) in rows.chunks_exact_mut(width).zip(held) {
        if let Some(bias) = bias(slice) {
            if let Some(at) = bias.first_non_finite() {
                return Err(DeviceError::NotFinite {
                    part_idx: 2 * slice_idx + part,
                    element_idx: Some(at),
                    dtype: DType::F32,
                });
            }
            let numbers = bias.to_f32();
            row[..numbers.len()].copy_from_slice(&numbers);
            is_any = true;
        }
    }
    match is_any {
        true => Buffer::of(heap, bytemuck::cast_slice(&rows)).map(Some),
        false => Ok(None),
    }
}
