//! The expert layer of one rank: dispatch, two matrix products per expert, combine.

use super::gemm::{Epilogue, gemm};
use super::isa::Isa;
use super::panels::Matrix;
use super::parallel::Parallel;
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
        for slice in slices {
            let f = slice.w_in.n_out();
            check("w_out", f, slice.w_out.n_in())?;
            check("w_out", slice.w_in.n_in(), slice.w_out.n_out())?;
            if f > 0 {
                experts[slice.expert_idx] = Some(Expert {
                    b_in: slice.b_in.map(|b| b.to_f32()),
                    b_out: slice.b_out.map(|b| b.to_f32()),
                    w_in: Matrix::pack(dtype, &[slice.w_in], parallel),
                    w_out: Matrix::pack(dtype, &[slice.w_out], parallel),
                });
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
        let dispatch = Dispatch::new(routing, self.experts.len());
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
        self.combine(parallel, &y, &dispatch, routing, d_model, out);
        n_multiply_adds
    }

    /// Returns expert outputs to token order, weighted by the gate, in the order of choices.
    fn combine(
        &self,
        parallel: &Parallel,
        y: &[f32],
        dispatch: &Dispatch,
        routing: &Routing,
        d_model: usize,
        out: &mut [f32],
    ) {
        parallel.for_each_chunk(out, d_model, |token, out| {
            for choice in token * routing.top_k..(token + 1) * routing.top_k {
                let expert = self.experts.get(routing.expert_idx[choice] as usize);
                if !matches!(expert, Some(Some(_))) {
                    continue; // dropped, or elsewhere
                }
                let row = &y[dispatch.slot_of_choice[choice] as usize * d_model..][..d_model];
                let gate = routing.gate_weight[choice];
                out.iter_mut().zip(row).for_each(|(o, y)| *o += gate * y);
            }
        });
    }
}

impl Expert {
    fn run(
        &self,
        isa: Isa,
        parallel: &Parallel,
        x: &[f32],
        tokens: &[u32],
        activation: Activation,
        y: &mut [f32],
    ) {
        let d_model = self.w_in.n_in();
        let mut gathered = Vec::with_capacity(tokens.len() * d_model);
        for &token in tokens {
            gathered.extend_from_slice(&x[token as usize * d_model..][..d_model]);
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

/// Tokens sorted by expert, by counting.
struct Dispatch {
    /// `[n_experts + 1]`: expert `e` has slots `offsets[e] .. offsets[e + 1]`.
    offsets: Vec<usize>,
    /// `[n_slots]`
    token_of_slot: Vec<u32>,
    /// `[n_tokens · top_k]`; meaningless for a dropped choice.
    slot_of_choice: Vec<u32>,
}

impl Dispatch {
    fn new(routing: &Routing, n_experts: usize) -> Self {
        let mut offsets = vec![0; n_experts + 1];
        for &expert in routing
            .expert_idx
            .iter()
            .filter(|&&e| e != Routing::DROPPED)
        {
            offsets[expert as usize + 1] += 1;
        }
        for e in 0..n_experts {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let mut token_of_slot = vec![0; offsets[n_experts]];
        let mut slot_of_choice = vec![0; routing.expert_idx.len()];
        for (choice, &expert) in routing.expert_idx.iter().enumerate() {
            if expert != Routing::DROPPED {
                let slot = &mut next[expert as usize];
                token_of_slot[*slot] = (choice / routing.top_k) as u32;
                slot_of_choice[choice] = *slot as u32;
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
