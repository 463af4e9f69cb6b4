//! `moeshard train --repro TABLE`: figures of the papers' experiments next to reference figures, which
//! were measured with independent implementations of the same setups.

mod cifar10;
mod learned;
mod mean_estimation;
mod training;

use std::io;

use anyhow::{Result, bail, ensure};

use super::args::TrainArgs;
use super::ranks::Ranks;
use crate::arg_error::ArgError;

/// Prints one table; says whether each figure is as close as it should be. Of the other flags, `--data`
/// and `--threads` count, and `--epochs` for cifar10.
///
/// # Errors
/// If there is no such table, its data is missing, or several processes are asked to do the same.
pub fn run(table: &str, args: &TrainArgs, ranks: &Ranks) -> Result<()> {
    if let Ranks::Job(_) = ranks {
        bail!("--repro runs in one process, expected no mpirun");
    }
    let (mut out, mut verdicts) = (io::stdout().lock(), Verdicts::default());
    match table.to_ascii_lowercase().as_str() {
        "a" => learned::run(&mut out, &mut verdicts),
        "b" => mean_estimation::run(&mut out, &mut verdicts),
        "cifar10" => cifar10::run(&mut out, &mut verdicts, args),
        name => match training::table(name) {
            Some(table) => training::run(&mut out, &mut verdicts, table, args),
            None => Err(ArgError::Unknown {
                flag: "--repro",
                expected: "a, b, c, d, e or cifar10",
                found: name.to_owned(),
            })?,
        },
    }?;
    let n_off = verdicts.n_off;
    ensure!(n_off == 0, "{n_off} figures of table {table} are off");
    Ok(())
}

/// How figures compare with what was expected of them.
#[derive(Debug, Default)]
struct Verdicts {
    /// Those that do not.
    n_off: usize,
}

impl Verdicts {
    fn of(&mut self, is_close: bool) -> &'static str {
        match is_close {
            true => "ok",
            false => {
                self.n_off += 1;
                "OFF"
            }
        }
    }
}
