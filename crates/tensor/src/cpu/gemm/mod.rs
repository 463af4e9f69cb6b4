//! Matrix products `C = activation(A · Wᵀ + bias)`, for one matrix or for many at once.
//!
//! W is packed in panels of sixteen outputs ([`Panels`]), A in tiles of rows ([`rows`]). A product
//! of many groups (the experts of a layer) is one list of pieces of about equal cost, of whichever
//! group: how tokens are spread over experts does not decide how long it takes.

pub(crate) mod kernel;
pub(crate) mod rows;

use std::ops::Range;

use kernel::{
    Ahead, IsaWork, Kernel, Strides, TileWork, on_isa, panels_at_once, product, with_tile,
};
use rows::{RowTiles, Rows, pack, put};

use super::compute::Compute;
use super::lanes::LANES;
use super::math::activate;
use super::panels::{Element, Matrix, Panels};
use super::parallel::{Parallel, SharedMut};
use crate::device::Activation;

/// Bytes of packed A that a piece of work keeps in the second-level cache beside a panel (a
/// Zen 5 core has 1 MiB).
const A_BYTES: usize = 384 << 10;

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

/// Where the rows of a product go.
pub(crate) enum Out<'a, A> {
    /// Rows of f32.
    Rows(OutRows<'a>),
    /// The A of the next product: `[n_rows, n_steps]`, tiled alike.
    Packed(SharedMut<A>),
}

/// `c[row_idx[r]] = gate[r] · y[r] + residual[row_idx[r]]`
pub(crate) struct OutRows<'a> {
    /// `[_, n_out]`
    pub(crate) c: SharedMut<f32>,
    /// Row of `c` of each row; in order where there is none.
    pub(crate) idx: Option<&'a [usize]>,
    /// Factor of each row.
    pub(crate) gate: Option<&'a [f32]>,
    /// `[_, n_out]`
    pub(crate) residual: Option<&'a [f32]>,
}

/// A product of one or many groups of rows, each with weights of its own.
pub(crate) struct Product<'a, K: Kernel> {
    /// `[n_rows, n_steps]` in tiles.
    pub(crate) a: &'a [K::A],
    /// Rows of each group.
    pub(crate) groups: &'a [RowTiles],
    /// Weights of each group, all of the same `n_in`.
    pub(crate) weights: &'a (dyn Fn(usize) -> Weights<'a, K::Weight> + Sync),
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

/// `c = activation(a · wᵀ + bias) + residual`.
///
/// # Shapes
/// - `a`: `[m, w.n_in()]`
/// - `c`, `residual`: `[m, w.n_out()]`
pub(crate) fn gemm(
    compute: &Compute,
    a: &[f32],
    w: &Matrix,
    bias: Option<&[f32]>,
    activation: Activation,
    residual: Option<&[f32]>,
    c: &mut [f32],
) {
    if c.is_empty() {
        return;
    }
    let rows = Rows {
        data: a,
        n_cols: w.n_in(),
        idx: None,
    };
    let groups = [RowTiles::new(compute.isa, 0..c.len() / w.n_out())];
    let out = OutRows {
        c: SharedMut::new(c),
        idx: None,
        gate: None,
        residual,
    };
    // SAFETY: the kernel is for this machine's instructions; `c` has a row for each row of `a`.
    unsafe {
        with_kernel!(compute.isa, w, K => {
            gemm_of::<K>(compute, rows, &groups, w, bias, activation, out);
        });
    }
}

/// # Safety
/// As [`Product::run`].
unsafe fn gemm_of<K: Kernel>(
    compute: &Compute,
    rows: Rows<'_>,
    groups: &[RowTiles; 1],
    w: &Matrix,
    bias: Option<&[f32]>,
    activation: Activation,
    out: OutRows<'_>,
) {
    let scratch = &mut compute.scratch().products;
    let n_steps = rows.n_cols.div_ceil(K::Weight::STEP);
    let a = scratch.a.room(groups[0].n_rows() * n_steps);
    pack::<K>(&compute.parallel, rows, groups, a);
    let product = Product::<K> {
        a,
        groups,
        weights: &|_| Weights::new(w, bias),
        activation,
        out: Out::Rows(out),
    };
    // SAFETY: the caller's promise.
    unsafe { product.run(&compute.parallel, &mut scratch.pieces) };
}

/// Some tiles of a group × some panels.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    group_idx: usize,
    tiles: Range<usize>,
    panels: Range<usize>,
}

impl<K: Kernel> Product<'_, K> {
    /// Multiplies on all threads; `pieces` is memory to plan in.
    ///
    /// # Safety
    /// The machine has `K::ISA`. `out` has room for every row that the groups and `idx` name, no row
    /// is named twice, and nobody else touches it meanwhile.
    pub(crate) unsafe fn run(&self, parallel: &Parallel, pieces: &mut Vec<Piece>) {
        pieces.clear();
        self.plan(parallel.n_threads(), pieces);
        parallel.for_each(pieces.len(), |i| {
            let work = PieceWork {
                product: self,
                piece: &pieces[i],
            };
            // SAFETY: the caller's promise; pieces differ in rows or in columns, so they write
            // disjoint elements.
            unsafe { on_isa(K::ISA, &work) };
        });
    }

    /// Cuts the product into pieces of about equal cost: enough of them that a thread which is
    /// held up leaves its share to the others.
    fn plan(&self, n_threads: usize, pieces: &mut Vec<Piece>) {
        const PIECES_PER_THREAD: usize = 12;
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
                let n_rows = rows.tile(tiles.end - 1).end - rows.tile(tiles.start).start;
                let n_panels = panels.n_panels();
                let n_pieces = (cost(n_rows, n_panels, panels.n_in) / wanted).max(1);
                let width = n_panels.div_ceil(n_pieces).next_multiple_of(at_once);
                for first in (0..n_panels).step_by(width) {
                    pieces.push(Piece {
                        group_idx,
                        tiles: tiles.clone(),
                        panels: first..n_panels.min(first + width),
                    });
                }
            }
        }
    }
}

struct PieceWork<'p, 'a, K: Kernel> {
    product: &'p Product<'a, K>,
    piece: &'p Piece,
}

impl<K: Kernel> IsaWork for PieceWork<'_, '_, K> {
    #[inline(always)]
    unsafe fn run(&self) {
        let (product, piece) = (self.product, self.piece);
        let rows = &product.groups[piece.group_idx];
        let weights = (product.weights)(piece.group_idx);
        let at_once = panels_at_once(K::ISA, rows.height());
        let mut sums = [[0.0; LANES]; MAX_VECTORS];
        let mut panel_idx = piece.panels.start;
        while panel_idx < piece.panels.end {
            let left = piece.panels.end - panel_idx;
            let n_panels = if left >= at_once { at_once } else { 1 };
            let next = panel_idx + n_panels..piece.panels.end.min(panel_idx + 2 * n_panels);
            let next = weights.panels.several(next);
            for (i, tile_idx) in piece.tiles.clone().enumerate() {
                let rows = rows.tile(tile_idx);
                let n_fetched = i * Ahead::n_bytes(weights.panels.n_steps());
                let sums = &mut sums[..rows.len() * n_panels];
                let tile = Tile {
                    a: product.a,
                    panels: weights.panels,
                    first_row: rows.start,
                    panel_idx,
                    ahead: Ahead::of(next, n_fetched),
                    sums: sums.as_mut_ptr(),
                };
                // SAFETY: the machine has `K::ISA` by the caller's promise, `n_panels` is as
                // `with_tile` asks, and `sums` is of the tile's size.
                unsafe { with_tile::<K>(rows.len(), n_panels, &tile) };
                // SAFETY: the caller's promise.
                unsafe { product.put(&weights, rows, panel_idx, sums) };
            }
            panel_idx += n_panels;
        }
    }
}

/// Vectors of the largest tile.
const MAX_VECTORS: usize = 24;

/// One tile of a product.
struct Tile<'a, K: Kernel> {
    a: &'a [K::A],
    panels: &'a Panels<K::Weight>,
    first_row: usize,
    panel_idx: usize,
    /// Part of the panels that come next.
    ahead: Ahead,
    /// `[rows, panels]`
    sums: *mut [f32; LANES],
}

impl<K: Kernel> TileWork<K> for Tile<'_, K> {
    #[inline(always)]
    unsafe fn run<const M: usize, const P: usize>(&self) {
        let n_steps = self.panels.n_steps();
        let a = &self.a[self.first_row * n_steps..][..M * n_steps];
        let panels = std::array::from_fn(|p| self.panels.panel(self.panel_idx + p).as_ptr());
        // SAFETY: `a` and every panel hold `n_steps` steps, the slices above show it; `sums` holds
        // `M · P` vectors by the caller's promise.
        unsafe {
            let strides = Strides { row: 1, step: M };
            let product = product::<K, M, P>(a.as_ptr(), strides, panels, n_steps, self.ahead);
            for (r, sums) in product.into_iter().enumerate() {
                for (p, sums) in sums.into_iter().enumerate() {
                    K::store(sums, self.sums.add(r * P + p).cast());
                }
            }
        }
    }
}

impl<K: Kernel> Product<'_, K> {
    /// Finishes a tile of sums `[rows, panels]` and stores it.
    ///
    /// # Safety
    /// As [`Product::run`].
    #[inline(always)]
    unsafe fn put(
        &self,
        weights: &Weights<'_, K::Weight>,
        rows: Range<usize>,
        panel_idx: usize,
        sums: &mut [[f32; LANES]],
    ) {
        let first_col = panel_idx * LANES;
        let n_out = weights.panels.n_out;
        let n_panels = sums.len() / rows.len();
        let width = (n_panels * LANES).min(n_out - first_col);
        if let Some(bias) = weights.bias {
            let bias = &bias[first_col..][..width];
            for row in sums.chunks_exact_mut(n_panels) {
                let row = row.as_flattened_mut();
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        }
        activate(self.activation, sums.as_flattened_mut());
        let row = |r: usize| &sums[r * n_panels..][..n_panels].as_flattened()[..width];
        // SAFETY: the caller's promise; the tile's steps lie where it starts.
        unsafe {
            match &self.out {
                Out::Rows(out) => {
                    for r in 0..rows.len() {
                        out.put(rows.start + r, first_col, n_out, row(r));
                    }
                }
                Out::Packed(out) => {
                    let step = K::Weight::STEP;
                    let tile = out.ptr().add(rows.start * n_out.div_ceil(step));
                    for from in (0..width).step_by(LANES * step) {
                        let cols = from..width.min(from + LANES * step);
                        let to = tile.add((first_col + from) / step * rows.len());
                        let row = |r: usize| &row(r)[cols.clone()];
                        put::<K>(rows.len(), row, to, cols.len().div_ceil(step));
                    }
                }
            }
        }
    }
}

impl OutRows<'_> {
    /// Stores columns `first_col ..` of one row.
    ///
    /// # Safety
    /// As [`Product::run`].
    #[inline(always)]
    unsafe fn put(&self, row: usize, first_col: usize, n_cols: usize, values: &[f32]) {
        let gate = self.gate.map_or(1.0, |gate| gate[row]);
        let at = self.idx.map_or(row, |idx| idx[row]) * n_cols + first_col;
        // SAFETY: these columns lie within the row, and nobody else has them.
        let to = unsafe { std::slice::from_raw_parts_mut(self.c.ptr().add(at), values.len()) };
        match self.residual {
            Some(residual) => {
                let residual = &residual[at..][..values.len()];
                for ((to, x), r) in to.iter_mut().zip(values).zip(residual) {
                    *to = gate * x + r;
                }
            }
            // Adding zero gives −0 the sign that a sum of one expert's output has elsewhere.
            None => (to.iter_mut().zip(values)).for_each(|(to, x)| *to = gate * x + 0.0),
        }
    }
}
