//! Bidirectional attention within each packed sequence.
//!
//! `out = softmax(scale · q · kᵀ + bias(j − i)) · v`, head by head, without the matrix of scores:
//! keys are taken in blocks, with a running maximum and sum (online softmax, arXiv:1805.02867).
//!
//! Lanes are queries. The transposed scores of a block, `[n_keys, 16]`, are rows of keys times
//! panels of queries; they are at once the panels that values, `[head_dim, n_keys]`, are
//! multiplied with. Maxima and sums then run down the lanes, and keys and values are read where
//! they lie.

use std::cell::RefCell;
use std::ops::Range;

use super::compute::{Buffer, Compute};
use super::gemm::kernel::{
    Ahead, F32, IsaWork, Strides, TileWork, on_isa, panels_at_once, product, put_steps_f32,
    with_tile,
};
use super::gemm::rows::RowTiles;
use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2Lanes, Avx512Lanes};
use super::lanes::{LANES, Lanes, PortableLanes};
use super::math::exp;
use super::parallel::SharedMut;
use super::positions::Positions;
use crate::device::{AttentionShape, PositionRule};

/// Panels of queries that are computed together.
const QUERY_PANELS: usize = 4;

/// Queries that are computed together.
const QUERIES: usize = QUERY_PANELS * LANES;

/// Keys of a block: with 64 queries its scores are 64 KiB.
const KEYS: usize = 256;

/// Queries of a piece of work.
const CHUNK: usize = 4 * QUERIES;

/// Computes all sequences and heads.
///
/// # Shapes
/// - `qkv`: `[n_tokens, 3 · n_heads · head_dim]`
/// - `bias`: `[n_buckets, n_heads]` or empty
/// - `out`: `[n_tokens, n_heads · head_dim]`
pub(crate) fn attention(
    compute: &Compute,
    qkv: &[f32],
    cu_seqlens: &[usize],
    shape: &AttentionShape,
    bias: &[f32],
    out: &mut [f32],
) {
    let n_seqs = cu_seqlens.len().saturating_sub(1);
    let longest = (cu_seqlens.windows(2).map(|w| w[1] - w[0]).max()).unwrap_or(0);
    let mut scratch = compute.scratch();
    scratch.positions.prepare(shape, longest, bias);
    let positions = &scratch.positions;
    let out = SharedMut::new(out);
    let n_chunks = longest.div_ceil(CHUNK);
    compute
        .parallel
        .for_each(n_seqs * shape.n_heads * n_chunks, |i| {
            let (seq, head, chunk) = (
                i / (n_chunks * shape.n_heads),
                i / n_chunks % shape.n_heads,
                i % n_chunks,
            );
            let tokens = cu_seqlens[seq]..cu_seqlens[seq + 1];
            let queries = chunk * CHUNK..tokens.len().min((chunk + 1) * CHUNK);
            if queries.is_empty() {
                return;
            }
            let head = Head {
                qkv,
                tokens,
                queries,
                head,
                shape,
                positions,
                out,
            };
            // SAFETY: `CpuDevice::new` checks the instructions. The device has checked that sequences do
            // not overlap, and pieces differ in sequence, head or queries, so they write disjoint
            // elements of `out`.
            unsafe {
                match compute.isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 | Isa::Avx512Bf16 => {
                        on_isa(Isa::Avx512, &HeadWork::<Avx512Lanes>::new(&head));
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => on_isa(Isa::Avx2, &HeadWork::<Avx2Lanes>::new(&head)),
                    _ => on_isa(Isa::Portable, &HeadWork::<PortableLanes>::new(&head)),
                }
            }
        });
}

/// Some queries of one head of one sequence.
struct Head<'a> {
    qkv: &'a [f32],
    /// The sequence's rows.
    tokens: Range<usize>,
    /// Within the sequence.
    queries: Range<usize>,
    head: usize,
    shape: &'a AttentionShape,
    positions: &'a Positions,
    out: SharedMut<f32>,
}

impl Head<'_> {
    /// Columns of `qkv`, and of one part of it.
    fn widths(&self) -> (usize, usize) {
        let width = self.shape.n_heads * self.shape.head_dim;
        (3 * width, width)
    }

    /// This head's part of query (0), key (1) or value (2) of a token of the sequence.
    #[inline(always)]
    fn part(&self, part: usize, token: usize) -> &[f32] {
        let (row, width) = self.widths();
        let dim = self.shape.head_dim;
        &self.qkv[(self.tokens.start + token) * row + part * width + self.head * dim..][..dim]
    }

    /// Copies a query or a key, rotated by its position.
    #[inline(always)]
    fn copy_rotated(&self, part: usize, token: usize, to: &mut [f32]) {
        to.copy_from_slice(self.part(part, token));
        if let PositionRule::Rotary { dim, .. } = self.shape.position {
            let half = dim / 2;
            let angles = &self.positions.rotations[token * half..][..half];
            let (low, high) = to[..dim].split_at_mut(half);
            for ((a, b), &(cos, sin)) in low.iter_mut().zip(high).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }

    /// The bias of queries `query ..` (one a lane) and a key; empty without one.
    #[inline(always)]
    fn bias(&self, query: usize, key: usize) -> &[f32] {
        match self.shape.position {
            PositionRule::RelativeBias { .. } => {
                let table = &self.positions.biases[self.head * self.positions.n_distances()..];
                &table[self.positions.longest - 1 + query - key..][..LANES]
            }
            _ => &[],
        }
    }
}

/// A thread's working memory.
#[derive(Default)]
struct Memory {
    keys: Buffer,
    queries: Buffer,
    scores: Buffer,
    mixed: Buffer,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

struct HeadWork<'a, L> {
    head: &'a Head<'a>,
    lanes: std::marker::PhantomData<L>,
}

impl<'a, L> HeadWork<'a, L> {
    fn new(head: &'a Head<'a>) -> Self {
        Self {
            head,
            lanes: std::marker::PhantomData,
        }
    }
}

impl<L: Lanes> IsaWork for HeadWork<'_, L> {
    #[inline(always)]
    unsafe fn run(&self) {
        let head = self.head;
        let (row, _) = head.widths();
        let (dim, n) = (head.shape.head_dim, head.tokens.len());
        // Taken, not borrowed by a closure: that would not be compiled for the instruction set.
        let mut memory = MEMORY.take();
        let mut keys = (head.part(1, 0).as_ptr(), row);
        if let PositionRule::Rotary { .. } = head.shape.position {
            let rotated = memory.keys.room::<f32>(n * dim);
            for (token, to) in rotated.chunks_exact_mut(dim).enumerate() {
                head.copy_rotated(1, token, to);
            }
            keys = (rotated.as_ptr(), dim);
        }
        let Memory {
            queries,
            scores,
            mixed,
            ..
        } = &mut memory;
        for first in head.queries.clone().step_by(QUERIES) {
            let block = QueryBlock {
                head,
                queries: first..head.queries.end.min(first + QUERIES),
                keys,
            };
            // SAFETY: the caller's promise; `keys` are those of all tokens of the sequence.
            unsafe { block.run::<L>(queries, scores, mixed) };
        }
        MEMORY.set(memory);
    }
}

/// Stores rows of `dim` numbers column by column, `[dim, height]`, rows that are missing being
/// zero.
///
/// # Safety
/// The machine has the instructions of `L`; `height` is at most sixteen.
#[inline(always)]
unsafe fn transpose<L: Lanes>(rows: &[f32], dim: usize, height: usize, to: &mut [f32]) {
    assert!(to.len() >= dim * height, "a tile needs more room");
    for from in (0..dim).step_by(LANES) {
        let cols = from..dim.min(from + LANES);
        let mut block = [[0.0; LANES]; LANES];
        for (block, row) in block.iter_mut().zip(rows.chunks_exact(dim)) {
            match row[from..].first_chunk::<LANES>() {
                Some(row) => *block = *row,
                None => block[..cols.len()].copy_from_slice(&row[cols.clone()]),
            }
        }
        let to = to[from * height..].as_mut_ptr();
        // SAFETY: the caller's promise, and the room for these columns was checked.
        unsafe { put_steps_f32::<L>(&block[..height], cols.len(), to) };
    }
}

/// Up to four panels of queries of one head.
struct QueryBlock<'a> {
    head: &'a Head<'a>,
    /// Within the sequence.
    queries: Range<usize>,
    /// The first key, and the distance to the next.
    keys: (*const f32, usize),
}

/// Of each query of a panel.
#[derive(Clone, Copy)]
struct Running {
    largest: [f32; LANES],
    sum: [f32; LANES],
}

impl QueryBlock<'_> {
    /// # Safety
    /// The machine has the instructions of `L`, `keys` are valid for the whole sequence, and nobody
    /// else writes these queries' part of `out`.
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, queries: &mut Buffer, scores: &mut Buffer, mixed: &mut Buffer) {
        let (head, dim) = (self.head, self.head.shape.head_dim);
        let n_panels = self.queries.len().div_ceil(LANES);
        let queries = queries.room::<f32>(n_panels * dim * LANES);
        let scores = scores.room::<f32>(n_panels * KEYS * LANES);
        let mixed = mixed.room::<f32>(n_panels * dim * LANES);
        // SAFETY: the caller's promise.
        unsafe { self.pack_queries::<L>(queries, mixed) };
        mixed.fill(0.0);
        let mut running = [Running {
            largest: [f32::NEG_INFINITY; LANES],
            sum: [0.0; LANES],
        }; QUERY_PANELS];
        let n = head.tokens.len();
        for first in (0..n).step_by(KEYS) {
            let keys = first..n.min(first + KEYS);
            // SAFETY: the caller's promise; `scores` and `mixed` have room for all panels.
            unsafe {
                let tiles = ScoreTiles {
                    keys: (self.keys.0.add(first * self.keys.1), self.keys.1),
                    dim,
                    queries,
                    scores: scores.as_mut_ptr(),
                };
                walk::<L>(keys.len(), n_panels, &tiles);
            }
            for (panel, running) in running[..n_panels].iter_mut().enumerate() {
                let scores = &mut scores[panel * KEYS * LANES..][..keys.len() * LANES];
                let mixed = &mut mixed[panel * dim * LANES..][..dim * LANES];
                self.soften(panel, keys.clone(), scores, running, mixed);
            }
            let tiles = MixTiles {
                values: (head.part(2, first).as_ptr(), head.widths().0),
                n_keys: keys.len(),
                dim,
                scores,
                mixed: mixed.as_mut_ptr(),
            };
            // SAFETY: as above.
            unsafe { walk::<L>(dim, n_panels, &tiles) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.store::<L>(mixed, &running) };
    }

    /// Queries as panels `[n_panels, head_dim, 16]`, scaled; zero in lanes without one. `rows` is
    /// memory for one panel.
    ///
    /// # Safety
    /// As [`QueryBlock::run`].
    #[inline(always)]
    unsafe fn pack_queries<L: Lanes>(&self, to: &mut [f32], rows: &mut [f32]) {
        let dim = self.head.shape.head_dim;
        for (panel, to) in to.chunks_exact_mut(dim * LANES).enumerate() {
            let first = self.queries.start + panel * LANES;
            let queries = first..self.queries.end.min(first + LANES);
            let rows = &mut rows[..queries.len() * dim];
            for (row, query) in rows.chunks_exact_mut(dim).zip(queries) {
                self.head.copy_rotated(0, query, row);
                row.iter_mut().for_each(|x| *x *= self.head.shape.scale);
            }
            // SAFETY: the caller's promise.
            unsafe { transpose::<L>(rows, dim, LANES, to) };
        }
    }

    /// Turns the scores of one panel into powers relative to the running maximum, and what was
    /// summed up before with them.
    #[inline(always)]
    fn soften(
        &self,
        panel: usize,
        keys: Range<usize>,
        scores: &mut [f32],
        running: &mut Running,
        mixed: &mut [f32],
    ) {
        let query = self.queries.start + panel * LANES;
        let mut largest = running.largest;
        let scores = scores.as_chunks_mut::<LANES>().0;
        for (key, scores) in keys.zip(scores.iter_mut()) {
            for (x, b) in scores.iter_mut().zip(self.head.bias(query, key)) {
                *x += b;
            }
            for (a, &x) in largest.iter_mut().zip(&*scores) {
                *a = if x > *a { x } else { *a };
            }
        }
        // Where every score so far is −∞, powers relative to it would be NaN; they are 0.
        let base = largest.map(|x| if x == f32::NEG_INFINITY { 0.0 } else { x });
        let mut sum = [0.0_f32; LANES];
        for scores in scores {
            for lane in 0..LANES {
                scores[lane] = exp(scores[lane] - base[lane]);
                sum[lane] += scores[lane];
            }
        }
        for lane in 0..LANES {
            let correction = exp(running.largest[lane] - base[lane]);
            running.sum[lane] = running.sum[lane] * correction + sum[lane];
            running.largest[lane] = largest[lane];
            sum[lane] = correction;
        }
        for mixed in mixed.as_chunks_mut::<LANES>().0 {
            for (x, correction) in mixed.iter_mut().zip(sum) {
                *x *= correction;
            }
        }
    }

    /// Divides by the sums and stores every query's row.
    ///
    /// # Safety
    /// As [`QueryBlock::run`].
    #[inline(always)]
    unsafe fn store<L: Lanes>(&self, mixed: &[f32], running: &[Running]) {
        let (head, dim) = (self.head, self.head.shape.head_dim);
        let (_, width) = head.widths();
        for (panel, mixed) in mixed.chunks_exact(dim * LANES).enumerate() {
            let first = self.queries.start + panel * LANES;
            let queries = first..self.queries.end.min(first + LANES);
            let factor = running[panel].sum.map(|sum| 1.0 / sum);
            for (i, rows) in mixed.as_chunks::<LANES>().0.chunks(LANES).enumerate() {
                // [dimensions, lanes] -> [lanes, dimensions]
                let mut lanes = [0.0; LANES * LANES];
                // SAFETY: the caller's promise; at most sixteen rows of sixteen lanes.
                unsafe { put_steps_f32::<L>(rows, LANES, lanes.as_mut_ptr()) };
                let lanes = lanes.chunks_exact(rows.len());
                for ((query, lane), factor) in queries.clone().zip(lanes).zip(factor) {
                    let at = (head.tokens.start + query) * width + head.head * dim + i * LANES;
                    // SAFETY: columns of this head in this query's row, which `out` has.
                    let out = unsafe {
                        std::slice::from_raw_parts_mut(head.out.ptr().add(at), lane.len())
                    };
                    out.iter_mut().zip(lane).for_each(|(x, y)| *x = y * factor);
                }
            }
        }
    }
}

/// A product in tiles of rows × panels.
trait Tiles {
    /// # Safety
    /// The machine has the instructions of `L`, and what the implementor asks for.
    unsafe fn tile<L: Lanes, const M: usize, const P: usize>(&self, row: usize, panel: usize);
}

/// Computes all tiles of a product.
///
/// # Safety
/// As [`Tiles::tile`].
#[inline(always)]
unsafe fn walk<L: Lanes>(n_rows: usize, n_panels: usize, tiles: &impl Tiles) {
    struct At<'a, T>(&'a T, usize, usize);
    impl<L: Lanes, T: Tiles> TileWork<F32<L>> for At<'_, T> {
        #[inline(always)]
        unsafe fn run<const M: usize, const P: usize>(&self) {
            // SAFETY: the caller's promise.
            unsafe { self.0.tile::<L, M, P>(self.1, self.2) };
        }
    }
    let rows = RowTiles::new(L::ISA, 0..n_rows);
    let at_once = panels_at_once(L::ISA, rows.height());
    for tile in (0..rows.len()).map(|i| rows.tile(i)) {
        let mut panel = 0;
        while panel < n_panels {
            let n = if panel + at_once <= n_panels {
                at_once
            } else {
                1
            };
            // SAFETY: the caller's promise; the size is as `with_tile` asks.
            unsafe { with_tile::<F32<L>>(tile.len(), n, &At(tiles, tile.start, panel)) };
            panel += n;
        }
    }
}

/// `scores[p, j, lane] = Σ_d k[j, d] · q[p, d, lane]`
struct ScoreTiles<'a> {
    /// The first key of the block, and the distance to the next.
    keys: (*const f32, usize),
    dim: usize,
    /// `[n_panels, dim, 16]`
    queries: &'a [f32],
    /// `[n_panels, KEYS, 16]`
    scores: *mut f32,
}

impl Tiles for ScoreTiles<'_> {
    #[inline(always)]
    unsafe fn tile<L: Lanes, const M: usize, const P: usize>(&self, row: usize, panel: usize) {
        let size = self.dim * LANES;
        let panels = std::array::from_fn(|p| self.queries[(panel + p) * size..][..size].as_ptr());
        let strides = Strides {
            row: self.keys.1,
            step: 1,
        };
        // SAFETY: keys `row .. row + M` are of this block; `scores` has room for them.
        unsafe {
            let first = self.keys.0.add(row * self.keys.1);
            let sums = product::<F32<L>, M, P>(first, strides, panels, self.dim, Ahead::NONE);
            for (r, sums) in sums.into_iter().enumerate() {
                for (p, sums) in sums.into_iter().enumerate() {
                    sums.store(self.scores.add(((panel + p) * KEYS + row + r) * LANES));
                }
            }
        }
    }
}

/// `mixed[p, d, lane] += Σ_j v[j, d] · scores[p, j, lane]`
struct MixTiles<'a> {
    /// The first value of the block, and the distance to the next.
    values: (*const f32, usize),
    n_keys: usize,
    dim: usize,
    /// `[n_panels, KEYS, 16]`
    scores: &'a [f32],
    /// `[n_panels, dim, 16]`
    mixed: *mut f32,
}

impl Tiles for MixTiles<'_> {
    #[inline(always)]
    unsafe fn tile<L: Lanes, const M: usize, const P: usize>(&self, row: usize, panel: usize) {
        let size = self.n_keys * LANES;
        let panels =
            std::array::from_fn(|p| self.scores[(panel + p) * KEYS * LANES..][..size].as_ptr());
        let strides = Strides {
            row: 1,
            step: self.values.1,
        };
        // SAFETY: dimensions `row .. row + M` are of this head; `mixed` has room for them.
        unsafe {
            let sums = product::<F32<L>, M, P>(
                self.values.0.add(row),
                strides,
                panels,
                self.n_keys,
                Ahead::NONE,
            );
            for (r, sums) in sums.into_iter().enumerate() {
                for (p, sums) in sums.into_iter().enumerate() {
                    let to = self.mixed.add(((panel + p) * self.dim + row + r) * LANES);
                    L::load_f32(to).add_product(sums, L::splat(1.0)).store(to);
                }
            }
        }
    }
}
