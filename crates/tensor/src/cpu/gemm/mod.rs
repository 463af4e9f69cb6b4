//! Matrix products `C = activation(A · Wᵀ + bias)`, for one matrix or for many at once.
//!
//! W is packed in panels of sixteen outputs ([`Panels`]), A in tiles of rows ([`rows`]). A product
//! of many groups (the experts of a layer) is one list of pieces of about equal cost, of whichever
//! group: how tokens are spread over experts does not decide how long it takes.

pub(crate) mod finish;
pub(crate) mod kernel;
mod out;
pub(crate) mod rows;

use std::ops::Range;

use finish::{Countdowns, Finish, Norms};
use kernel::{
    Ahead, IsaWork, Kernel, Strides, TileWork, on_isa, panels_at_once, product, with_tile,
};
use out::load_some;
pub(crate) use out::{Out, OutRows};
use rows::{RowTiles, Rows, pack};

use super::compute::{Compute, ProductScratch};
use super::lanes::{Aligned, LANES, Lanes};
use super::math::activate;
use super::panels::{Element, Matrix, Panels};
use super::parallel::{Parallel, SharedMut};
use crate::device::{Activation, LinearWeights, Norm};

/// Bytes of packed A that a piece of work keeps in the second-level cache beside a panel (a
/// Zen 5 core has 1 MiB).
const A_BYTES: usize = 768 << 10;

/// Bytes of packed rows per thread that are multiplied before more are packed: what its
/// second-level cache holds.
const CACHED_BYTES: usize = 1 << 20;

/// Fewest rows that are multiplied at once, however wide they are: weights are read again for each
/// part.
const LEAST_ROWS: usize = 192;

/// Rows below which reading a weight takes longer than multiplying with it.
const SKINNY_ROWS: usize = 32;

/// Multiply-adds below which a piece of work is not cut: about 10 µs in f32.
const LEAST_COST: usize = 1 << 20;

/// The weights of one group.
pub(crate) struct Weights<'a, E> {
    panels: &'a Panels<E>,
    /// `[n_out]`
    bias: Option<&'a [f32]>,
}

impl<'a, E: Element> Weights<'a, E> {
    /// # Panics
    /// If the matrix is of another dtype than `E`.
    pub(crate) fn new(matrix: &'a Matrix, bias: Option<&'a [f32]>) -> Self {
        let panels = E::panels(matrix).expect("matrices of one device have one dtype");
        Self { panels, bias }
    }
}

/// The weights of one linear layer.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) bias: Option<&'a [f32]>,
}

impl<'a> Layer<'a> {
    pub(crate) fn of(linear: &LinearWeights<'a, Matrix, Vec<f32>>) -> Self {
        Self {
            matrix: linear.weight,
            bias: linear.bias.map(Vec::as_slice),
        }
    }

    pub(crate) fn weights<E: Element>(&self) -> Weights<'a, E> {
        Weights::new(self.matrix, self.bias)
    }
}

/// A product of one or many groups of rows, each with weights of its own.
pub(crate) struct Product<'a, K: Kernel> {
    /// `[n_rows, n_steps]` in tiles.
    pub(crate) a: &'a [K::A],
    /// Rows of each group.
    pub(crate) groups: &'a [RowTiles],
    /// Weights of each group, all of the same `n_in`.
    pub(crate) weights: &'a (dyn Fn(usize) -> Weights<'a, K::Weight> + Sync),
    /// Of the gate, where a group has one: its activation is the factor of the results, which have
    /// none of their own then.
    pub(crate) gates: &'a (dyn Fn(usize) -> Option<Weights<'a, K::Weight>> + Sync),
    pub(crate) activation: Activation,
    pub(crate) out: Out<'a, K::A>,
}

/// Runs `$body` with `$K` standing for the kernel that multiplies `$matrix` on `$isa`.
macro_rules! with_kernel {
    ($isa:expr, $matrix:expr, $K:ident => $body:expr) => {{
        use $crate::cpu::gemm::kernel::*;
        use $crate::cpu::isa::Isa::*;
        use $crate::cpu::lanes::*;
        use $crate::cpu::panels::Packed;
        macro_rules! run {
            ($kernel:ty) => {{
                type $K = $kernel;
                $body
            }};
        }
        match ($isa, &$matrix.0) {
            #[cfg(target_arch = "x86_64")]
            (Avx512Bf16, Packed::Bf16(_)) => run!(Bf16Dot),
            #[cfg(target_arch = "x86_64")]
            (Avx512 | Avx512Bf16, Packed::F32(_)) => run!(F32<Avx512Lanes>),
            #[cfg(target_arch = "x86_64")]
            (Avx512 | Avx512Bf16, Packed::F16(_)) => run!(F16<Avx512Lanes>),
            #[cfg(target_arch = "x86_64")]
            (Avx512, Packed::Bf16(_)) => run!(Bf16<Avx512Lanes>),
            #[cfg(target_arch = "x86_64")]
            (Avx2, Packed::F32(_)) => run!(F32<Avx2Lanes>),
            #[cfg(target_arch = "x86_64")]
            (Avx2, Packed::F16(_)) => run!(F16<Avx2Lanes>),
            #[cfg(target_arch = "x86_64")]
            (Avx2, Packed::Bf16(_)) => run!(Bf16<Avx2Lanes>),
            (_, Packed::F32(_)) => run!(F32<PortableLanes>),
            (_, Packed::F16(_)) => run!(F16<PortableLanes>),
            (_, Packed::Bf16(_)) => run!(Bf16<PortableLanes>),
        }
    }};
}
pub(crate) use with_kernel;

/// `c = activation(a · wᵀ + bias) + residual`, normalised if asked.
///
/// # Shapes
/// - `a`: `[m, n_in]`
/// - `c`, `residual`: `[m, n_out]`
pub(crate) fn gemm(
    compute: &Compute,
    a: &[f32],
    layer: Layer<'_>,
    activation: Activation,
    residual: Option<&[f32]>,
    norm: Option<&Norm<Vec<f32>>>,
    c: &mut [f32],
) {
    if c.is_empty() {
        return;
    }
    let w = layer.matrix;
    let rows = Rows {
        data: a,
        n_cols: w.n_in(),
        idx: None,
    };
    let all = RowTiles::new(compute.isa, 0..c.len() / w.n_out());
    let c = SharedMut::new(c);
    let norms = norm.map(|norm| Norms::new(compute.isa, norm, c));
    let out = OutRows {
        c,
        idx: None,
        gate: None,
        residual,
        first_row: 0,
        finish: norms.as_ref().map(|norms| norms as &dyn Finish),
    };
    // SAFETY: the kernel is for this machine's instructions; `c` has a row for each row of `a`.
    unsafe {
        with_kernel!(compute.isa, w, K => {
            gemm_of::<K>(compute, rows, &all, layer, activation, &out);
        });
    }
}

/// # Safety
/// As [`Product::run`].
unsafe fn gemm_of<K: Kernel>(
    compute: &Compute,
    rows: Rows<'_>,
    all: &RowTiles,
    layer: Layer<'_>,
    activation: Activation,
    out: &OutRows<'_>,
) {
    let parallel = &compute.parallel;
    let ProductScratch {
        a, groups, plan, ..
    } = &mut compute.scratch().products;
    let n_steps = rows.n_cols.div_ceil(K::Weight::STEP);
    let most_bytes = CACHED_BYTES * parallel.n_threads();
    let n_rows = all.n_rows();
    let most = most_rows(n_rows, n_steps * size_of::<K::A>(), most_bytes);
    let a = a.room(most * n_steps);
    for part in parts(n_rows, most) {
        let rows = rows.part(&part);
        groups.clear();
        groups.push(all.part(K::ISA, &part));
        pack::<K>(parallel, rows, groups, &mut *a);
        let product = Product::<K> {
            a,
            groups,
            weights: &|_| layer.weights(),
            gates: &|_| None,
            activation,
            out: Out::Rows(out.part(&part, layer.matrix.n_out())),
        };
        // SAFETY: the caller's promise.
        unsafe { product.run(parallel, plan) };
    }
}

/// How many of `n_rows` rows, of `row_bytes` each, are multiplied at once: as many as `most_bytes`
/// hold, but at least [`LEAST_ROWS`].
pub(crate) fn most_rows(n_rows: usize, row_bytes: usize, most_bytes: usize) -> usize {
    n_rows.min((most_bytes / row_bytes.max(1)).max(LEAST_ROWS))
}

/// Parts of `n_rows` rows, nearly equal, of at most `most` each.
pub(crate) fn parts(n_rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let n_parts = n_rows.div_ceil(most.max(1));
    (0..n_parts).map(move |i| i * n_rows / n_parts..(i + 1) * n_rows / n_parts)
}

/// How a product is cut. Memory that only grows.
#[derive(Default)]
pub(crate) struct Plan {
    pieces: Vec<Piece>,
    /// Pieces of each block of rows that are not stored yet.
    unstored: Countdowns,
}

/// Some tiles of a group × some panels.
#[derive(Clone, Debug)]
struct Piece {
    group_idx: usize,
    /// Pieces of the same tiles are a block.
    block_idx: usize,
    tiles: Range<usize>,
    panels: Range<usize>,
    /// By which pieces are ordered.
    turn: f32,
}

impl<K: Kernel> Product<'_, K> {
    /// Multiplies on all threads; `plan` is memory to plan in.
    ///
    /// # Safety
    /// The machine has `K::ISA`. `out` has room for every row that the groups and `idx` name, no row
    /// is named twice, and nobody else touches it meanwhile.
    pub(crate) unsafe fn run(&self, parallel: &Parallel, plan: &mut Plan) {
        self.plan(parallel.n_threads(), plan);
        let Plan { pieces, unstored } = plan;
        self.spread_skinny(pieces);
        parallel.for_each(pieces.len(), |i| {
            let piece = &pieces[i];
            let work = PieceWork {
                product: self,
                piece,
                next: pieces.get(i + parallel.n_threads()),
            };
            // SAFETY: the caller's promise; pieces differ in rows or in columns, so they write
            // disjoint elements.
            unsafe { on_isa(K::ISA, &work) };
            if unstored.is_last(piece.block_idx) {
                let rows = block_rows(&self.groups[piece.group_idx], &piece.tiles);
                // SAFETY: the pieces of a block are all columns of its rows, and each of them was
                // stored before it was taken off the count.
                unsafe { self.out.finish(rows) };
            }
        });
    }

    /// Cuts the product into pieces of about equal cost: enough of them that a thread which is
    /// held up leaves its share to the others.
    fn plan(&self, n_threads: usize, plan: &mut Plan) {
        const PIECES_PER_THREAD: usize = 12;
        let Plan { pieces, unstored } = plan;
        pieces.clear();
        unstored.clear();
        let cost = |rows: usize, panels: usize, n_in: usize| rows * panels * LANES * n_in;
        let total: usize = (self.groups.iter().enumerate())
            .filter(|(_, rows)| rows.n_rows() > 0)
            .map(|(i, rows)| {
                let panels = (self.weights)(i).panels;
                cost(rows.n_rows(), panels.n_panels(), panels.n_in)
            })
            .sum();
        let wanted = (total / (PIECES_PER_THREAD * n_threads)).max(LEAST_COST);
        for (group_idx, rows) in self.groups.iter().enumerate() {
            let panels = (self.weights)(group_idx).panels;
            if rows.n_rows() == 0 || panels.n_panels() == 0 {
                continue;
            }
            let row_bytes = panels.n_steps() * size_of::<K::A>();
            let at_once = panels_at_once(K::ISA, rows.height());
            let block = (A_BYTES / (row_bytes * rows.height()).max(1)).clamp(1, rows.len());
            let n_blocks = rows.len().div_ceil(block);
            for b in 0..n_blocks {
                let tiles = b * rows.len() / n_blocks..(b + 1) * rows.len() / n_blocks;
                let n_rows = block_rows(rows, &tiles).len();
                let n_panels = panels.n_panels();
                let n_pieces = (cost(n_rows, n_panels, panels.n_in) / wanted).max(1);
                let width = n_panels.div_ceil(n_pieces).next_multiple_of(at_once);
                let block_idx = unstored.push(n_panels.div_ceil(width));
                for first in (0..n_panels).step_by(width) {
                    pieces.push(Piece {
                        group_idx,
                        block_idx,
                        tiles: tiles.clone(),
                        panels: first..n_panels.min(first + width),
                        turn: 0.0,
                    });
                }
            }
        }
    }

    /// Distributes the pieces of groups of few rows evenly among the others: those wait for weights
    /// from memory, these compute, and at the same time they take less than one after the other.
    fn spread_skinny(&self, pieces: &mut [Piece]) {
        let is_skinny = |piece: &Piece| self.groups[piece.group_idx].n_rows() < SKINNY_ROWS;
        let n_skinny = pieces.iter().filter(|piece| is_skinny(piece)).count();
        let n_of = [pieces.len() - n_skinny, n_skinny];
        if n_of.contains(&0) {
            return;
        }
        let mut n_before = [0, 0];
        for piece in &mut *pieces {
            let kind = usize::from(is_skinny(piece));
            piece.turn = (n_before[kind] as f32 + 0.5) / n_of[kind] as f32;
            n_before[kind] += 1;
        }
        pieces.sort_unstable_by(|a, b| a.turn.total_cmp(&b.turn));
    }
}

/// The rows of some consecutive tiles of a group.
fn block_rows(group: &RowTiles, tiles: &Range<usize>) -> Range<usize> {
    group.tile(tiles.start).start..group.tile(tiles.end - 1).end
}

struct PieceWork<'p, 'a, K: Kernel> {
    product: &'p Product<'a, K>,
    piece: &'p Piece,
    /// Most likely this thread's next one.
    next: Option<&'p Piece>,
}

/// The weights of a piece, or those of its gate.
struct PieceLayer<'a, E> {
    weights: Weights<'a, E>,
    /// Of the next piece.
    next: Option<&'a Panels<E>>,
}

impl<K: Kernel> IsaWork for PieceWork<'_, '_, K> {
    #[inline(always)]
    unsafe fn run(&self) {
        let (product, piece) = (self.product, self.piece);
        let rows = &product.groups[piece.group_idx];
        let (up, gate) = self.layers();
        let n_layers = 1 + usize::from(gate.is_some());
        let at_once = panels_at_once(K::ISA, rows.height());
        // Sums of the weights, and of the gates.
        let mut staged = Aligned([[[0.0; LANES]; MAX_VECTORS]; 2]);
        let staged = &mut staged.0;
        let is_staged = gate.is_some()
            || product.activation != Activation::Identity
            || matches!(product.out, Out::Packed(_));
        let gate = gate.as_ref().unwrap_or(&up);
        let Panels { n_out, .. } = *up.weights.panels;
        let mut panel_idx = piece.panels.start;
        while panel_idx < piece.panels.end {
            let left = piece.panels.end - panel_idx;
            let n_panels = if left >= at_once { at_once } else { 1 };
            for (i, tile_idx) in piece.tiles.clone().enumerate() {
                let rows = rows.tile(tile_idx);
                let n_fetched = i * Ahead::n_bytes(up.weights.panels.n_steps());
                let n_vectors = rows.len() * n_panels;
                // In a loop, because `with_tile` is compiled for every size of tile where it stands.
                for layer in 0..n_layers {
                    let staged = &mut staged[layer][..n_vectors];
                    let layer = if layer == 0 { &up } else { gate };
                    let next = self.panels_after(layer, panel_idx + n_panels, n_panels);
                    let tile = Tile {
                        product,
                        weights: &layer.weights,
                        first_row: rows.start,
                        panel_idx,
                        ahead: Ahead::of(next, n_fetched),
                        staged: is_staged.then_some(staged.as_mut_ptr()),
                    };
                    // SAFETY: the machine has `K::ISA` and `out` has room by the caller's promise,
                    // `n_panels` is as `with_tile` asks, and `staged` is of the tile's size.
                    unsafe { with_tile::<K>(rows.len(), n_panels, &tile) };
                }
                if !is_staged {
                    continue;
                }
                let activated = staged[n_layers - 1][..n_vectors].as_flattened_mut();
                activate(product.activation, activated);
                let [sums, factors] = &mut *staged;
                let sums = &mut sums[..n_vectors];
                if n_layers == 2 {
                    let factors = factors.as_flattened();
                    for (x, factor) in sums.as_flattened_mut().iter_mut().zip(factors) {
                        *x *= factor;
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { product.out.put::<K>(rows, panel_idx * LANES, n_out, sums) };
            }
            panel_idx += n_panels;
        }
    }
}

impl<'a, K: Kernel> PieceWork<'_, 'a, K> {
    /// The weights, and the gate if there is one.
    #[inline(always)]
    fn layers(&self) -> (PieceLayer<'a, K::Weight>, Option<PieceLayer<'a, K::Weight>>) {
        let Product { weights, gates, .. } = self.product;
        let (here, next) = (self.piece.group_idx, self.next.map(|next| next.group_idx));
        let up = PieceLayer {
            weights: weights(here),
            next: next.map(|group| weights(group).panels),
        };
        let gate = gates(here).map(|weights| PieceLayer {
            weights,
            next: next.and_then(gates).map(|gate| gate.panels),
        });
        (up, gate)
    }

    /// The panels that are likely to be multiplied next: those that follow, or the first of the
    /// next piece.
    #[inline(always)]
    fn panels_after(
        &self,
        layer: &PieceLayer<'a, K::Weight>,
        panel_idx: usize,
        n_panels: usize,
    ) -> &'a [K::Weight] {
        let end = self.piece.panels.end;
        if panel_idx < end {
            let panels = layer.weights.panels;
            return panels.several(panel_idx..end.min(panel_idx + n_panels));
        }
        match (layer.next, self.next) {
            (Some(panels), Some(Piece { panels: next, .. })) => {
                panels.several(next.start..next.end.min(next.start + n_panels))
            }
            _ => &[],
        }
    }
}

/// Vectors of the largest tile.
const MAX_VECTORS: usize = 24;

/// One tile of a product.
struct Tile<'p, 'a, K: Kernel> {
    product: &'p Product<'a, K>,
    weights: &'p Weights<'a, K::Weight>,
    first_row: usize,
    panel_idx: usize,
    /// Part of the panels that come next.
    ahead: Ahead,
    /// `[rows, panels]`: where sums go if they are not finished in registers.
    staged: Option<*mut [f32; LANES]>,
}

impl<K: Kernel> TileWork<K> for Tile<'_, '_, K> {
    #[inline(always)]
    unsafe fn run<const M: usize, const P: usize>(&self) {
        let Weights { panels, bias } = self.weights;
        let n_steps = panels.n_steps();
        let a = &self.product.a[self.first_row * n_steps..][..M * n_steps];
        let pointers = std::array::from_fn(|p| panels.panel(self.panel_idx + p).as_ptr());
        let strides = Strides { row: 1, step: M };
        let col = |p: usize| (self.panel_idx + p) * LANES;
        // SAFETY: the machine has `K::ISA` by the caller's promise; `a` and every panel hold
        // `n_steps` steps, the slices above show it.
        let mut sums =
            unsafe { product::<K, M, P>(a.as_ptr(), strides, pointers, n_steps, self.ahead) };
        if let Some(bias) = bias {
            for p in 0..P {
                // SAFETY: the machine has `K::ISA`.
                unsafe {
                    let bias = load_some::<K::Sums>(&bias[col(p)..]);
                    for sums in &mut sums {
                        sums[p] = sums[p].add_product(bias, K::Sums::splat(1.0));
                    }
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            // SAFETY: `out` has room by the caller's promise, and `staged` for the tile.
            unsafe {
                match (self.staged, &self.product.out) {
                    (Some(staged), _) => {
                        for (p, sums) in sums.into_iter().enumerate() {
                            sums.store(staged.add(r * P + p).cast());
                        }
                    }
                    (None, Out::Rows(out)) => {
                        out.put(self.first_row + r, col(0), panels.n_out, &sums);
                    }
                    (None, Out::Packed(_)) => unreachable!("packed results are staged"),
                }
            }
        }
    }
}
