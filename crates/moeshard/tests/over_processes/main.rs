//! `moeshard serve` as processes of every launcher, without MPI: the answers are those of ranks in one process, and
//! a process that is lost ends the job at once.

mod client;
#[path = "../program/folders.rs"]
mod folders;
mod job;
mod lost;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use client::{answers, assert_close, kill};
use folders::{golden, model, text};
use job::{By, Job, LAUNCHERS};

const BOTH: [&str; 2] = ["/embed", "/classify"];

/// Stops a job by a signal to rank 0 alone: all must end well.
fn stop(job: Job) {
    kill("TERM", job.processes[0].id());
    for (rank, (status, said)) in job.end(Duration::from_secs(30)).into_iter().enumerate() {
        assert!(
            status.success() && said.is_empty(),
            "rank {rank}: {status} {said:?}"
        );
    }
}

#[test]
fn processes_answer_bit_for_bit_as_ranks_of_one() {
    let mut of_one = Vec::new();
    for n_ranks in 1..=4 {
        let mut alone = Job::in_process(n_ranks, &[]);
        let expected = answers(alone.ready(), &BOTH);
        for by in LAUNCHERS {
            let mut job = Job::start(by, n_ranks, &[]);
            let found = answers(job.ready(), &BOTH);
            assert!(found == expected, "{n_ranks} processes by {by:?}");
            stop(job);
        }
        match n_ranks {
            1 => of_one = expected,
            // Another number of ranks adds up in another order.
            _ => assert_close(&expected[0], &of_one[0], &format!("{n_ranks} processes")),
        }
    }
}

#[test]
fn every_strategy_is_the_same_over_processes() {
    let folder = model("nomic_moe");
    // Which tokens `capacity` drops depends on which texts come in time for a batch.
    for experts in ["parallel", "replicated"] {
        let args = ["--model", text(folder.path()), "--experts", experts];
        let mut alone = Job::in_process(2, &args);
        let mut job = Job::start(By::Torchrun, 2, &args);
        let found = answers(job.ready(), &["/embed"]);
        assert!(found == answers(alone.ready(), &["/embed"]), "{experts}");
        stop(job);
    }
}

/// Rank 0 alone decides that a batch is cut in two.
#[test]
fn micro_batches_are_the_same_over_processes() {
    let mut alone = Job::in_process(2, &[]);
    let mut job = Job::each(By::Torchrun, 2, |rank| match rank {
        0 => vec!["--overlap".to_owned(), "1".to_owned()],
        _ => Vec::new(),
    });
    let found = answers(job.ready(), &BOTH);
    assert!(found == answers(alone.ready(), &BOTH));
    stop(job);
}

/// Each process is one rank on one GPU. Rows go through the host there, by peers' memory in one process; both add up
/// in rank order.
#[test]
fn processes_on_emulated_gpus_answer_as_ranks_of_one() {
    let folder = model("nomic_moe");
    let args = ["--model", text(folder.path()), "--device", "emulated"];
    let args = [
        &args[..],
        &["--max-batch-tokens", "64", "--max-length", "16"],
    ]
    .concat();
    for n_ranks in [2, 3] {
        let mut alone = Job::in_process(n_ranks, &args);
        let mut job = Job::start(By::Slurm, n_ranks, &args);
        let found = answers(job.ready(), &["/embed"]);
        let expected = answers(alone.ready(), &["/embed"]);
        assert!(found == expected, "{n_ranks} processes");
        stop(job);
    }
}

#[test]
fn processes_with_different_flags_do_not_start() {
    let pooling = ["mean", "cls"];
    let job = Job::each(By::Torchrun, 2, |rank| {
        vec!["--pooling".to_owned(), pooling[rank].to_owned()]
    });
    for (status, said) in job.end(Duration::from_secs(30)) {
        let expected = "the ranks do not agree on the model and its flags";
        assert!(!status.success() && said.len() == 1, "{said:?}");
        assert!(said[0].contains(expected), "{said:?}");
    }
}

#[test]
fn a_process_that_cannot_open_the_model_is_named() {
    let job = Job::each(By::Slurm, 3, |rank| {
        let folder = ["nomic_moe", "nomic_moe", "none"][rank];
        let folder = golden(folder);
        vec!["--model".to_owned(), text(&folder).to_owned()]
    });
    let ended = job.end(Duration::from_secs(30));
    let said = |rank: usize| ended[rank].1.join("\n");
    assert!(said(2).contains("is neither a folder"), "{}", said(2));
    for (status, said) in &ended {
        assert!(!status.success() && said.len() <= 1, "{status} {said:?}");
    }
}

#[test]
fn strangers_do_not_disturb() {
    let folder = model("nomic_moe");
    let args = ["--model", text(folder.path())];
    let mut job = Job::each(By::Torchrun, 3, |_| args.map(str::to_owned).to_vec());
    // Where rank 0 listens for the others, before and after they come.
    let port = job.meets_at;
    let mut strangers = Vec::new();
    for noise in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"moeshrd1",
        &[0xff; 100_000],
    ] {
        for _ in 0..10 {
            let Ok(mut stranger) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            // It may be hung up on.
            let _ = stranger.write_all(noise);
            strangers.push(stranger);
        }
    }
    answers(job.ready(), &["/embed"]);
    stop(job);
}
