//! The matrix product `C[m, n] = activation(A[m, k] · Wᵀ + bias) + residual`.
//!
//! W is packed in panels of sixteen outputs ([`Panels`]). A tile of rows × panels is accumulated
//! in registers over the whole of `k`, in the order of `k`: an element's value never depends on
//! how many rows or panels are computed with it, nor on the thread that computes it.

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2Lanes, Avx512Lanes};
use super::lanes::{LANES, Lanes, PortableLanes, Weight};
use super::math::activate;
use super::panels::{Matrix, Panels, with_panels};
use super::parallel::{Parallel, SharedMut};
use crate::device::Activation;

/// What is done to an element before it is stored.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    /// `[n]`
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    /// `[m, n]`
    pub(crate) residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// Store as it is.
    pub(crate) const NONE: Self = Self {
        bias: None,
        activation: Activation::Identity,
        residual: None,
    };
}

/// Rows of A that a block of work keeps in the cache, in elements (512 KiB of f32: half of a
/// Zen 5 core's second-level cache).
const BLOCK_ELEMENTS: usize = 128 * 1024;

/// Multiplies on all threads of the rank.
///
/// # Shapes
/// - `a`: `[m, w.n_in()]`
/// - `c`: `[m, w.n_out()]`
pub(crate) fn gemm(
    isa: Isa,
    parallel: &Parallel,
    a: &[f32],
    w: &Matrix,
    c: &mut [f32],
    epilogue: Epilogue<'_>,
) {
    with_panels!(w, panels => gemm_panels(isa, parallel, a, panels, c, epilogue));
}

fn gemm_panels<E: Weight>(
    isa: Isa,
    parallel: &Parallel,
    a: &[f32],
    w: &Panels<E>,
    c: &mut [f32],
    epilogue: Epilogue<'_>,
) {
    let n_panels = w.n_panels();
    if n_panels == 0 || c.is_empty() {
        return;
    }
    let m = c.len() / w.n_out;
    let block_rows = (BLOCK_ELEMENTS / w.n_in.max(1))
        .next_multiple_of(12)
        .clamp(12, 768);
    let n_row_blocks = m.div_ceil(block_rows);
    // Four pieces a thread (a choice, not a measurement) even out a core that is slowed down; a piece has an even number of
    // panels, since tiles take two.
    let pieces = (4 * parallel.n_threads()).div_ceil(n_row_blocks);
    let piece_panels = n_panels.div_ceil(pieces).next_multiple_of(2);
    let n_pieces = n_panels.div_ceil(piece_panels);
    let out = SharedMut::new(c);
    parallel.for_each(n_row_blocks * n_pieces, |i| {
        let (row_block, piece) = (i / n_pieces, i % n_pieces);
        let rows = row_block * block_rows..m.min((row_block + 1) * block_rows);
        let panels = piece * piece_panels..n_panels.min((piece + 1) * piece_panels);
        // SAFETY: blocks differ in rows or in panels, so they write disjoint elements of `c`,
        // which nobody reads before `for_each` returns; `c` is `[m, n_out]`.
        unsafe {
            block(
                isa,
                &Block {
                    a,
                    w,
                    c: out.ptr(),
                    epilogue,
                    rows,
                    panels,
                },
            );
        };
    });
}

/// Multiplies on the calling thread, storing all of C.
pub(crate) fn gemm_serial(isa: Isa, a: &[f32], w: &Panels<f32>, c: &mut [f32]) {
    if c.is_empty() {
        return;
    }
    let rows = 0..c.len() / w.n_out;
    let panels = 0..w.n_panels();
    let c = c.as_mut_ptr();
    // SAFETY: `c` is `[m, n_out]` and borrowed by this call alone.
    unsafe {
        block(
            isa,
            &Block {
                a,
                w,
                c,
                epilogue: Epilogue::NONE,
                rows,
                panels,
            },
        );
    };
}

/// Some rows and panels of a product.
struct Block<'a, E> {
    a: &'a [f32],
    w: &'a Panels<E>,
    c: *mut f32,
    epilogue: Epilogue<'a>,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

/// # Safety
/// `c` is `[m, n_out]` with `m ≥ rows.end`, nobody else touches this block of it, and this machine has
/// the instructions of `isa` (`CpuDevice::new` checks it).
unsafe fn block<E: Weight>(isa: Isa, block: &Block<'_, E>) {
    assert!(
        block.a.len() >= block.rows.end * block.w.n_in,
        "A is shorter than its rows"
    );
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: instructions and C are the caller's promise.
        Isa::Avx512 => unsafe { block_avx512(block) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { block_avx2(block) },
        // SAFETY: C is the caller's promise.
        _ => unsafe { tiles::<PortableLanes, E, 4, 1>(block) },
    }
}

/// # Safety
/// As [`block`], and AVX-512 must be available.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn block_avx512<E: Weight>(block: &Block<'_, E>) {
    // 24 accumulators of 32 registers.
    // SAFETY: the caller's promise.
    unsafe { tiles::<Avx512Lanes, E, 12, 2>(block) }
}

/// # Safety
/// As [`block`], and AVX2, FMA and F16C must be available.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block_avx2<E: Weight>(block: &Block<'_, E>) {
    // 12 accumulators of 16 registers.
    // SAFETY: the caller's promise.
    unsafe { tiles::<Avx2Lanes, E, 6, 1>(block) }
}

/// Walks a block in tiles of at most `M` rows and `P` panels.
///
/// # Safety
/// As [`block`], where the instructions of `L` are available.
#[inline(always)]
unsafe fn tiles<L: Lanes, E: Weight, const M: usize, const P: usize>(block: &Block<'_, E>) {
    let mut panel_idx = block.panels.start;
    while panel_idx < block.panels.end {
        let wide = panel_idx + P <= block.panels.end;
        let mut row = block.rows.start;
        while row < block.rows.end {
            let left = block.rows.end - row;
            // SAFETY: the tile lies within the block.
            row += unsafe {
                match (wide, left) {
                    (true, n) if n >= M => tile::<L, E, M, P>(block, row, panel_idx),
                    (true, n) if n >= 4 => tile::<L, E, 4, P>(block, row, panel_idx),
                    (true, n) if n >= 2 => tile::<L, E, 2, P>(block, row, panel_idx),
                    (true, _) => tile::<L, E, 1, P>(block, row, panel_idx),
                    (false, n) if n >= 4 => tile::<L, E, 4, 1>(block, row, panel_idx),
                    (false, n) if n >= 2 => tile::<L, E, 2, 1>(block, row, panel_idx),
                    (false, _) => tile::<L, E, 1, 1>(block, row, panel_idx),
                }
            };
        }
        panel_idx += if wide { P } else { 1 };
    }
}

/// Computes `M` rows × `P` panels and returns `M`.
///
/// # Safety
/// The tile lies within the block; otherwise as [`tiles`].
#[inline(always)]
unsafe fn tile<L: Lanes, E: Weight, const M: usize, const P: usize>(
    block: &Block<'_, E>,
    row: usize,
    panel_idx: usize,
) -> usize {
    let k = block.w.n_in;
    let mut sums = [[[0.0_f32; LANES]; P]; M];
    // SAFETY: `a` holds rows `row .. row + M` of `k` elements (asserted in `block`), each panel
    // holds `k` groups of sixteen weights, and `sums` sixteen floats an entry.
    unsafe {
        let mut acc = [[L::zero(); P]; M];
        let a = block.a.as_ptr().add(row * k);
        let panels: [*const E; P] = std::array::from_fn(|p| block.w.panel(panel_idx + p).as_ptr());
        for i in 0..k {
            let w: [L; P] = std::array::from_fn(|p| E::load::<L>(panels[p].add(i * LANES)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = L::splat(*a.add(r * k + i));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = acc.add_product(x, w);
                }
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (sums, acc) in sums.iter_mut().zip(acc) {
                acc.store(sums.as_mut_ptr());
            }
        }
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: row and columns lie within the block.
        unsafe { store_row(block, row + r, panel_idx * LANES, sums.as_flattened_mut()) };
    }
    M
}

/// Applies the epilogue to one row of a tile and stores what lies within `n_out`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn store_row<E: Weight>(
    block: &Block<'_, E>,
    row: usize,
    first_col: usize,
    sums: &mut [f32],
) {
    let n = block.w.n_out;
    let width = sums.len().min(n - first_col);
    let Epilogue {
        bias,
        activation,
        residual,
    } = block.epilogue;
    if let Some(bias) = bias {
        sums.iter_mut()
            .zip(&bias[first_col..])
            .for_each(|(x, b)| *x += b);
    }
    activate(activation, sums);
    if let Some(residual) = residual {
        let residual = &residual[row * n + first_col..][..width];
        sums.iter_mut().zip(residual).for_each(|(x, r)| *x += r);
    }
    // SAFETY: `width` elements from `(row, first_col)` lie within C's row.
    unsafe {
        std::ptr::copy_nonoverlapping(sums.as_ptr(), block.c.add(row * n + first_col), width);
    }
}
