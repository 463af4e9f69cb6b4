//! Jobs that lose a rank: what is printed, how the job ends, and that it ends at all.

use std::process::{self, Command, ExitCode};
use std::time::{Duration, Instant};

use moeshard_mpi::links::{Receive, Send};
use moeshard_mpi::{Links, World};

use crate::{Verdict, driver, same};

/// The first argument of a rank that is to lose one.
pub(crate) const MODE: &str = "lose-a-rank";

const ADVICE: &str = "continue with --resume";

const WORLD_SIZE: usize = 4;

/// Rounds of the job; it would take minutes, and must not come to the end.
const N_ROUNDS: usize = 10_000_000;

/// Seconds within which the launcher must have ended the job.
const PATIENCE: Duration = Duration::from_secs(30);

/// How rank 1 is lost, and what becomes of the job.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    exit_code: i32,
    /// What somebody must have printed.
    printed: &'static str,
}

pub(crate) const CASES: [Case; 3] = [
    Case {
        name: "a_killed_rank_ends_the_job_with_advice",
        exit_code: 128 + 9,
        printed: "process rank 1 ",
    },
    Case {
        name: "a_panic_ends_the_job_with_advice",
        exit_code: 101,
        printed: "rank 1 panics on purpose",
    },
    Case {
        name: "an_abort_ends_the_job_with_its_code",
        exit_code: 7,
        // Open MPI says so too, but in one run of six here its words were lost.
        printed: "rank 1 aborts on purpose",
    },
];

/// Runs a case and looks at how it ended.
pub(crate) fn holds(case: &Case) -> Verdict {
    let started = Instant::now();
    let output = driver::start(WORLD_SIZE, &[MODE, case.name]).map_err(crate::text)?;
    let took = started.elapsed();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let explained = |wrong: String| format!("{wrong}\n{stderr}");
    same("exit code", &output.status.code(), &Some(case.exit_code)).map_err(explained)?;
    let survivors = [0, 2, 3];
    let sentence = |rank: usize| {
        format!(
            "rank {rank} of {WORLD_SIZE}: the launcher ends this rank, as it does when another one is lost; {ADVICE}"
        )
    };
    // A rank's last words may be lost with the launcher's pipe, but not everybody's.
    let n_heard = survivors
        .iter()
        .filter(|rank| stderr.contains(&sentence(**rank)))
        .count();
    if n_heard == 0 || !stderr.contains(case.printed) {
        return Err(explained(format!(
            "expected {:?} and the advice",
            case.printed
        )));
    }
    if took > PATIENCE {
        return Err(format!("the job took {took:?} to end"));
    }
    Ok(())
}

/// A rank of such a job: exchanges along a ring until rank 1 is lost.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let case = args.first().map_or("", String::as_str);
    match ring(case) {
        Ok(()) => eprintln!("the job went on without rank 1"),
        Err(wrong) => eprintln!("{wrong}"),
    }
    ExitCode::FAILURE
}

fn ring(case: &str) -> Verdict {
    let world = World::init().map_err(crate::text)?;
    world.advise_when_ended(ADVICE).map_err(crate::text)?;
    let (rank, n) = (world.rank(), world.world_size());
    let links = Links {
        n_local: 1,
        receive: vec![Receive {
            from: (rank + n - 1) % n,
            n_rows: 1,
        }],
        send: vec![Send {
            to: (rank + 1) % n,
            rows: vec![0],
        }],
    };
    let mut exchange = world.exchange(&links).map_err(crate::text)?;
    let (local, mut halo) = (vec![1.0; 1000], vec![0.0; 1000]);
    for round in 0..N_ROUNDS {
        exchange.run(&local, 1000, &mut halo).map_err(crate::text)?;
        if (rank, round) == (1, 50) {
            lose(&world, case);
        }
    }
    Ok(())
}

fn lose(world: &World, case: &str) {
    if case.starts_with("a_killed") {
        let pid = process::id().to_string();
        // The shell of the standard: there is no `kill` in Rust's library.
        let killed = Command::new("sh")
            .args(["-c", "kill -KILL \"$0\"", &pid])
            .status();
        eprintln!("survived: {killed:?}");
    } else if case.starts_with("a_panic") {
        panic!("rank 1 panics on purpose");
    } else {
        eprintln!("rank 1 aborts on purpose");
        world.abort(7);
    }
}
