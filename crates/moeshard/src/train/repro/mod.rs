//! `moeshard train --repro TABLE`: figures of the papers' experiments next to reference figures, which
//! were measured with independent implementations of the same setups.

mod cifar10;
mod learned;
mod mean_estimation;
mod training;

use std::io;

use anyhow::Result;

use super::args::TrainArgs;
use crate::arg_error::ArgError;

/// Prints one table; says whether each figure is as close as it should be.
///
/// # Errors
/// If there is no such table, or its data is missing.
pub fn run(table: &str, args: &TrainArgs) -> Result<()> {
    let mut out = io::stdout().lock();
    match table.to_ascii_lowercase().as_str() {
        "a" => learned::run(&mut out),
        "b" => mean_estimation::run(&mut out),
        "cifar10" => cifar10::run(&mut out, args),
        name => match training::table(name) {
            Some(table) => training::run(&mut out, table, args),
            None => Err(ArgError::Unknown {
                flag: "--repro",
                expected: "a, b, c, d, e or cifar10",
                found: name.to_owned(),
            })?,
        },
    }
}

/// How a figure compares with what was expected of it.
fn verdict(is_close: bool) -> &'static str {
    match is_close {
        true => "ok",
        false => "OFF",
    }
}
