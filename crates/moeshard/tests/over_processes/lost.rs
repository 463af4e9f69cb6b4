//! Processes that are killed at any time.

use std::thread;
use std::time::Duration;

use crate::client::{chance, kill, kill_at_work};
use crate::folders::{model, text};
use crate::job::{Job, LAUNCHERS, Process};

/// Kills while requests are under way, and at any time of the start.
const N_KILLS: u64 = 70;
const N_EARLY_KILLS: u64 = 30;

/// Jobs at a time: most of a kill is waiting.
const N_JOBS: u64 = 2;

/// The longest that the rest of a job may take to end; the machine may be busy.
const ENDED: Duration = Duration::from_secs(10);

/// When a launcher ends what is left of a job, at the latest.
const LAUNCHER: Duration = Duration::from_millis(300);

/// Several rounds side by side.
fn rounds<T: Send>(n: u64, round: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let round = &round;
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..N_JOBS)
            .map(|first| {
                let own = (first..n).step_by(N_JOBS as usize);
                scope.spawn(move || own.map(round).collect::<Vec<_>>())
            })
            .collect();
        let ended = jobs
            .into_iter()
            .flat_map(|job| job.join().expect("a round"));
        ended.collect()
    })
}

/// A job for a round: one of each launcher in turn, with two or three ranks, one of which is to be killed.
fn of_round(round: u64, folder: &str) -> (Job, usize) {
    let n_ranks = 2 + (chance(round) >> 20) as usize % 2;
    let by = LAUNCHERS[round as usize % LAUNCHERS.len()];
    let killed = chance(round + 500) as usize % n_ranks;
    (Job::start(by, n_ranks, &["--model", folder]), killed)
}

#[test]
fn a_process_that_is_killed_ends_the_job_and_nobody_waits() {
    let folder = model("nomic_moe");
    let refused = rounds(N_KILLS, |round| killed_at_work(round, text(folder.path())));
    assert!(refused.iter().sum::<usize>() > 0, "no request was refused");
}

/// Kills one process while two clients ask; how many requests were refused.
fn killed_at_work(round: u64, folder: &str) -> usize {
    let pause = Duration::from_micros(chance(round + 1000) % 60_000);
    let (mut job, killed) = of_round(round, folder);
    let port = job.ready();
    let process = job.processes[killed].id();
    kill_at_work(port, (killed, process), pause, || ends_well(job, killed))
}

/// That every process failed, and what each said.
fn ends_well(job: Job, killed: usize) {
    let all = job.end(ENDED);
    for (rank, (status, said)) in all.iter().enumerate() {
        let expected = match (rank, killed) {
            (rank, killed) if rank == killed => {
                assert_eq!(status.code(), None, "it was killed");
                vec![]
            }
            (0, _) => vec![format!(
                "moeshard: rank {killed} is lost: its process is gone"
            )],
            (_, 0) => vec![format!(
                "moeshard: rank {rank}: rank 0 is lost: its process is gone"
            )],
            // Rank 0 has said it.
            _ => vec![],
        };
        assert_eq!(*said, expected, "rank {rank}, killed {killed}: {all:?}");
        assert!(rank == killed || status.code() == Some(1), "{all:?}");
    }
}

#[test]
fn a_process_that_is_killed_at_the_start_ends_the_job() {
    let folder = model("nomic_moe");
    rounds(N_EARLY_KILLS, |round| {
        killed_at_start(round, text(folder.path()));
    });
}

/// Kills one process at any time of the start. What is left waits for it if it had not come yet, until the launcher
/// ends that.
fn killed_at_start(round: u64, folder: &str) {
    let pause = Duration::from_micros(chance(round + 3000) % 150_000);
    let (job, killed) = of_round(round + 2000, folder);
    let processes: Vec<_> = job.processes.iter().map(Process::id).collect();
    thread::sleep(pause);
    kill("KILL", processes[killed]);
    let all = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(LAUNCHER);
            processes.iter().for_each(|&process| kill("TERM", process));
        });
        job.end(ENDED)
    });
    for (rank, (status, said)) in all.iter().enumerate() {
        assert!(!status.success(), "rank {rank}: {all:?}");
        // One that ended before it could say anything was told to by the launcher.
        let n_said = usize::from(rank != killed && status.code().is_some());
        let by_leader = usize::from(rank == 0 || killed == 0);
        assert!(
            said.len() <= 1 && said.len() >= n_said * by_leader,
            "{all:?}"
        );
    }
    if let ([line], true) = (all[0].1.as_slice(), killed > 0) {
        let (_, names) = line.split_once("rank").expect("a rank");
        assert!(names.contains(&killed.to_string()), "{line}");
    }
}
