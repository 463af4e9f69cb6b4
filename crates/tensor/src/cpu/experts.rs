//! The experts of a layer: tokens sorted by expert, one FFN of many groups, and the weighted sum of
//! a token's choices.

use std::ops::Range;

use super::compute::{Compute, Scratch};
use super::ffn::{FfnWeights, GroupedFfn};
use super::gemm::finish::{Countdowns, Finish};
use super::gemm::kernel::fetch;
use super::gemm::rows::{RowTiles, Rows};
use super::gemm::{Layer, OutRows};
use super::isa::{Isa, per_isa};
use super::lanes::LANES;
use super::panels::{Matrix, all_finite, find_non_finite};
use super::parallel::{Parallel, SharedMut};
use crate::checkpoint::HostTensor;
use crate::checks::check;
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
        clear_idle(&compute.parallel, dispatch, d_model, out);
        // Where no token has more than one slot, its row can be stored where it belongs.
        let is_direct = dispatch.top_k == 1;
        // [n_slots, d_model], sorted by expert
        let slots = y.room(if is_direct {
            0
        } else {
            dispatch.n_slots() * d_model
        });
        let (y, out) = (SharedMut::new(slots), SharedMut::new(out));
        let combine = Combine {
            isa: compute.isa,
            dispatch,
            d_model,
            y,
            out,
        };
        let ffn = GroupedFfn {
            rows,
            groups,
            // The first stands in for an expert without rows.
            weights: &|e| self.experts[e].as_ref().unwrap_or(first).weights(),
            activation: self.activation,
            out: OutRows {
                c: if is_direct { out } else { y },
                idx: rows.idx.filter(|_| is_direct),
                gate: Some(&dispatch.gate_of_slot),
                residual: None,
                first_row: 0,
                finish: (!is_direct).then_some(&combine),
            },
        };
        // SAFETY: every slot has a row of its own, in `y` or as the one of its token in `out`;
        // the slices of a layer are equally wide.
        unsafe { ffn.run(compute, products) };
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

/// Fills the rows of tokens that have no slot with zeros.
fn clear_idle(parallel: &Parallel, dispatch: &Dispatch, d_model: usize, out: &mut [f32]) {
    const TOKENS: usize = 16;
    if dispatch.n_idle == 0 || out.is_empty() {
        return;
    }
    parallel.for_each_chunk(out, TOKENS * d_model, |chunk, out| {
        for (i, out) in out.chunks_exact_mut(d_model).enumerate() {
            if dispatch.slots_of(chunk * TOKENS + i).next().is_none() {
                out.fill(0.0);
            }
        }
    });
}

/// `out[t] = Σ_k y[slot[t, k]]` in the order of choices, as soon as a token's last slot is whole.
struct Combine<'a> {
    isa: Isa,
    dispatch: &'a Dispatch,
    d_model: usize,
    /// `[n_slots, d_model]`
    y: SharedMut<f32>,
    /// `[n_tokens, d_model]`
    out: SharedMut<f32>,
}

impl Finish for Combine<'_> {
    unsafe fn finish(&self, slots: Range<usize>) {
        let tokens = self.dispatch.token_of_slot[slots].iter().copied();
        let mut whole = tokens.filter(|&token| self.dispatch.missing.is_last(token));
        // Rows lie anywhere, more of them than a core foresees: those of the next token are
        // fetched while one is summed.
        let mut next = whole.next();
        while let Some(token) = next {
            next = whole.next();
            if let Some(next) = next {
                self.fetch(next);
            }
            // SAFETY: this thread alone was told that the token's last slot is whole.
            unsafe { self.sum(token) };
        }
    }
}

impl Combine<'_> {
    /// Brings the rows of a token near.
    fn fetch(&self, token: usize) {
        let slots = self.dispatch.slots_of(token).map(|slot| (self.y, slot));
        for (data, row) in slots.chain([(self.out, token)]) {
            let row = data.skip(row * self.d_model).ptr();
            for col in (0..self.d_model).step_by(LANES) {
                fetch(row.wrapping_add(col));
            }
        }
    }

    /// # Safety
    /// Every slot of the token is whole, and nobody else touches its rows.
    unsafe fn sum(&self, token: usize) {
        let d_model = self.d_model;
        // SAFETY: `out` has a row for every token; the rest is the caller's promise.
        let out = unsafe {
            std::slice::from_raw_parts_mut(self.out.skip(token * d_model).ptr(), d_model)
        };
        out.fill(0.0);
        for slot in self.dispatch.slots_of(token) {
            // SAFETY: `y` has a row for every slot; the rest is the caller's promise.
            let y =
                unsafe { std::slice::from_raw_parts(self.y.skip(slot * d_model).ptr(), d_model) };
            add_row(self.isa, y, out);
        }
    }
}

per_isa! {
    /// `out += row`
    fn add_row(row: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(row) {
            *out += x;
        }
    }
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
    /// `[n_tokens]`: slots of each that are not whole yet.
    missing: Countdowns,
    /// Tokens that have no slot.
    n_idle: usize,
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
        self.missing.clear();
        self.n_idle = 0;
        for token in 0..routing.n_tokens() {
            let n_slots = self.slots_of(token).count();
            self.missing.push(n_slots);
            self.n_idle += usize::from(n_slots == 0);
        }
    }

    fn n_slots(&self) -> usize {
        self.token_of_slot.len()
    }

    /// The slots of a token in the order of its choices. A choice that was dropped, or lives
    /// elsewhere, has none.
    fn slots_of(&self, token: usize) -> impl Iterator<Item = usize> {
        let choices = &self.slot_of_choice[token * self.top_k..][..self.top_k];
        choices.iter().copied().flatten()
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
