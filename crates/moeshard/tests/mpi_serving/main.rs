//! `mpirun moeshard serve`: the answers of processes are those of ranks in one process, and a process that is
//! lost ends the job at once.

#[path = "../over_processes/client.rs"]
mod client;
mod job;
mod lost;

use std::process::Command;
use std::time::Duration;

use client::{answers, assert_close, kill};
use job::Job;

const PROGRAM: &str = env!("CARGO_BIN_EXE_moeshard");

const BOTH: [&str; 2] = ["/embed", "/classify"];

#[test]
fn processes_answer_bit_for_bit_as_ranks_of_one() {
    let mut of_one = Vec::new();
    for n_ranks in 1..=4 {
        let mut job = Job::start(n_ranks);
        let found = answers(job.ready(), &BOTH);
        let mut alone = Job::in_process(n_ranks);
        assert!(
            found == answers(alone.ready(), &BOTH),
            "{n_ranks} processes"
        );
        // To all processes by way of `mpirun`, which then has failed and may kill the others before they say
        // how they end; or to the first.
        let by_launcher = n_ranks < 3;
        match by_launcher {
            true => job.signal("TERM"),
            false => kill("TERM", job.process_of(0)),
        }
        let (code, log) = job.end(Duration::from_secs(30));
        let complains = log.lines().any(|line| line.starts_with("moeshard: "));
        assert!(log.contains("shutting down") && !complains, "{log}");
        if !by_launcher {
            let n_well = log.matches("exits with 0").count();
            assert_eq!((n_well, code), (n_ranks, Some(0)), "{log}");
        }
        match n_ranks {
            1 => of_one = found,
            // Another number of ranks adds up in another order.
            _ => assert_close(&found[0], &of_one[0], &format!("{n_ranks} processes")),
        }
    }
}

/// Runs `mpirun` and returns what it said; it must fail.
fn refused(args: &[&str]) -> String {
    let mpirun = std::env::var_os("MOESHARD_MPIRUN").unwrap_or_else(|| "mpirun".into());
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(mpirun);
    command.args(["--allow-run-as-root", "--oversubscribe"]);
    command.args(args).env("TMPDIR", folder.path());
    let output = command.output().expect("mpirun");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_processes_cannot_do_together_is_refused() {
    let two = ["-n", "2", PROGRAM];
    let said = refused(&[&two[..], &["embed", "--input", "-", "--output", "-"]].concat());
    assert!(
        said.contains("mpirun has started 2 processes, and `moeshard embed` runs in one"),
        "{said}"
    );
    let said = refused(&[&two[..], &["serve", "--ranks", "3", "--port", "0"]].concat());
    assert!(said.contains("--ranks 3 in a job of 2 processes"), "{said}");
}

#[test]
fn processes_with_different_flags_do_not_start() {
    let one = |dtype| ["-n", "1", PROGRAM, "serve", "--port", "0", "--dtype", dtype];
    let said = refused(&[&one("f32")[..], &[":"], &one("bf16")].concat());
    assert!(said.contains("do not agree on the model"), "{said}");
}

#[test]
fn the_script_for_mpirun_serves() {
    let mut job = Job::by_script(2);
    answers(job.ready(), &BOTH);
    kill("TERM", job.process_of(0));
    let (code, log) = job.end(Duration::from_secs(30));
    assert_eq!(code, Some(0), "{log}");
}
