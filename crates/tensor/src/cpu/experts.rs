//! The experts of a layer: tokens sorted by expert, one FFN of many groups, and the weighted sum of
//! a token's choices.

use std::ops::Range;

use super::check;
use super::compute::{Compute, Scratch};
use super::ffn::{FfnWeights, GroupedFfn, Layer};
use super::gemm::OutRows;
use super::gemm::rows::{RowTiles, Rows};
use super::panels::{Matrix, all_finite, find_non_finite};
use super::parallel::{Parallel, SharedMut};
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
    /// `None` if there is no expert here.
    d_model: Option<usize>,
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
        let mut widths = slices.iter().map(|slice| slice.w_in.n_out());
        let d_ff = widths.find(|&n| n > 0).unwrap_or(0);
        for (slice_idx, slice) in slices.into_iter().enumerate() {
            check_slice(&slice, n_experts, d_model)?;
            // The experts of a layer share the memory of their hidden units.
            let width = slice.w_in.n_out();
            check(
                "load_experts",
                "hidden units",
                d_ff,
                if width == 0 { d_ff } else { width },
            )?;
            if slice.w_in.n_out() > 0 {
                let expert_idx = slice.expert_idx;
                experts[expert_idx] = Some(Expert::load(dtype, slice_idx, slice, parallel)?);
            }
        }
        let is_held = experts.iter().any(Option::is_some);
        Ok(Self {
            experts,
            activation,
            d_model: is_held.then_some(d_model),
        })
    }

    /// The width of rows that the experts take; `None` if there is no expert here.
    pub(crate) fn d_model(&self) -> Option<usize> {
        self.d_model
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
    /// - `x`, `out`: `[n_tokens, d_model]`
    pub(crate) fn run(
        &self,
        compute: &Compute,
        x: &[f32],
        routing: &Routing,
        d_model: usize,
        out: &mut [f32],
    ) -> u64 {
        let Scratch {
            products,
            y,
            groups,
            dispatch,
            ..
        } = &mut *compute.scratch();
        let Some(first) = self.experts.iter().flatten().next() else {
            out.fill(0.0);
            return 0;
        };
        let is_held = |e: usize| self.experts[e].is_some();
        dispatch.fill(routing, self.experts.len(), is_held);
        groups.clear();
        let rows_of = |e| RowTiles::new(compute.isa, dispatch.slots(e));
        groups.extend((0..self.experts.len()).map(rows_of));
        let rows = Rows {
            data: x,
            n_cols: d_model,
            idx: Some(&dispatch.token_of_slot),
        };
        // Where every token has one slot, its row can be stored where it belongs.
        let is_direct = dispatch.top_k == 1 && dispatch.n_slots() * d_model == out.len();
        // [n_slots, d_model], sorted by expert
        let slots = y.room(if is_direct {
            0
        } else {
            dispatch.n_slots() * d_model
        });
        let ffn = GroupedFfn {
            rows,
            groups,
            // The first stands in for an expert without rows.
            weights: &|e| self.experts[e].as_ref().unwrap_or(first).weights(),
            activation: self.activation,
            out: OutRows {
                c: SharedMut::new(if is_direct { &mut *out } else { &mut *slots }),
                idx: rows.idx.filter(|_| is_direct),
                gate: Some(&dispatch.gate_of_slot),
                residual: None,
            },
        };
        // SAFETY: every slot has a row of its own, in `slots` or as the one of its token in `out`;
        // the slices of a layer are equally wide.
        unsafe { ffn.run(compute, products) };
        if !is_direct {
            combine(&compute.parallel, slots, dispatch, d_model, out);
        }
        self.n_multiply_adds(dispatch, d_model)
    }

    fn n_multiply_adds(&self, dispatch: &Dispatch, d_model: usize) -> u64 {
        let per_slot = |e: &Expert| e.w_in.n_out() * 2 * d_model;
        (self.experts.iter().enumerate())
            .map(|(e, expert)| expert.as_ref().map_or(0, per_slot) * dispatch.slots(e).len())
            .sum::<usize>() as u64
    }
}

impl Expert {
    fn load(
        dtype: DType,
        slice_idx: usize,
        slice: ExpertSlice<'_>,
        parallel: &Parallel,
    ) -> Result<Self> {
        // A slice has two matrices.
        let pack = |part: usize, matrix| {
            let packed = Matrix::pack(dtype, std::slice::from_ref(matrix), parallel);
            packed.map_err(|error| of_part(error, 2 * slice_idx + part))
        };
        Ok(Self {
            w_in: pack(0, &slice.w_in)?,
            b_in: slice.b_in.map(|b| bias(slice_idx, 0, &b)).transpose()?,
            w_out: pack(1, &slice.w_out)?,
            b_out: slice.b_out.map(|b| bias(slice_idx, 1, &b)).transpose()?,
        })
    }

    fn weights(&self) -> FfnWeights<'_> {
        FfnWeights {
            up: Layer {
                matrix: &self.w_in,
                bias: self.b_in.as_deref(),
            },
            gate: None,
            down: Layer {
                matrix: &self.w_out,
                bias: self.b_out.as_deref(),
            },
        }
    }
}

/// `out[t] = Σ_k y[slot[t, k]]` in the order of choices.
fn combine(parallel: &Parallel, y: &[f32], dispatch: &Dispatch, d_model: usize, out: &mut [f32]) {
    const TOKENS: usize = 16;
    if out.is_empty() {
        return;
    }
    let top_k = dispatch.top_k;
    parallel.for_each_chunk(out, TOKENS * d_model, |chunk, out| {
        for (i, out) in out.chunks_exact_mut(d_model).enumerate() {
            let token = chunk * TOKENS + i;
            out.fill(0.0);
            // A choice that was dropped, or lives elsewhere, has no slot.
            for slot in dispatch.slot_of_choice[token * top_k..][..top_k]
                .iter()
                .flatten()
            {
                let row = &y[slot * d_model..][..d_model];
                out.iter_mut().zip(row).for_each(|(o, y)| *o += y);
            }
        }
    });
}

/// Tokens sorted by expert, by counting.
#[derive(Default)]
pub(crate) struct Dispatch {
    top_k: usize,
    /// `[n_experts + 1]`: expert `e` has slots `offsets[e] .. offsets[e + 1]`.
    offsets: Vec<usize>,
    /// `[n_slots]`
    token_of_slot: Vec<usize>,
    /// `[n_slots]`
    gate_of_slot: Vec<f32>,
    /// `[n_tokens · top_k]`; `None` for a choice that was dropped or lives elsewhere.
    slot_of_choice: Vec<Option<usize>>,
    /// `[n_experts]`: the next free slot, while they are filled.
    next: Vec<usize>,
}

impl Dispatch {
    /// Slots for the choices of experts that are `held` here: neither dropped nor elsewhere.
    fn fill(&mut self, routing: &Routing, n_experts: usize, held: impl Fn(usize) -> bool) {
        let here = |expert: u32| (expert as usize) < n_experts && held(expert as usize);
        self.top_k = routing.top_k;
        self.offsets.clear();
        self.offsets.resize(n_experts + 1, 0);
        for &expert in routing.expert_idx.iter().filter(|&&e| here(e)) {
            self.offsets[expert as usize + 1] += 1;
        }
        for e in 0..n_experts {
            self.offsets[e + 1] += self.offsets[e];
        }
        self.next.clear();
        self.next.extend_from_slice(&self.offsets[..n_experts]);
        self.token_of_slot.resize(self.offsets[n_experts], 0);
        self.gate_of_slot.resize(self.offsets[n_experts], 0.0);
        self.slot_of_choice.clear();
        for (choice, &expert) in routing.expert_idx.iter().enumerate() {
            let slot = here(expert).then(|| {
                let slot = self.next[expert as usize];
                self.next[expert as usize] += 1;
                self.token_of_slot[slot] = choice / routing.top_k;
                self.gate_of_slot[slot] = routing.gate_weight[choice];
                slot
            });
            self.slot_of_choice.push(slot);
        }
    }

    fn n_slots(&self) -> usize {
        self.token_of_slot.len()
    }

    fn slots(&self, expert_idx: usize) -> Range<usize> {
        self.offsets[expert_idx]..self.offsets[expert_idx + 1]
    }
}

/// Checks that a slice fits the layer and itself.
fn check_slice(slice: &ExpertSlice<'_>, n_experts: usize, d_model: usize) -> Result<()> {
    let check = |dim, expected, got| check("load_experts", dim, expected, got);
    let f = slice.w_in.n_out();
    check("n_experts", n_experts, n_experts.max(slice.expert_idx + 1))?;
    check("d_model of w_in", d_model, slice.w_in.n_in())?;
    check("d_model of w_out", d_model, slice.w_out.n_out())?;
    check("hidden units of w_out", f, slice.w_out.n_in())?;
    let len = |b: &Option<HostTensor<'_>>, n| b.as_ref().map_or(n, HostTensor::n_elements);
    check("hidden units of b_in", f, len(&slice.b_in, f))?;
    check("d_model of b_out", d_model, len(&slice.b_out, d_model))
}

/// Loads the bias of a slice's first or second matrix; an error names it by that matrix.
fn bias(slice_idx: usize, part: usize, host: &HostTensor<'_>) -> Result<Vec<f32>> {
    let bias = host.to_f32();
    match all_finite(&bias) {
        true => Ok(bias),
        false => {
            let error = find_non_finite(std::iter::once(host), DType::F32);
            Err(of_part(error, 2 * slice_idx + part))
        }
    }
}

/// Says which of the matrices of a layer is not finite.
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
