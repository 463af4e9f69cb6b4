//! The inner products: a tile of rows × panels is accumulated in registers over all inputs.
//!
//! A [`Kernel`] is one way of multiplying one weight type on one instruction set. Every element is
//! summed by one accumulator in the order of the inputs, so its value depends neither on the shape
//! of its tile nor on the thread that computes it.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::cpu::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::lanes::Avx512Lanes;
use crate::cpu::lanes::{LANES, Lanes};
use crate::cpu::panels::Element;

/// One way of multiplying.
///
/// # Safety
/// Methods may only be called where `ISA` is available, and pointers must be valid for what their
/// names say (no alignment needed).
pub(crate) trait Kernel: Sized + 'static {
    /// What the panels hold; `Element::STEP` inputs are taken at once.
    type Weight: Element;
    /// The values of one row that are taken at once, as they are packed.
    type A: Pod + Send + Sync;
    /// The same in registers, for all lanes.
    type X: Copy;
    /// One step of a panel, in registers.
    type W: Copy;
    /// Sixteen sums.
    type Sums: Lanes;

    /// The instructions it needs.
    const ISA: Isa;

    unsafe fn splat(a: *const Self::A) -> Self::X;
    unsafe fn load(w: *const Self::Weight) -> Self::W;
    unsafe fn add_product(sums: Self::Sums, x: Self::X, w: Self::W) -> Self::Sums;
    /// Converts sixteen steps of a row.
    unsafe fn convert(row: *const f32, to: &mut [Self::A; LANES]);

    /// Stores `n_steps` steps of all rows of a tile: step by step, row by row.
    ///
    /// # Safety
    /// `to` is valid for `n_steps · rows.len()` values.
    #[inline(always)]
    unsafe fn put_steps(rows: &[[Self::A; LANES]], n_steps: usize, to: *mut Self::A) {
        // SAFETY: the caller's promise.
        unsafe { put_steps_one_by_one(rows, n_steps, to) };
    }
}

/// [`Kernel::put_steps`] without named instructions.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn put_steps_one_by_one<A: Copy>(rows: &[[A; LANES]], n_steps: usize, to: *mut A) {
    for (r, row) in rows.iter().enumerate() {
        for (step, &value) in row[..n_steps].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(step * rows.len() + r) = value };
        }
    }
}

/// [`Kernel::put_steps`] through a transposition in registers.
///
/// # Safety
/// As there; AVX-512 must be available, and there are at most sixteen rows and steps.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn put_steps_avx512(rows: &[[u32; LANES]], n_steps: usize, to: *mut u32) {
    // SAFETY: the caller's promise; a masked store touches the rows' lanes alone.
    unsafe {
        let zero = _mm512_setzero_si512();
        let mut a = [zero; LANES];
        for (a, row) in a.iter_mut().zip(rows) {
            *a = _mm512_loadu_si512(row.as_ptr().cast());
        }
        // Pairs of rows, then fours: `c[4j + i]` holds column 4L + i of rows 4j .. 4j + 4 in its
        // quarter L.
        let (mut b, mut c) = ([zero; LANES], [zero; LANES]);
        for i in 0..LANES / 2 {
            b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
        }
        for j in (0..LANES).step_by(4) {
            c[j] = _mm512_unpacklo_epi64(b[j], b[j + 2]);
            c[j + 1] = _mm512_unpackhi_epi64(b[j], b[j + 2]);
            c[j + 2] = _mm512_unpacklo_epi64(b[j + 1], b[j + 3]);
            c[j + 3] = _mm512_unpackhi_epi64(b[j + 1], b[j + 3]);
        }
        // Quarters 0 and 2, quarters 1 and 3, of all rows.
        let mut columns = [zero; LANES];
        for i in 0..4 {
            let even = [
                _mm512_shuffle_i32x4::<0x88>(c[i], c[4 + i]),
                _mm512_shuffle_i32x4::<0x88>(c[8 + i], c[12 + i]),
            ];
            let odd = [
                _mm512_shuffle_i32x4::<0xdd>(c[i], c[4 + i]),
                _mm512_shuffle_i32x4::<0xdd>(c[8 + i], c[12 + i]),
            ];
            columns[i] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
            columns[4 + i] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
            columns[8 + i] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
            columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
        }
        let mask = ((1_u32 << rows.len()) - 1) as __mmask16;
        for (step, column) in columns.into_iter().enumerate().take(n_steps) {
            _mm512_mask_storeu_epi32(to.add(step * rows.len()).cast(), mask, column);
        }
    }
}

/// [`Kernel::put_steps`] for f32, by whatever the lanes are of; at most sixteen rows.
///
/// # Safety
/// As there, where the instructions of `L` are available.
#[inline(always)]
pub(crate) unsafe fn put_steps_f32<L: Lanes>(rows: &[[f32; LANES]], n_steps: usize, to: *mut f32) {
    // SAFETY: the caller's promise; there are at most sixteen rows.
    unsafe {
        match L::ISA {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => put_steps_avx512(bytemuck::cast_slice(rows), n_steps, to.cast()),
            _ => put_steps_one_by_one(rows, n_steps, to),
        }
    }
}

/// Weights of which one input is taken at once, widened to f32 as they are loaded.
pub(crate) struct Widened<L, E>(PhantomData<(L, E)>);

/// Weights in f32.
pub(crate) type F32<L> = Widened<L, f32>;

/// Weights in f16.
pub(crate) type F16<L> = Widened<L, f16>;

/// A weight of which sixteen load into f32 lanes.
pub(crate) trait LaneWeight: Element {
    /// # Safety
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl LaneWeight for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f32(from) }
    }
}

impl LaneWeight for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(from) }
    }
}

impl<L: Lanes, E: LaneWeight> Kernel for Widened<L, E> {
    type Weight = E;
    type A = f32;
    type X = L;
    type W = L;
    type Sums = L;
    const ISA: Isa = L::ISA;

    #[inline(always)]
    unsafe fn splat(a: *const f32) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::splat(*a) }
    }
    #[inline(always)]
    unsafe fn load(w: *const E) -> L {
        // SAFETY: the caller's promise.
        unsafe { E::load(w) }
    }
    #[inline(always)]
    unsafe fn add_product(sums: L, x: L, w: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { sums.add_product(x, w) }
    }
    #[inline(always)]
    unsafe fn convert(row: *const f32, to: &mut [f32; LANES]) {
        // SAFETY: the caller's promise.
        *to = unsafe { row.cast::<[f32; LANES]>().read_unaligned() };
    }
    #[inline(always)]
    unsafe fn put_steps(rows: &[[f32; LANES]], n_steps: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { put_steps_f32::<L>(rows, n_steps, to) }
    }
}

/// Weights in bf16, widened as they are loaded; activations stay in f32.
pub(crate) struct Bf16<L>(PhantomData<L>);

impl<L: Lanes> Kernel for Bf16<L> {
    type Weight = bf16;
    type A = [f32; 2];
    type X = (L, L);
    type W = (L, L);
    type Sums = L;
    const ISA: Isa = L::ISA;

    #[inline(always)]
    unsafe fn splat(a: *const [f32; 2]) -> (L, L) {
        // SAFETY: as above.
        unsafe { (L::splat((*a)[0]), L::splat((*a)[1])) }
    }
    #[inline(always)]
    unsafe fn load(w: *const bf16) -> (L, L) {
        // SAFETY: as above.
        unsafe { L::load_bf16_pairs(w) }
    }
    #[inline(always)]
    unsafe fn add_product(sums: L, x: (L, L), w: (L, L)) -> L {
        // SAFETY: as above.
        unsafe { sums.add_product(x.0, w.0).add_product(x.1, w.1) }
    }
    #[inline(always)]
    unsafe fn convert(row: *const f32, to: &mut [[f32; 2]; LANES]) {
        // SAFETY: as above.
        *to = unsafe { row.cast::<[[f32; 2]; LANES]>().read_unaligned() };
    }
}

/// Weights and activations in bf16, products and sums in f32 (`vdpbf16ps`).
#[cfg(target_arch = "x86_64")]
pub(crate) struct Bf16Dot;

#[cfg(target_arch = "x86_64")]
impl Kernel for Bf16Dot {
    type Weight = bf16;
    type A = u32;
    type X = __m512bh;
    type W = __m512bh;
    type Sums = Avx512Lanes;
    const ISA: Isa = Isa::Avx512Bf16;

    #[inline(always)]
    unsafe fn splat(a: *const u32) -> __m512bh {
        // SAFETY: as above; both types are 64 bytes of any content.
        unsafe { std::mem::transmute(_mm512_set1_epi32(*a as i32)) }
    }
    #[inline(always)]
    unsafe fn load(w: *const bf16) -> __m512bh {
        // SAFETY: as above.
        unsafe { std::mem::transmute(_mm512_loadu_si512(w.cast())) }
    }
    #[inline(always)]
    unsafe fn add_product(sums: Avx512Lanes, x: __m512bh, w: __m512bh) -> Avx512Lanes {
        // SAFETY: as above.
        Avx512Lanes(unsafe { _mm512_dpbf16_ps(sums.0, x, w) })
    }
    #[inline(always)]
    unsafe fn convert(row: *const f32, to: &mut [u32; LANES]) {
        // SAFETY: as above.
        unsafe {
            let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row.add(LANES)), _mm512_loadu_ps(row));
            _mm512_storeu_si512(
                to.as_mut_ptr().cast(),
                std::mem::transmute::<__m512bh, __m512i>(pairs),
            );
        }
    }

    #[inline(always)]
    unsafe fn put_steps(rows: &[[u32; LANES]], n_steps: usize, to: *mut u32) {
        // SAFETY: the caller's promise; there are at most sixteen rows.
        unsafe { put_steps_avx512(rows, n_steps, to) }
    }
}

/// Where the steps of `M` rows lie: row `r` at step `i` is `start[r · row + i · step]`.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) step: usize,
}

/// Memory to fetch into the second-level cache on the way, one cache line a step.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    first: *const u8,
    step: usize,
}

impl Ahead {
    const LINE: usize = 64;

    /// Nothing.
    pub(crate) const NONE: Self = Self {
        first: std::ptr::null(),
        step: 0,
    };

    /// As much of `memory` from byte `from` on as there are steps.
    pub(crate) fn of<E>(memory: &[E], from: usize) -> Self {
        match from < size_of_val(memory) {
            // A prefetch beyond the end does nothing.
            true => Self {
                first: memory.as_ptr().cast::<u8>().wrapping_add(from),
                step: Self::LINE,
            },
            false => Self::NONE,
        }
    }

    /// How many bytes `n_steps` steps fetch.
    pub(crate) fn n_bytes(n_steps: usize) -> usize {
        n_steps * Self::LINE
    }

    #[inline(always)]
    fn fetch(self, step: usize) {
        fetch(self.first.wrapping_add(step * self.step));
    }
}

/// Brings the cache line of any address, valid or not, near.
#[inline(always)]
pub(crate) fn fetch<E>(at: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is allowed; SSE is part of the target.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The sums of `M` rows × `P` panels over `n_steps` steps.
///
/// # Safety
/// As [`Kernel`]; `a` is valid for the steps of `M` rows and every panel for `n_steps` steps.
#[inline(always)]
pub(crate) unsafe fn product<K: Kernel, const M: usize, const P: usize>(
    a: *const K::A,
    strides: Strides,
    panels: [*const K::Weight; P],
    n_steps: usize,
    ahead: Ahead,
) -> [[K::Sums; P]; M] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[K::Sums::zero(); P]; M];
        for i in 0..n_steps {
            ahead.fetch(i);
            let at = |r: usize| a.add(r * strides.row + i * strides.step);
            let w = |p: usize| K::load(panels[p].add(i * LANES * K::Weight::STEP));
            // Whichever is fewer stays in registers, the other passes through one.
            if M < P {
                let x: [K::X; M] = std::array::from_fn(|r| K::splat(at(r)));
                for p in 0..P {
                    let w = w(p);
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[p] = K::add_product(sums[p], x, w);
                    }
                }
            } else {
                let w: [K::W; P] = std::array::from_fn(w);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = K::splat(at(r));
                    for (sums, w) in sums.iter_mut().zip(w) {
                        *sums = K::add_product(*sums, x, w);
                    }
                }
            }
        }
        sums
    }
}

/// Most rows of a tile on any instruction set.
pub(crate) const MAX_ROWS: usize = 12;

/// Most rows of a tile.
pub(crate) const fn max_rows(isa: Isa) -> usize {
    match isa {
        // 12 rows × 2 panels: 24 accumulators of 32 registers.
        Isa::Avx512 | Isa::Avx512Bf16 => MAX_ROWS,
        // 6 rows × 1 panel of two registers: 12 accumulators of 16.
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    }
}

/// Panels that a tile of `rows` rows takes at once.
pub(crate) const fn panels_at_once(isa: Isa, rows: usize) -> usize {
    match (isa, rows) {
        (Isa::Avx512 | Isa::Avx512Bf16, 0..=6) => 4,
        (Isa::Avx512 | Isa::Avx512Bf16, _) => 2,
        (Isa::Avx2, 0..=3) => 2,
        _ => 1,
    }
}

/// Something to do for a tile whose size is known when the program is compiled.
pub(crate) trait TileWork<K: Kernel> {
    /// # Safety
    /// As [`Kernel`], and what the implementor asks for.
    unsafe fn run<const M: usize, const P: usize>(&self);
}

/// Calls `work.run::<rows, panels>()`.
///
/// # Safety
/// As [`TileWork::run`]. `panels` is 1 or [`panels_at_once`] of `rows` or of `rows + 1`.
#[inline(always)]
pub(crate) unsafe fn with_tile<K: Kernel>(rows: usize, panels: usize, work: &impl TileWork<K>) {
    macro_rules! pick {
        ($(($rows:literal, $panels:literal))*) => {
            // SAFETY: the caller's promise.
            match (rows, panels) {
                // SAFETY: the caller's promise.
                $(($rows, $panels) => unsafe { work.run::<$rows, $panels>() },)*
                _ => unreachable!("a tile of {rows} × {panels} on {}", K::ISA),
            }
        };
    }
    match K::ISA {
        Isa::Avx512 | Isa::Avx512Bf16 => pick! {
            (1, 4) (2, 4) (3, 4) (4, 4) (5, 4) (6, 4)
            (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2)
            (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1)
            (7, 1) (8, 1) (9, 1) (10, 1) (11, 1) (12, 1)
        },
        Isa::Avx2 => pick! {
            (1, 2) (2, 2) (3, 2)
            (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1)
        },
        Isa::Portable => pick! { (1, 1) (2, 1) (3, 1) (4, 1) },
    }
}

/// Compiled once for every instruction set: whatever it calls inline may use the set's
/// instructions.
pub(crate) trait IsaWork {
    /// # Safety
    /// What the implementor asks for, where the instructions are available.
    unsafe fn run(&self);
}

/// Runs `work` compiled for `isa`.
///
/// # Safety
/// As [`IsaWork::run`]; this machine must have `isa`.
pub(crate) unsafe fn on_isa(isa: Isa, work: &impl IsaWork) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn avx512bf16(work: &impl IsaWork) {
        // SAFETY: the caller's promise.
        unsafe { work.run() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn avx512(work: &impl IsaWork) {
        // SAFETY: the caller's promise.
        unsafe { work.run() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2(work: &impl IsaWork) {
        // SAFETY: the caller's promise.
        unsafe { work.run() }
    }
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512bf16(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(work),
            _ => work.run(),
        }
    }
}
