//! What a layer of experts launches: router, capacity, sorting, two products. The weighted sum follows when it
//! is known what is added to it.

use std::rc::Rc;

use moeshard_tensor::checks::check;
use moeshard_tensor::device::{Activation, Result, RouterRule};
use moeshard_tensor::dtype::DType;

use crate::arguments::check_dtype;
use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::memory::Piece;
use crate::operations::{named, words};
use crate::pass::Word;
use crate::product::{Groups, Product};
use crate::tensor::{Routing, Tensor, Weighted, padded};
use crate::weights::{Buffer, HeldExperts, Matrix};

/// Tokens of a block of the router.
const ROUTER_TOKENS: usize = 32;
/// Assignments of a block that sorts them.
const CHUNK: usize = 1024;
/// Experts of a token, at most.
const MOST_EXPERTS: usize = 32;
/// Warps of a block.
const WARPS: usize = 8;

/// Shared memory of a block that sorts assignments to so many experts.
pub(crate) fn sorting_bytes(n_experts: usize) -> usize {
    (WARPS + 1) * n_experts * size_of::<u32>()
}

impl<R: Driver> CudaDevice<R> {
    /// Softmax over all experts and the most probable, one launch.
    pub(crate) fn choose_experts(
        &self,
        x: &Tensor,
        router: &Matrix<R>,
        rule: RouterRule,
    ) -> Result<Routing> {
        let (n_experts, top_k) = (router.n_out, rule.top_k);
        check("route", "n_in", router.n_in, x.n_cols)?;
        check_dtype("route", DType::F32, router.dtype)?;
        check(
            "route",
            "top_k",
            top_k.clamp(1, n_experts.min(MOST_EXPERTS)),
            top_k,
        )?;
        let logits = self.rows(x.n_padded, n_experts, DType::F32);
        let n_assignments = x.n_padded * top_k;
        let idx = self.rows(n_assignments, 1, DType::F32);
        let gate = self.rows(n_assignments, 1, DType::F32);
        let rows = self.summed(x);
        self.launch(
            named!("router", x.dtype),
            [x.n_padded.div_ceil(ROUTER_TOKENS), 1],
            0,
            &words![
                Word::piece(&rows),
                Word::address(router.buffer.at()),
                x.n_padded,
                x.n_cols,
                n_experts,
                top_k,
                u32::from(rule.normalize),
                Word::piece(&logits),
                Word::piece(&idx),
                Word::piece(&gate)
            ],
        );
        Ok(Routing {
            idx,
            gate,
            n_tokens: x.n_rows,
            n_padded: x.n_padded,
            top_k,
            n_experts,
        })
    }

    /// Drops assignments beyond `capacity` per expert within each segment of tokens.
    pub(crate) fn drop_beyond(
        &self,
        routing: &Routing,
        segments: &[usize],
        capacity: usize,
        counted: bool,
    ) {
        let n_segments = segments.len().saturating_sub(1);
        let starts = self.starts(segments, routing.n_padded);
        let counter = match counted {
            true => Word::address(self.counters.at()),
            false => Word::NULL,
        };
        // No expert can take more than there are.
        let capacity = capacity.min(routing.n_padded * routing.top_k);
        self.launch(
            "limit",
            [padded(n_segments), 1],
            sorting_bytes(routing.n_experts),
            &words![
                Word::piece(&routing.idx),
                starts,
                routing.top_k,
                routing.n_experts,
                capacity,
                counter
            ],
        );
    }

    /// Experts' outputs in their order, and where each assignment lies there.
    pub(crate) fn run_experts(
        &self,
        x: &Tensor,
        routing: &Routing,
        experts: &HeldExperts<R>,
        counter: usize,
    ) -> Weighted {
        let Routing {
            idx,
            n_padded,
            top_k,
            ..
        } = routing;
        let n_assignments = n_padded * top_k;
        let n_chunks = n_assignments.div_ceil(CHUNK);
        let (first, n_experts) = (experts.first, experts.n_experts);
        let words_of = |n: usize| self.piece(n * size_of::<u32>());
        let counts = words_of(n_chunks * n_experts);
        let offsets = words_of(n_experts + 1);
        let (place, assignment) = (words_of(n_assignments), words_of(n_assignments));
        let n_real = self.input(&[(routing.n_tokens * top_k) as u32]);
        let kept = Word::address(self.counters.at() + (counter * size_of::<u64>()) as u64);
        let idx = Word::piece(idx);
        self.launch(
            "count",
            [n_chunks, 1],
            n_experts * size_of::<u32>(),
            &words![
                idx,
                n_assignments,
                first,
                n_experts,
                n_real,
                Word::piece(&counts),
                kept
            ],
        );
        self.launch(
            "place",
            [n_chunks, 1],
            sorting_bytes(n_experts),
            &words![
                idx,
                n_assignments,
                first,
                n_experts,
                Word::piece(&counts),
                Word::piece(&offsets),
                Word::piece(&place),
                Word::piece(&assignment)
            ],
        );
        let y = self.two_products(x, experts, n_assignments, (&offsets, &assignment, *top_k));
        Weighted {
            y: Some(y),
            place: Some(Rc::new(place)),
            gate: Some(Rc::clone(&routing.gate)),
            top_k: *top_k,
            factor: 1.0,
        }
    }

    /// `W_out · activation(W_in · x + b_in) + b_out`, rows in the order of experts.
    fn two_products(
        &self,
        x: &Tensor,
        experts: &HeldExperts<R>,
        n_rows: usize,
        (offsets, assignment, top_k): (&Piece, &Piece, usize),
    ) -> Rc<Piece> {
        let HeldExperts { d_model, f, .. } = *experts;
        let bias = |b: &Option<Buffer<R>>| b.as_ref().map_or(Word::NULL, |b| Word::address(b.at()));
        let groups = |assignment| {
            Some(Groups {
                offsets: Word::piece(offsets),
                assignment,
                n_groups: experts.n_experts,
                top_k,
            })
        };
        let rows = self.summed(x);
        let hidden = self.rows(n_rows, f, x.dtype);
        self.product(&Product {
            dtype: x.dtype,
            x: Word::piece(&rows),
            weight: Word::address(experts.w_in.at()),
            map: experts.map_in.word(),
            bias: bias(&experts.b_in),
            groups: groups(Word::piece(assignment)),
            n_rows,
            n: f,
            k: d_model,
            activation: experts.activation,
            times: Word::NULL,
            plus: Word::NULL,
            out: Word::piece(&hidden),
        });
        let y = self.rows(n_rows, d_model, x.dtype);
        self.product(&Product {
            dtype: x.dtype,
            x: Word::piece(&hidden),
            weight: Word::address(experts.w_out.at()),
            map: experts.map_out.word(),
            bias: bias(&experts.b_out),
            groups: groups(Word::NULL),
            n_rows,
            n: d_model,
            k: f,
            activation: Activation::Identity,
            times: Word::NULL,
            plus: Word::NULL,
            out: Word::piece(&y),
        });
        y
    }
}
