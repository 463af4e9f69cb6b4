//! What the crate promises, on real jobs of 1, 2, 4 and 8 ranks.
//!
//! Started by `cargo test`, this program is the *driver*: it starts `mpirun` with itself once per
//! world size. Started by `mpirun`, it is a *rank*: it runs the checks with the others, and rank 0
//! prints how each went. The driver prints results as Rust's own test harness does, so that whoever
//! reads those can read these, and takes parts of names as filters.

mod agreement;
mod collectives;
mod driver;
mod exchanges;
mod lost;
mod mixing;
mod rank;
mod rows;

use std::process::ExitCode;

use moeshard_mpi::{World, launcher};

/// What a check found wrong.
type Verdict = Result<(), String>;

/// A check that all ranks run together.
struct Check {
    name: &'static str,
    run: fn(&World) -> Verdict,
}

/// The checks in the order in which they run.
const CHECKS: [&[Check]; 5] = [
    rows::CHECKS,
    agreement::CHECKS,
    exchanges::CHECKS,
    mixing::CHECKS,
    collectives::CHECKS,
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match (launcher::n_ranks_launched(), args.first()) {
        (Some(_), Some(mode)) if mode == lost::MODE => lost::run(&args[1..]),
        (Some(_), _) => rank::run(&args),
        (None, _) => driver::run(&args),
    }
}

/// Fails the check unless the two are equal.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Verdict {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (shown(found), shown(expected));
    Err(format!("{what}: found {found}, expected {expected}"))
}

fn shown(value: &impl std::fmt::Debug) -> String {
    let mut text = format!("{value:?}");
    if let Some((end, _)) = text.char_indices().nth(400) {
        text.replace_range(end.., "…");
    }
    text
}

/// An error of the job as that of a check.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
