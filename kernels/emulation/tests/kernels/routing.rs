//! Router and permutation against plain loops, over shapes without a pattern.

use moeshard_emulation::{EmulationError, Launch, launch};
use rand::RngExt;

use crate::support::{args, rng, run};

const DROPPED: u32 = u32::MAX;
const WARPS: u32 = 8;
const CHUNK: usize = 1024;

/// The router on the emulated device: experts and weights.
fn route(logits: &[f32], n_experts: usize, top_k: usize, normalize: bool) -> (Vec<u32>, Vec<f32>) {
    let n_tokens = logits.len() / n_experts;
    let mut idx = vec![77; n_tokens * top_k];
    let mut weight = vec![f32::NAN; n_tokens * top_k];
    let mut logits = logits.as_ptr();
    let (mut idx_at, mut weight_at) = (idx.as_mut_ptr(), weight.as_mut_ptr());
    let (mut tokens, mut experts) = (n_tokens as u32, n_experts as u32);
    let (mut k, mut norm) = (top_k as u32, u32::from(normalize));
    let mut args = args![logits, tokens, experts, k, norm, idx_at, weight_at];
    let n_blocks = n_tokens.div_ceil(WARPS as usize);
    run("route", [n_blocks, 1], 32 * WARPS, 0, 1, &mut args);
    (idx, weight)
}

/// The same in f64.
fn expected(row: &[f32], top_k: usize, normalize: bool) -> (Vec<u32>, Vec<f64>) {
    let largest = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
    let exp: Vec<f64> = row
        .iter()
        .map(|&x| (f64::from(x) - largest).exp())
        .collect();
    let sum: f64 = exp.iter().sum();
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    order.truncate(top_k);
    let mut weights: Vec<f64> = order.iter().map(|&e| exp[e as usize] / sum).collect();
    if normalize {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    (order, weights)
}

#[test]
fn tokens_go_to_the_most_probable_experts() {
    let mut rng = rng(1);
    for (n_tokens, n_experts, top_k) in [
        (1, 1, 1),
        (3, 2, 2),
        (9, 8, 1),
        (17, 8, 2),
        (5, 33, 3),
        (40, 64, 8),
        (2, 257, 2),
    ] {
        for normalize in [false, true] {
            // Quarters, so that there are ties.
            let logits: Vec<f32> = (0..n_tokens * n_experts)
                .map(|_| rng.random_range(-12..12) as f32 / 4.0)
                .collect();
            let (idx, weight) = route(&logits, n_experts, top_k, normalize);
            for (token, row) in logits.chunks(n_experts).enumerate() {
                let (order, weights) = expected(row, top_k, normalize);
                let at = token * top_k..(token + 1) * top_k;
                assert_eq!(idx[at.clone()], order, "{row:?}");
                for (found, expected) in weight[at].iter().zip(weights) {
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-6,
                        "{found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_no_numbers_goes_somewhere() {
    let (idx, weight) = route(&[f32::NAN; 40], 40, 2, true);
    assert!(idx.iter().all(|&e| e < 40), "{idx:?}");
    assert!(weight.iter().all(|w| w.is_nan()));
    let (idx, _) = route(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], 3, 1, false);
    assert_eq!(idx, [1]);
}

/// Offsets, places and assignments by the three kernels.
fn permute(idx: &[u32], n_experts: usize) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let n_chunks = idx.len().div_ceil(CHUNK).max(1);
    let mut counts = vec![77; n_chunks * n_experts];
    let mut offsets = vec![77; n_experts + 1];
    let (mut place, mut assignment) = (vec![77; idx.len()], vec![77; idx.len()]);
    let mut idx_at = idx.as_ptr();
    let (mut n, mut experts, mut chunks) = (idx.len() as u32, n_experts as u32, n_chunks as u32);
    let (mut counts_at, mut offsets_at) = (counts.as_mut_ptr(), offsets.as_mut_ptr());
    let (mut place_at, mut assignment_at) = (place.as_mut_ptr(), assignment.as_mut_ptr());
    run(
        "count",
        [n_chunks, 1],
        256,
        n_experts,
        1,
        &mut args![idx_at, n, experts, counts_at],
    );
    run(
        "scan",
        [1, 1],
        256,
        0,
        3,
        &mut args![counts_at, chunks, experts, offsets_at],
    );
    let mut args = args![idx_at, n, experts, counts_at, place_at, assignment_at];
    run("place", [n_chunks, 1], 256, 9 * n_experts, 1, &mut args);
    (offsets, place, assignment)
}

fn check(idx: &[u32], n_experts: usize) {
    let (offsets, place, assignment) = permute(idx, n_experts);
    let mut sorted: Vec<u32> = (0..idx.len() as u32).collect();
    sorted.retain(|&a| idx[a as usize] != DROPPED);
    sorted.sort_by_key(|&a| idx[a as usize]);
    assert_eq!(assignment[..sorted.len()], sorted);
    for (a, &at) in place.iter().enumerate() {
        match idx[a] {
            DROPPED => assert_eq!(at, DROPPED),
            _ => assert_eq!(sorted[at as usize], a as u32),
        }
    }
    for (e, &offset) in offsets.iter().enumerate() {
        let below = sorted
            .iter()
            .filter(|&&a| (idx[a as usize] as usize) < e)
            .count();
        assert_eq!(offset as usize, below, "expert {e}");
    }
}

#[test]
fn assignments_are_sorted_by_expert_and_stay_in_order() {
    let mut rng = rng(2);
    for (n, n_experts) in [
        (1, 1),
        (31, 3),
        (32, 8),
        (257, 64),
        (1024, 8),
        (1025, 300),
        (3000, 128),
    ] {
        let idx: Vec<u32> = (0..n)
            .map(|_| rng.random_range(0..n_experts as u32))
            .collect();
        check(&idx, n_experts);
        let dropping = |e: &u32| if e % 3 == 1 { DROPPED } else { *e };
        check(&idx.iter().map(dropping).collect::<Vec<_>>(), n_experts);
        // One expert takes all; the others are empty.
        check(&vec![n_experts as u32 - 1; n], n_experts);
        check(&vec![DROPPED; n], n_experts);
    }
}

#[test]
fn what_is_no_kernel_is_said() {
    let shape = Launch {
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        seed: 0,
    };
    // SAFETY: nothing is run.
    let result = unsafe { launch("nothing", &shape, &mut []) };
    assert_eq!(
        result,
        Err(EmulationError::NoSuchKernel("nothing".to_owned()))
    );
}
