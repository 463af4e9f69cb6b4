//! One rank of a job: runs the checks it is told to.

use std::process::ExitCode;

use moeshard_mpi::{MpiError, World};
use moeshard_tensor::collective::Collective as _;

use crate::{CHECKS, Check, Verdict};

/// Starts the line in which rank 0 reports a check; the driver looks for it.
pub(crate) const REPORT: &str = "check ";

/// Runs the named checks; without names, all.
pub(crate) fn run(names: &[String]) -> ExitCode {
    let world = match World::init() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let is_wanted =
        |check: &&Check| names.is_empty() || names.iter().any(|name| name == check.name);
    for check in CHECKS.into_iter().flatten().filter(is_wanted) {
        if let Err(error) = together(&world, check) {
            eprintln!("rank {}: {}: {error}", world.rank(), check.name);
            world.abort(1);
        }
    }
    if let Err(wrong) = leave(world) {
        eprintln!("{wrong}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs one check; rank 0 reports whether it held on every rank.
fn together(world: &World, check: &Check) -> Result<(), MpiError> {
    let verdict = (check.run)(world);
    if let Err(wrong) = &verdict {
        eprintln!("rank {}: {}: {wrong}", world.rank(), check.name);
    }
    let mut failed = [u64::from(verdict.is_err())];
    world.all_max(&mut failed)?;
    if world.rank() == 0 {
        let outcome = if failed[0] == 0 { "ok" } else { "FAILED" };
        println!("{REPORT}{} {outcome}", check.name);
    }
    Ok(())
}

/// Ends the job: afterwards MPI is neither used nor initialised again.
fn leave(world: World) -> Verdict {
    let collective = world.collective().map_err(crate::text)?;
    drop(world);
    let error = collective.all_reduce(&mut [1.0]).map_err(crate::text);
    let expected = format!(
        "all_reduce on rank {0} of {1}: reduce_scatter on rank {0}: MPI has been finalised",
        collective.rank(),
        collective.world_size()
    );
    crate::same("after the end", &error, &Err(expected))?;
    let again = World::init().map(drop);
    crate::same("a second start", &again, &Err(MpiError::Initialised))
}
