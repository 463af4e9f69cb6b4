//! The expert layer of one rank: dispatch, two matrix products per expert, combine.

use super::gemm::{Epilogue, gemm};
use super::isa::Isa;
use super::panels::Matrix;
use super::parallel::Parallel;
use crate::checkpoint::HostTensor;
use crate::device::{Activation, DeviceError, ExpertSlice, Result, Routing};
use crate::dtype::DType;

/// One rank's slices of the experts of a layer.
#[derive(Debug)]
pub struct Experts {
    /// `[n_experts]`; `None` for an expert that lives elsewhere or of which this rank holds
    /// nothing.
    experts: Vec<Option<Expert>>,
    activation: Activation,
}

#[derive(Debug)]
struct Expert {
    /// `[f, d_model]`
    w_in: Matrix,
    /// `[f]`
    b_in: Option<Vec<f32>>,
    /// `[d_model, f]`
    w_out: Matrix,
    /// `[d_model]`
    b_out: Option<Vec<f32>>,
}

impl Experts {
    pub(crate) fn load(
        dtype: DType,
        n_experts: usize,
        slices: Vec<ExpertSlice<'_>>,
        activation: Activation,
        parallel: &Parallel,
    ) -> Result<Self> {
        let mut experts: Vec<_> = (0..n_experts).map(|_| None).collect();
        let d_model = slices.first().map_or(0, |slice| slice.w_in.n_in());
        for (slice_idx, slice) in slices.into_iter().enumerate() {
            check_slice(&slice, n_experts, d_model)?;
            if slice.w_in.n_out() > 0 {
                let expert_idx = slice.expert_idx;
                let expert = Expert::load(dtype, slice, parallel);
                experts[expert_idx] = Some(expert.map_err(|e| of_slice(e, slice_idx))?);
            }
        }
        Ok(Self {
            experts,
            activation,
        })
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let floats = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, |v| size_of_val(v.as_slice()));
        self.experts
            .iter()
            .flatten()
            .map(|e| e.w_in.n_bytes() + e.w_out.n_bytes() + floats(&e.b_in) + floats(&e.b_out))
            .sum()
    }

    /// `out[t] = Σ_k gate_weight[t, k] · expert[expert_idx[t, k]](x[t])` over the slices held
    /// here, and the multiply-adds spent.
    ///
    /// # Shapes
    /// - `x`, `out`: `[n_tokens, d_model]`; `out` starts at zero
    pub(crate) fn run(
        &self,
        isa: Isa,
        parallel: &Parallel,
        x: &[f32],
        routing: &Routing,
        d_model: usize,
        out: &mut [f32],
    ) -> u64 {
        let held: Vec<bool> = self.experts.iter().map(Option::is_some).collect();
        let dispatch = Dispatch::new(routing, &held);
        // [n_slots, d_model], sorted by expert
        let mut y = vec![0.0; dispatch.n_slots() * d_model];
        let mut n_multiply_adds = 0;
        for (expert_idx, expert) in self.experts.iter().enumerate() {
            let slots = dispatch.slots(expert_idx);
            let (Some(expert), false) = (expert, slots.is_empty()) else {
                continue;
            };
            let tokens = &dispatch.token_of_slot[slots.clone()];
            n_multiply_adds += (tokens.len() * expert.w_in.n_out() * 2 * d_model) as u64;
            let y = &mut y[slots.start * d_model..slots.end * d_model];
            expert.run(isa, parallel, x, tokens, self.activation, y);
        }
        combine(parallel, &y, &dispatch, routing, d_model, out);
        n_multiply_adds
    }
}

impl Expert {
    fn load(dtype: DType, slice: ExpertSlice<'_>, parallel: &Parallel) -> Result<Self> {
        let w_out = Matrix::pack(dtype, &[slice.w_out], parallel);
        Ok(Self {
            b_in: slice.b_in.map(|b| b.to_f32()),
            b_out: slice.b_out.map(|b| b.to_f32()),
            w_in: Matrix::pack(dtype, &[slice.w_in], parallel)?,
            w_out: w_out.map_err(|e| of_part(e, 1))?,
        })
    }

    fn run(
        &self,
        isa: Isa,
        parallel: &Parallel,
        x: &[f32],
        tokens: &[usize],
        activation: Activation,
        y: &mut [f32],
    ) {
        let d_model = self.w_in.n_in();
        let mut gathered = Vec::with_capacity(tokens.len() * d_model);
        for &token in tokens {
            gathered.extend_from_slice(&x[token * d_model..][..d_model]);
        }
        let mut hidden = vec![0.0; tokens.len() * self.w_in.n_out()];
        let first = Epilogue {
            bias: self.b_in.as_deref(),
            activation,
            residual: None,
        };
        gemm(isa, parallel, &gathered, &self.w_in, &mut hidden, first);
        let second = Epilogue {
            bias: self.b_out.as_deref(),
            ..Epilogue::NONE
        };
        gemm(isa, parallel, &hidden, &self.w_out, y, second);
    }
}

/// Returns expert outputs to token order, weighted by the gate, in the order of choices.
fn combine(
    parallel: &Parallel,
    y: &[f32],
    dispatch: &Dispatch,
    routing: &Routing,
    d_model: usize,
    out: &mut [f32],
) {
    parallel.for_each_chunk(out, d_model, |token, out| {
        for choice in token * routing.top_k..(token + 1) * routing.top_k {
            let Some(slot) = dispatch.slot_of_choice[choice] else {
                continue; // dropped, or elsewhere
            };
            let row = &y[slot * d_model..][..d_model];
            let gate = routing.gate_weight[choice];
            out.iter_mut().zip(row).for_each(|(o, y)| *o += gate * y);
        }
    });
}

/// Tokens sorted by expert, by counting.
struct Dispatch {
    /// `[n_experts + 1]`: expert `e` has slots `offsets[e] .. offsets[e + 1]`.
    offsets: Vec<usize>,
    /// `[n_slots]`
    token_of_slot: Vec<usize>,
    /// `[n_tokens · top_k]`; `None` for a choice that was dropped or lives elsewhere.
    slot_of_choice: Vec<Option<usize>>,
}

impl Dispatch {
    /// Slots for the choices of experts that are `held` here: neither dropped nor elsewhere.
    fn new(routing: &Routing, held: &[bool]) -> Self {
        let n_experts = held.len();
        let here = |expert: u32| held.get(expert as usize).copied().unwrap_or(false);
        let mut offsets = vec![0; n_experts + 1];
        for &expert in routing.expert_idx.iter().filter(|&&e| here(e)) {
            offsets[expert as usize + 1] += 1;
        }
        for e in 0..n_experts {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let mut token_of_slot = vec![0; offsets[n_experts]];
        let mut slot_of_choice = vec![None; routing.expert_idx.len()];
        for (choice, &expert) in routing.expert_idx.iter().enumerate() {
            if here(expert) {
                let slot = &mut next[expert as usize];
                token_of_slot[*slot] = choice / routing.top_k;
                slot_of_choice[choice] = Some(*slot);
                *slot += 1;
            }
        }
        Self {
            offsets,
            token_of_slot,
            slot_of_choice,
        }
    }

    fn n_slots(&self) -> usize {
        self.token_of_slot.len()
    }

    fn slots(&self, expert_idx: usize) -> std::ops::Range<usize> {
        self.offsets[expert_idx]..self.offsets[expert_idx + 1]
    }
}

/// Checks that a slice fits the layer and itself.
fn check_slice(slice: &ExpertSlice<'_>, n_experts: usize, d_model: usize) -> Result<()> {
    let f = slice.w_in.n_out();
    check("n_experts", n_experts, n_experts.max(slice.expert_idx + 1))?;
    check("d_model of w_in", d_model, slice.w_in.n_in())?;
    check("d_model of w_out", d_model, slice.w_out.n_out())?;
    check("hidden units of w_out", f, slice.w_out.n_in())?;
    let len = |b: &Option<HostTensor<'_>>, n| b.as_ref().map_or(n, HostTensor::n_elements);
    check("hidden units of b_in", f, len(&slice.b_in, f))?;
    check("d_model of b_out", d_model, len(&slice.b_out, d_model))
}

/// Says which matrix of a slice is not finite.
fn of_part(error: DeviceError, part_idx: usize) -> DeviceError {
    match error {
        DeviceError::NotFinite {
            element_idx, dtype, ..
        } => DeviceError::NotFinite {
            part_idx,
            element_idx,
            dtype,
        },
        other => other,
    }
}

/// Says which slice of a layer is not finite; a slice has two matrices.
fn of_slice(error: DeviceError, slice_idx: usize) -> DeviceError {
    match error {
        DeviceError::NotFinite { part_idx, .. } => of_part(error, 2 * slice_idx + part_idx),
        other => other,
    }
}

fn check(dim: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(DeviceError::Shape {
        op: "load_experts",
        dim,
        expected,
        got,
    })
}
