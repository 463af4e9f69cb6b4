//! `moeshard loadtest`: the load generator of its own crate.

use anyhow::{Context, Result};
use moeshard_loadtest::Args;

/// Runs the load test and prints its report.
///
/// # Errors
/// If an argument is impossible, the server has no address, or it answered nothing at all.
pub fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let mut out = std::io::stdout();
    runtime.block_on(moeshard_loadtest::run_and_print(args, &mut out))?;
    Ok(())
}
