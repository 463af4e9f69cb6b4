//! Products on Hopper's own instructions, with barriers, tensor maps and wgmma as they are documented.

use half::{bf16, f16};

use crate::grouped_gemm::{
    Case, Kernel, Operands, PLAIN, check_alone, check_with, finishing, multiply_by,
};
use crate::support::Element;

unsafe extern "C" {
    safe fn moeshard_swizzled(row: u32, chunk: u32) -> u32;
    safe fn moeshard_descriptor(address: u32, k: u32) -> u64;
    safe fn moeshard_sum_row(thread: u32, i: u32) -> u32;
    safe fn moeshard_sum_col(thread: u32, i: u32) -> u32;
}

const SHARED_WORDS: usize = 216_192 / 4;

fn multiply<T: Element>(
    name: &'static str,
    case: &Case<'_>,
    operands: &Operands<'_, T>,
    seed: u64,
) -> Vec<T> {
    let n_cols = case.n_rows.len() * case.n;
    let kernel = Kernel {
        name,
        threads: 384,
        shared_words: SHARED_WORDS,
        map: Some([
            operands.weight.as_ptr() as u64,
            n_cols as u64,
            case.k as u64,
        ]),
    };
    multiply_by(&kernel, case, operands, seed)
}

const NAMES: [&str; 2] = ["grouped_gemm_hopper", "grouped_gemm_hopper_narrow"];

fn check_all(case: &Case<'_>) {
    for name in NAMES {
        check_with::<bf16>(case, |case, operands, seed| {
            multiply(name, case, operands, seed)
        });
        check_with::<f16>(case, |case, operands, seed| {
            multiply(name, case, operands, seed)
        });
    }
}

/// The byte that wgmma reads as the first one of an element, by the descriptor's bits.
fn read_at(descriptor: u64, row: u64, k: u64) -> u64 {
    let field = |first: u32| (descriptor >> first & 0x3fff) << 4;
    let at = field(0) + row / 8 * field(32) + row % 8 * 128 + 2 * k;
    at ^ (at >> 7 & 7) << 4
}

#[test]
fn operands_are_read_where_copies_put_them() {
    for address in [0, 1024, 0x3_0000] {
        let whole = moeshard_descriptor(address, 0);
        // 128-byte swizzle, no offset of its pattern, nothing in bits that are reserved.
        assert_eq!(whole >> 46, 1 << 16, "{whole:#x}");
        assert_eq!(whole & 0xc000_c000, 0, "{whole:#x}");
        for (row, k) in (0..256).flat_map(|row| (0..64).map(move |k| (row, k))) {
            let step = moeshard_descriptor(address, k / 16 * 16);
            let written = address + moeshard_swizzled(row, k / 8) + k % 8 * 2;
            let read = read_at(step, row.into(), (k % 16).into());
            assert_eq!(read, written.into(), "row {row}, k {k}");
        }
    }
}

#[test]
fn every_sum_of_a_product_has_its_register() {
    for n_cols in [128, 256] {
        let mut is_held = vec![false; 64 * n_cols];
        for (thread, i) in (0..128).flat_map(|t| (0..n_cols as u32 / 2).map(move |i| (t, i))) {
            let (row, col) = (moeshard_sum_row(thread, i), moeshard_sum_col(thread, i));
            assert_eq!(row / 16, thread / 32, "a warp has sixteen rows");
            let at = &mut is_held[row as usize * n_cols + col as usize];
            assert!(!*at, "row {row}, column {col} twice");
            *at = true;
        }
        assert!(is_held.iter().all(|held| *held));
    }
}

#[test]
fn odd_shapes_have_their_products() {
    check_all(&PLAIN);
    for (n_rows, n, k) in [
        (&[7][..], 5, 16),
        (&[0, 3, 0, 0, 20], 33, 72),
        (&[128, 1], 128, 64),
        (&[129, 0, 40], 130, 200),
        (&[16, 17, 15], 264, 328),
    ] {
        for n_blocks in [1, 5] {
            check_all(&Case {
                n_rows,
                n,
                k,
                n_blocks,
                ..PLAIN
            });
        }
    }
}

#[test]
fn the_ring_goes_round_over_several_tiles() {
    // From fewer steps than there are stages to some rounds of them, in tiles of one block.
    for k in [8, 64, 128, 192, 264, 328, 904] {
        check_all(&Case {
            n_rows: &[2, 130, 0, 5],
            n: 3,
            k,
            n_blocks: 1,
            ..PLAIN
        });
    }
}

#[test]
fn rows_are_gathered_and_results_are_finished() {
    finishing().iter().for_each(check_all);
}

#[test]
fn bits_do_not_depend_on_other_rows() {
    for name in NAMES {
        check_alone::<bf16>(24, |case, operands, seed| {
            multiply(name, case, operands, seed)
        });
    }
}
