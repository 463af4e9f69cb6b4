//! What training asks of sixteen lanes beyond [`Lanes`]: ends of rows, and sums across lanes.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::cpu::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::lanes::{Avx2Lanes, Avx512Lanes};
use crate::cpu::lanes::{LANES, Lanes, PortableLanes};

/// Sixteen lanes at the ends of rows and of sums.
///
/// # Safety
/// As [`Lanes`]; `n` is at most sixteen, and pointers need be valid for `n` elements only.
pub(super) trait EndLanes: Lanes {
    /// The first `n` lanes from memory, the others zero.
    unsafe fn load_first(from: *const f32, n: usize) -> Self;
    unsafe fn store_first(self, to: *mut f32, n: usize);
    /// The sum over the lanes of each of four, always in the same order.
    unsafe fn sums(four: [Self; 4]) -> [f32; 4];
    /// The sums over the lanes of the first `n` of sixteen, in the order of [`sums`](Self::sums); what
    /// follows them is arbitrary.
    #[inline(always)]
    unsafe fn sums_of_sixteen(sixteen: &[Self; LANES], n: usize) -> Self {
        let mut all = [0.0; LANES];
        // SAFETY: the caller's promise; sixteen elements are loaded.
        unsafe {
            for first in (0..n).step_by(4) {
                let four = [
                    sixteen[first],
                    sixteen[first + 1],
                    sixteen[first + 2],
                    sixteen[first + 3],
                ];
                all[first..first + 4].copy_from_slice(&Self::sums(four));
            }
            Self::load_f32(all.as_ptr())
        }
    }
    /// Sixteen lanes from lane `at` of two on, `at` below 32; those behind the second are arbitrary.
    #[inline(always)]
    unsafe fn lanes_from(two: [Self; 2], at: usize) -> Self {
        let mut all = [0.0; 3 * LANES];
        // SAFETY: the caller's promise; `at` is below 32, so that sixteen elements follow.
        unsafe {
            two[0].store(all.as_mut_ptr());
            two[1].store(all.as_mut_ptr().add(LANES));
            Self::load_f32(all[at..at + LANES].as_ptr())
        }
    }
    /// Every second of 32 elements, from the first on.
    unsafe fn load_alternate(from: *const f32) -> Self;
    /// Lane by lane, `new` and what goes with it where `new` is larger or NaN, else `best` and what
    /// goes with that: `(best, its companion)`.
    unsafe fn larger(best: (Self, Self), new: (Self, Self)) -> (Self, Self);
    /// Stores past the caches, to a place aligned to 64 bytes; [`stored_past_caches`] must follow.
    unsafe fn store_past_caches(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.store(to) }
    }
}

/// Makes what was stored past the caches visible to other threads, before whatever tells them.
#[inline(always)]
pub(super) fn stored_past_caches() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the target.
    unsafe {
        _mm_sfence();
    }
}

/// Brings the cache line of any address, valid or not, near.
#[inline(always)]
pub(super) fn fetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is allowed; SSE is part of the target.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Something to do on sixteen lanes, compiled once for every instruction set.
///
/// Implementations are `#[inline(always)]` plain loops: what is not inlined, such as a closure, runs
/// without the set's instructions.
pub(super) trait LaneWork {
    /// # Safety
    /// The instructions of `L` are available.
    unsafe fn run<L: EndLanes>(self);
}

/// Runs `work` on the lanes of `isa`.
///
/// # Safety
/// This machine must have `isa`.
pub(super) unsafe fn on_lanes(isa: Isa, work: impl LaneWork) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn avx512(work: impl LaneWork) {
        // SAFETY: the caller's promise.
        unsafe { work.run::<Avx512Lanes>() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2(work: impl LaneWork) {
        // SAFETY: the caller's promise.
        unsafe { work.run::<Avx2Lanes>() }
    }
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => avx512(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(work),
            _ => work.run::<PortableLanes>(),
        }
    }
}

// SAFETY (of every block below): the caller runs where the instructions are available, and pointers
// are valid for `n` elements, by the trait's contract.
impl EndLanes for PortableLanes {
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: see above.
            *lane = unsafe { *from.add(i) };
        }
        Self(lanes)
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        for (i, lane) in self.0.into_iter().enumerate().take(n) {
            // SAFETY: see above.
            unsafe { *to.add(i) = lane };
        }
    }
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        for (sum, Self(x)) in sums.iter_mut().zip(four) {
            let mut parts = [0.0; 4];
            for (i, part) in parts.iter_mut().enumerate() {
                *part = (x[i] + x[4 + i]) + (x[8 + i] + x[12 + i]);
            }
            *sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        }
        sums
    }
    #[inline(always)]
    unsafe fn load_alternate(from: *const f32) -> Self {
        let mut lanes = [0.0; LANES];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: see above.
            *lane = unsafe { *from.add(2 * i) };
        }
        Self(lanes)
    }
    #[inline(always)]
    unsafe fn larger(best: (Self, Self), new: (Self, Self)) -> (Self, Self) {
        let (mut value, mut companion) = best;
        for i in 0..LANES {
            let x = new.0.0[i];
            let is_larger = (x > value.0[i]) | x.is_nan();
            value.0[i] = if is_larger { x } else { value.0[i] };
            companion.0[i] = if is_larger {
                new.1.0[i]
            } else {
                companion.0[i]
            };
        }
        (value, companion)
    }
}

/// The sums over the eight lanes of each of four.
///
/// # Safety
/// AVX2 must be available.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sums_of_eight([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let mut sums = [0.0; 4];
    // SAFETY: the caller's promise; four elements are stored.
    unsafe {
        // In each half: sums of pairs, then of fours, side by side.
        let all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let sum = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        _mm_storeu_ps(sums.as_mut_ptr(), sum);
    }
    sums
}

#[cfg(target_arch = "x86_64")]
impl EndLanes for Avx2Lanes {
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see above; a masked load touches the chosen lanes alone.
        unsafe {
            let (low, high) = masks(n);
            Self(
                _mm256_maskload_ps(from, low),
                _mm256_maskload_ps(from.wrapping_add(8), high),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        // SAFETY: as above.
        unsafe {
            let (low, high) = masks(n);
            _mm256_maskstore_ps(to, low, self.0);
            _mm256_maskstore_ps(to.wrapping_add(8), high, self.1);
        }
    }
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        // SAFETY: see above.
        unsafe {
            let [a, b, c, d] = four;
            sums_of_eight([
                _mm256_add_ps(a.0, a.1),
                _mm256_add_ps(b.0, b.1),
                _mm256_add_ps(c.0, c.1),
                _mm256_add_ps(d.0, d.1),
            ])
        }
    }
    #[inline(always)]
    unsafe fn load_alternate(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                alternate(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))),
                alternate(_mm256_loadu_ps(from.add(16)), _mm256_loadu_ps(from.add(24))),
            )
        }
    }
    #[inline(always)]
    unsafe fn larger(best: (Self, Self), new: (Self, Self)) -> (Self, Self) {
        // SAFETY: see above.
        unsafe {
            let low = larger_of_eight((best.0.0, best.1.0), (new.0.0, new.1.0));
            let high = larger_of_eight((best.0.1, best.1.1), (new.0.1, new.1.1));
            (Self(low.0, high.0), Self(low.1, high.1))
        }
    }
    #[inline(always)]
    unsafe fn store_past_caches(self, to: *mut f32) {
        // SAFETY: see above; 64 bytes are more than the 32 needed.
        unsafe {
            _mm256_stream_ps(to, self.0);
            _mm256_stream_ps(to.add(8), self.1);
        }
    }
}

/// Every second of two times eight lanes.
///
/// # Safety
/// AVX2 must be available.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn alternate(low: __m256, high: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        // In pairs: 0 and 2 of `low`, of `high`, then 4 and 6 of either.
        let pairs = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(low, high));
        _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(pairs))
    }
}

/// [`EndLanes::larger`] of eight lanes.
///
/// # Safety
/// AVX2 must be available.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn larger_of_eight(best: (__m256, __m256), new: (__m256, __m256)) -> (__m256, __m256) {
    // SAFETY: the caller's promise.
    unsafe {
        let is_larger = _mm256_or_ps(
            _mm256_cmp_ps::<_CMP_GT_OQ>(new.0, best.0),
            _mm256_cmp_ps::<_CMP_UNORD_Q>(new.0, new.0),
        );
        (
            _mm256_blendv_ps(best.0, new.0, is_larger),
            _mm256_blendv_ps(best.1, new.1, is_larger),
        )
    }
}

/// The first `n` of two times eight lanes.
///
/// # Safety
/// AVX2 must be available.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn masks(n: usize) -> (__m256i, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let n = _mm256_set1_epi32(n as i32);
        let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
        (_mm256_cmpgt_epi32(n, low), _mm256_cmpgt_epi32(n, high))
    }
}

/// In each quarter of the register the sums over that quarter of each of four.
///
/// # Safety
/// AVX-512F must be available.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sums_in_quarters([a, b, c, d]: &[Avx512Lanes; 4]) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        // Pairs of a and b, of c and d, then all four.
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
        _mm512_add_ps(
            _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
            _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
        )
    }
}

#[cfg(target_arch = "x86_64")]
impl EndLanes for Avx512Lanes {
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        let mask = ((1_u32 << n) - 1) as __mmask16;
        // SAFETY: see above; a masked load touches the chosen lanes alone.
        Self(unsafe { _mm512_maskz_loadu_ps(mask, from) })
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        let mask = ((1_u32 << n) - 1) as __mmask16;
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to, mask, self.0) }
    }
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: see above; four elements are stored.
        unsafe {
            let all = sums_in_quarters(&four);
            let halves = _mm256_add_ps(
                _mm512_castps512_ps256(all),
                _mm512_extractf32x8_ps::<1>(all),
            );
            let sum = _mm_add_ps(
                _mm256_castps256_ps128(halves),
                _mm256_extractf128_ps::<1>(halves),
            );
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
        }
        sums
    }
    #[inline(always)]
    unsafe fn sums_of_sixteen(sixteen: &[Self; LANES], n: usize) -> Self {
        // SAFETY: see above.
        unsafe {
            let (fours, _) = sixteen.as_chunks::<4>();
            let mut quarters = [_mm512_setzero_ps(); 4];
            for (i, (quarters, four)) in quarters.iter_mut().zip(fours).enumerate() {
                if 4 * i < n {
                    *quarters = sums_in_quarters(four);
                }
            }
            // Of the quarters of each four: 0 + 2 and 1 + 3, side by side, then both.
            let [a, b, c, d] = quarters;
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
            );
            Self(_mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            ))
        }
    }
    #[inline(always)]
    unsafe fn lanes_from(two: [Self; 2], at: usize) -> Self {
        // SAFETY: see above.
        unsafe {
            let first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            // Of the index only the lowest five bits are looked at.
            let from = _mm512_add_epi32(first, _mm512_set1_epi32(at as i32));
            Self(_mm512_permutex2var_ps(two[0].0, from, two[1].0))
        }
    }
    #[inline(always)]
    unsafe fn load_alternate(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe {
            let first =
                _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES)));
            Self(_mm512_permutex2var_ps(low, first, high))
        }
    }
    #[inline(always)]
    unsafe fn larger(best: (Self, Self), new: (Self, Self)) -> (Self, Self) {
        // SAFETY: see above.
        unsafe {
            let is_larger = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new.0.0, best.0.0)
                | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(new.0.0, new.0.0);
            (
                Self(_mm512_mask_blend_ps(is_larger, best.0.0, new.0.0)),
                Self(_mm512_mask_blend_ps(is_larger, best.1.0, new.1.0)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_past_caches(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_stream_ps(to, self.0) }
    }
}
