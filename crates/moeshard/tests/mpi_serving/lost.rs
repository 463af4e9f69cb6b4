//! Processes that are killed at any time.

use std::thread;
use std::time::Duration;

use crate::client::{chance, kill, kill_at_work};
use crate::job::Job;

const N_RANKS: usize = 3;

/// Kills while requests are under way, and at any time of the start.
const N_KILLS: u64 = 80;
const N_EARLY_KILLS: u64 = 20;

/// The longest that the rest of the job may take to end; the test's machine may be busy.
const NOTICED: Duration = Duration::from_secs(10);

/// That the program said one sentence and failed.
fn ends_well(job: Job, killed: usize) {
    let (code, log) = job.end(NOTICED);
    assert_ne!(code, Some(0), "{log}");
    let own: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("moeshard: "))
        .collect();
    if killed == 0 {
        // Each of the others says it for itself, unless the launcher is faster.
        let all = own.iter().all(|line| line.contains(": rank 0 is lost: "));
        assert!(own.len() < N_RANKS && all, "{own:?} {log}");
        return;
    }
    let expected = format!("moeshard: rank {killed} is lost: its process is gone");
    assert_eq!(own, [expected], "{log}");
    assert!(log.contains("rank 0 exits with 1"), "{log}");
}

#[test]
fn a_process_that_is_killed_ends_the_job_and_nobody_waits() {
    let n_refused: usize = (0..N_KILLS).map(killed_at_work).sum();
    assert!(n_refused > 0, "no request was refused");
}

/// Kills one process while two clients ask; how many requests were refused.
fn killed_at_work(round: u64) -> usize {
    let killed = (chance(round) % N_RANKS as u64) as usize;
    let pause = Duration::from_micros(chance(round + 1000) % 150_000);
    let mut job = Job::start(N_RANKS);
    let port = job.ready();
    let process = job.process_of(killed);
    kill_at_work(port, (killed, process), pause, || ends_well(job, killed))
}

#[test]
fn a_process_that_is_killed_at_the_start_ends_the_job() {
    let n_hanging = (0..N_EARLY_KILLS).filter(|&round| killed_at_start(round));
    let n_hanging = n_hanging.count() as u64;
    assert!(n_hanging <= N_EARLY_KILLS / 5, "mpirun hangs too often");
}

/// Kills one process at any time of the start; whether `mpirun` did not end after all processes had.
fn killed_at_start(round: u64) -> bool {
    let killed = (chance(round + 2000) % N_RANKS as u64) as usize;
    let pause = Duration::from_micros(chance(round + 3000) % 400_000);
    let mut job = Job::start(N_RANKS);
    let process = job.process_of(killed);
    thread::sleep(pause);
    kill("KILL", process);
    let (code, log) = job.end_of_start(NOTICED);
    assert_ne!(code, Some(0), "{log}");
    code.is_none()
}
