//! Router, capacity and permutation against plain loops, over shapes without a pattern.

use std::ptr::null_mut;

use half::{bf16, f16};
use moeshard_emulation::{EmulationError, Launch, launch};
use rand::RngExt;

use crate::support::{Element, SEEDS, args, assert_near, rng, run};

const DROPPED: u32 = u32::MAX;
const CHUNK: usize = 1024;

/// What the router makes of tokens, with room for one token more.
struct Routed {
    logits: Vec<f32>,
    idx: Vec<u32>,
    gate: Vec<f32>,
}

/// The router on the emulated device; one block has nothing to do.
fn route<T: Element>(
    x: &[T],
    weight: &[f32],
    (n_tokens, k, n_experts): (usize, usize, usize),
    (top_k, normalize): (usize, bool),
    seed: u64,
) -> Routed {
    let mut routed = Routed {
        logits: vec![77.0; (n_tokens + 1) * n_experts],
        idx: vec![77; (n_tokens + 1) * top_k],
        gate: vec![77.0; (n_tokens + 1) * top_k],
    };
    let (mut x_at, mut weight_at) = (x.as_ptr(), weight.as_ptr());
    let (mut tokens, mut depth) = (n_tokens as u32, k as u32);
    let (mut experts, mut choices) = (n_experts as u32, top_k as u32);
    let mut norm = u32::from(normalize);
    let mut logits_at = routed.logits.as_mut_ptr();
    let (mut idx_at, mut gate_at) = (routed.idx.as_mut_ptr(), routed.gate.as_mut_ptr());
    let mut args = args![
        x_at, weight_at, tokens, depth, experts, choices, norm, logits_at, idx_at, gate_at
    ];
    let name = format!("router_{}", T::NAME);
    let n_blocks = n_tokens.div_ceil(32) + 1;
    run(&name, [n_blocks, 1], 256, 0, seed, &mut args);
    routed
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

fn routes_of<T: Element>() {
    let mut rng = rng(1);
    for (n_tokens, k, n_experts, top_k) in [
        (1, 1, 1, 1),
        (3, 5, 2, 2),
        (9, 32, 8, 1),
        (33, 33, 8, 2),
        (5, 70, 33, 3),
        (65, 7, 64, 8),
        (2, 40, 257, 10),
    ] {
        for normalize in [false, true] {
            // Small numbers and quarters, whose products are exact and often equal.
            let mut drawn = |n: usize, most: i32| -> Vec<f64> {
                let draw = |_| f64::from(rng.random_range(-most..=most));
                (0..n).map(draw).collect()
            };
            let x: Vec<T> = drawn(n_tokens * k, 1).into_iter().map(T::of).collect();
            let weight = drawn(n_experts * k, 3);
            let weight: Vec<f32> = weight.iter().map(|w| *w as f32 / 4.0).collect();
            for seed in SEEDS {
                let shape = (n_tokens, k, n_experts);
                let routed = route(&x, &weight, shape, (top_k, normalize), seed);
                for (token, x) in x.chunks(k).enumerate() {
                    let logit = |w: &[f32]| -> f32 {
                        x.iter().zip(w).map(|(x, w)| x.value() as f32 * w).sum()
                    };
                    let logits: Vec<f32> = weight.chunks(k).map(logit).collect();
                    assert_eq!(routed.logits[token * n_experts..][..n_experts], logits);
                    let (order, weights) = expected(&logits, top_k, normalize);
                    let at = token * top_k..(token + 1) * top_k;
                    assert_eq!(routed.idx[at.clone()], order, "{logits:?}");
                    assert_near(&routed.gate[at], &weights, 0.1, "gates");
                }
                assert!(
                    routed.logits[n_tokens * n_experts..]
                        .iter()
                        .all(|&x| x == 77.0)
                );
                assert!(routed.idx[n_tokens * top_k..].iter().all(|&e| e == 77));
                assert!(routed.gate[n_tokens * top_k..].iter().all(|&w| w == 77.0));
            }
        }
    }
}

#[test]
fn tokens_go_to_the_most_probable_experts() {
    routes_of::<f32>();
    routes_of::<bf16>();
    routes_of::<f16>();
}

#[test]
fn a_row_that_is_no_numbers_goes_somewhere() {
    let routed = route(&[f32::NAN], &[1.0; 40], (1, 1, 40), (2, true), 1);
    assert!(routed.idx[..2].iter().all(|&e| e < 40), "{:?}", routed.idx);
    assert!(routed.gate[..2].iter().all(|w| w.is_nan()));
    let weight = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    let routed = route(&[1.0_f32], &weight, (1, 1, 3), (3, false), 1);
    assert_eq!(routed.idx[..3], [1, 0, 2]);
    assert_eq!(routed.gate[..3], [1.0, 0.0, 0.0]);
}

/// Offsets, places and assignments by the two kernels; one block has nothing to do. The last third of the
/// assignments are padding, which is not counted.
fn permute(
    idx: &[u32],
    (first, n_experts): (usize, usize),
    seed: u64,
) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let n_chunks = idx.len().div_ceil(CHUNK).max(1);
    let mut counts = vec![77; (n_chunks + 1) * n_experts];
    let mut offsets = vec![77; n_experts + 1];
    let (mut place, mut assignment) = (vec![77; idx.len()], vec![77; idx.len()]);
    let mut idx_at = idx.as_ptr();
    let (mut n, mut first_at, mut experts) = (idx.len() as u32, first as u32, n_experts as u32);
    let n_real = n - n / 3;
    let mut n_real_at = &raw const n_real;
    let mut kept = 1000_u64;
    let mut kept_at = &raw mut kept;
    let (mut counts_at, mut offsets_at) = (counts.as_mut_ptr(), offsets.as_mut_ptr());
    let (mut place_at, mut assignment_at) = (place.as_mut_ptr(), assignment.as_mut_ptr());
    let grid = [n_chunks + 1, 1];
    let mut args = args![idx_at, n, first_at, experts, n_real_at, counts_at, kept_at];
    run("count", grid, 256, n_experts, seed, &mut args);
    let here = |&&e: &&u32| (first..first + n_experts).contains(&(e as usize));
    let n_here = idx[..n_real as usize].iter().filter(here).count();
    assert_eq!(kept, 1000 + n_here as u64);
    assert!(counts[n_chunks * n_experts..].iter().all(|&n| n == 77));
    let mut args = args![
        idx_at,
        n,
        first_at,
        experts,
        counts_at,
        offsets_at,
        place_at,
        assignment_at
    ];
    run("place", grid, 256, 9 * n_experts, seed, &mut args);
    (offsets, place, assignment)
}

fn check(idx: &[u32], n_experts: usize, seed: u64) {
    check_part(idx, (0, n_experts), seed);
    // Of experts in the middle, the others being elsewhere.
    let first = n_experts / 3;
    check_part(idx, (first, (n_experts / 2).max(1)), seed);
}

fn check_part(idx: &[u32], (first, n_experts): (usize, usize), seed: u64) {
    let (offsets, place, assignment) = permute(idx, (first, n_experts), seed);
    let is_here = |e: u32| (first..first + n_experts).contains(&(e as usize));
    let mut sorted: Vec<u32> = (0..idx.len() as u32).collect();
    sorted.retain(|&a| is_here(idx[a as usize]));
    sorted.sort_by_key(|&a| idx[a as usize]);
    assert_eq!(assignment[..sorted.len()], sorted);
    // Beyond what is placed, rows keep what they had.
    assert!(assignment[sorted.len()..].iter().all(|&a| a == 77));
    for (a, &at) in place.iter().enumerate() {
        match is_here(idx[a]) {
            false => assert_eq!(at, DROPPED),
            true => assert_eq!(sorted[at as usize], a as u32),
        }
    }
    for (e, &offset) in offsets.iter().enumerate() {
        let below = sorted
            .iter()
            .filter(|&&a| (idx[a as usize] as usize) < first + e)
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
        let dropping = |e: &u32| if e % 3 == 1 { DROPPED } else { *e };
        for seed in SEEDS {
            check(&idx, n_experts, seed);
            check(
                &idx.iter().map(dropping).collect::<Vec<_>>(),
                n_experts,
                seed,
            );
            // One expert takes all; the others are empty.
            check(&vec![n_experts as u32 - 1; n], n_experts, seed);
            check(&vec![DROPPED; n], n_experts, seed);
        }
    }
}

#[test]
fn counts_of_many_chunks_are_added_up() {
    // More chunks than a block fetches at a time.
    let mut rng = rng(9);
    let idx: Vec<u32> = (0..150 * CHUNK + 3)
        .map(|_| rng.random_range(0..5))
        .collect();
    check(&idx, 5, 1);
}

/// Which assignments are dropped: one after another, first choices first.
fn limited(idx: &[u32], segments: &[u32], top_k: usize, capacity: u32) -> Vec<u32> {
    let mut idx = idx.to_vec();
    for bounds in segments.windows(2) {
        let mut n_taken = std::collections::HashMap::new();
        for k in 0..top_k {
            for token in bounds[0] as usize..bounds[1] as usize {
                let expert = &mut idx[token * top_k + k];
                let taken = n_taken.entry(*expert).or_insert(0);
                if *expert != DROPPED && *taken >= capacity {
                    *expert = DROPPED;
                }
                *taken += 1;
            }
        }
    }
    idx
}

#[test]
fn full_experts_drop_what_comes_late() {
    let mut rng = rng(10);
    for (segments, top_k, n_experts, capacity) in [
        (&[0, 1][..], 1, 1, 0),
        (&[0, 7, 7, 40], 2, 3, 4),
        (&[2, 300, 901], 1, 8, 37),
        (&[0, 513], 3, 33, 11),
        (&[0, 600], 2, 300, 100),
    ] {
        let n_tokens = segments[segments.len() - 1] as usize + 5;
        let draw = |_| match rng.random_range(0..=n_experts as u32) {
            e if e == n_experts as u32 => DROPPED,
            e => e,
        };
        let before: Vec<u32> = (0..n_tokens * top_k).map(draw).collect();
        let expected = limited(&before, segments, top_k, capacity);
        let n_expected = before.iter().zip(&expected).filter(|(a, b)| a != b).count();
        for seed in SEEDS {
            for is_counted in [false, true] {
                let (mut idx, mut n_dropped) = (before.clone(), 1000_u64);
                let (mut idx_at, mut segments_at) = (idx.as_mut_ptr(), segments.as_ptr());
                let (mut k, mut experts, mut most) = (top_k as u32, n_experts as u32, capacity);
                let counter = std::ptr::from_mut(&mut n_dropped);
                let mut counter_at = if is_counted { counter } else { null_mut() };
                let mut args = args![idx_at, segments_at, k, experts, most, counter_at];
                let grid = [segments.len() - 1, 1];
                run("limit", grid, 256, 9 * n_experts, seed, &mut args);
                assert_eq!(idx, expected, "{segments:?}, capacity {capacity}");
                let n_counted = if is_counted { n_expected as u64 } else { 0 };
                assert_eq!(n_dropped, 1000 + n_counted);
            }
        }
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
