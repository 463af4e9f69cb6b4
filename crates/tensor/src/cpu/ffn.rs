//! The FFN: two products with the hidden units packed in between, for one matrix or for the
//! experts of a layer.

use super::compute::{Compute, ProductScratch};
use super::gemm::finish::{Finish, Norms};
use super::gemm::kernel::Kernel;
use super::gemm::rows::{RowTiles, Rows, pack};
use super::gemm::{Layer, Out, OutRows, Product, most_rows, parts, with_kernel};
use super::panels::Element;
use super::parallel::{Parallel, SharedMut};
use crate::device::{Activation, Norm};

/// Bytes of packed hidden units per thread between the two products of an FFN: what the last-level
/// cache holds. Less would have the weights of experts with few rows read more than once.
const HIDDEN_BYTES: usize = 4 << 20;

/// The weights of an FFN, all of one dtype.
#[derive(Clone, Copy)]
pub(crate) struct FfnWeights<'a> {
    /// `[d_ff, d_model]`
    pub(crate) up: Layer<'a>,
    /// `[d_ff, d_model]`: its activation is the factor of the hidden units.
    pub(crate) gate: Option<Layer<'a>>,
    /// `[d_model, d_ff]`
    pub(crate) down: Layer<'a>,
}

/// The FFN of every row, each group of rows with weights of its own, which are of one dtype and
/// shape.
pub(crate) struct GroupedFfn<'p, 'a> {
    /// `[_, d_model]`
    pub(crate) rows: Rows<'p>,
    /// Rows of each group.
    pub(crate) groups: &'p [RowTiles],
    /// Weights of each group.
    pub(crate) weights: &'p (dyn Fn(usize) -> FfnWeights<'a> + Sync),
    pub(crate) activation: Activation,
    pub(crate) out: OutRows<'p>,
}

impl GroupedFfn<'_, '_> {
    /// Computes it on all threads; `scratch` is memory to work in.
    ///
    /// # Safety
    /// As [`Product::run`]; of each group, `up` and the gate have as many outputs as `down` of the
    /// first has inputs.
    pub(crate) unsafe fn run(&self, compute: &Compute, scratch: &mut ProductScratch) {
        // SAFETY: the kernel is for this machine's instructions; the rest is the caller's promise.
        unsafe {
            with_kernel!(compute.isa, (self.weights)(0).up.matrix, K => {
                self.run_on::<K>(&compute.parallel, scratch);
            });
        }
    }

    /// # Safety
    /// As [`GroupedFfn::run`], where `K::ISA` is available.
    unsafe fn run_on<K: Kernel>(&self, parallel: &Parallel, scratch: &mut ProductScratch) {
        let Self {
            rows,
            groups: all,
            weights,
            activation,
            out,
        } = self;
        let n_rows = all.iter().map(RowTiles::n_rows).sum();
        let steps = |n: usize| n.div_ceil(K::Weight::STEP);
        let n_out = weights(0).down.matrix.n_out();
        let (n_steps, n_hidden_steps) = (steps(rows.n_cols), steps(weights(0).down.matrix.n_in()));
        let ProductScratch {
            a,
            hidden,
            groups,
            plan,
        } = scratch;
        let most_bytes = HIDDEN_BYTES * parallel.n_threads();
        let most = most_rows(n_rows, n_hidden_steps * size_of::<K::A>(), most_bytes);
        let (a, hidden) = (a.room(most * n_steps), hidden.room(most * n_hidden_steps));
        for part in parts(n_rows, most) {
            groups.clear();
            groups.extend(all.iter().map(|group| group.part(K::ISA, &part)));
            pack::<K>(parallel, rows.part(&part), groups, &mut *a);
            let up = Product::<K> {
                a,
                groups,
                weights: &|g| weights(g).up.weights(),
                gates: &|g| weights(g).gate.map(|gate| gate.weights()),
                activation: *activation,
                out: Out::Packed(SharedMut::new(&mut *hidden)),
            };
            // SAFETY: the instructions are the caller's promise, and `hidden` has room for the hidden
            // units of these rows.
            unsafe { up.run(parallel, plan) };
            let down = Product::<K> {
                a: hidden,
                groups,
                weights: &|g| weights(g).down.weights(),
                gates: &|_| None,
                activation: Activation::Identity,
                out: Out::Rows(out.part(&part, n_out)),
            };
            // SAFETY: the caller's promise.
            unsafe { down.run(parallel, plan) };
        }
    }
}

/// `out = ffn(x) + residual`, normalised if asked.
///
/// # Shapes
/// - `x`: `[n_tokens, d_model]`
/// - `residual`, `out`: `[n_tokens, n_out]`
pub(crate) fn dense_ffn(
    compute: &Compute,
    x: &[f32],
    weights: FfnWeights<'_>,
    activation: Activation,
    residual: &[f32],
    norm: Option<&Norm<Vec<f32>>>,
    out: &mut [f32],
) {
    let (up, down) = (weights.up.matrix, weights.down.matrix);
    let n_gates = weights.gate.map_or(up.n_out(), |gate| gate.matrix.n_out());
    assert_eq!([up.n_out(), n_gates], [down.n_in(); 2], "hidden units");
    let n_rows = out.len() / down.n_out().max(1);
    let groups = [RowTiles::new(compute.isa, 0..n_rows)];
    let rows = Rows {
        data: x,
        n_cols: weights.up.matrix.n_in(),
        idx: None,
    };
    let c = SharedMut::new(out);
    let norms = norm.map(|norm| Norms::new(compute.isa, norm, c));
    let ffn = GroupedFfn {
        rows,
        groups: &groups,
        weights: &|_| weights,
        activation,
        out: OutRows {
            c,
            idx: None,
            gate: None,
            residual: Some(residual),
            first_row: 0,
            finish: norms.as_ref().map(|norms| norms as &dyn Finish),
        },
    };
    // SAFETY: `out` has a row for every row of `x`, and the hidden units agree.
    unsafe { ffn.run(compute, &mut compute.scratch().products) };
}
