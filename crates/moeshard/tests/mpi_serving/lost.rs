//! Processes that are killed at any time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::job::{Job, kill, request};

const N_RANKS: usize = 3;

/// Kills while requests are under way, and at any time of the start.
const N_KILLS: u64 = 40;
const N_EARLY_KILLS: u64 = 10;

/// The longest that clients and the rest of the job may take to notice. Launchers allow a second; the test's
/// machine may be busy.
const NOTICED: Duration = Duration::from_secs(10);

/// Numbers by chance, the same in every run (SplitMix64).
fn chance(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Asks until the server is gone; each answer must be right or a refusal. How many were refused.
fn ask(port: u16, is_over: &AtomicBool) -> usize {
    let text = "a process may be lost at any time ".repeat(40);
    let body = format!(r#"{{"inputs": ["{text}", "{text}", "{text}", "{text}"]}}"#);
    let mut n_refused = 0;
    while !is_over.load(Ordering::Relaxed) {
        match request(port, "POST /embed", &body) {
            Ok((head, _)) if head.starts_with("http/1.1 200") => {}
            Ok((head, body)) => {
                assert!(head.starts_with("http/1.1 503"), "{head} {body}");
                assert!(head.contains("retry-after"), "{head} {body}");
                let (health, _) = match request(port, "GET /health", "") {
                    Ok(answer) => answer,
                    Err(_) => return n_refused,
                };
                assert!(health.starts_with("http/1.1 503"), "{health}");
                n_refused += 1;
                thread::sleep(Duration::from_millis(20));
            }
            // The connection was closed, or nobody listens any more.
            Err(_) => return n_refused,
        }
    }
    n_refused
}

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
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = [0, 1].map(|_| scope.spawn(|| ask(port, &is_over)));
        thread::sleep(pause);
        kill("KILL", process);
        let started = Instant::now();
        ends_well(job, killed);
        is_over.store(true, Ordering::Relaxed);
        let n_refused = clients.map(|client| client.join().expect("a client"));
        assert!(started.elapsed() < NOTICED, "{:?}", started.elapsed());
        n_refused.iter().sum()
    })
}

#[test]
fn a_process_that_is_killed_at_the_start_ends_the_job() {
    for round in 0..N_EARLY_KILLS {
        let killed = (chance(round + 2000) % N_RANKS as u64) as usize;
        let pause = Duration::from_micros(chance(round + 3000) % 400_000);
        let mut job = Job::start(N_RANKS);
        let process = job.process_of(killed);
        thread::sleep(pause);
        kill("KILL", process);
        let (code, log) = job.end(NOTICED);
        assert_ne!(code, Some(0), "{log}");
    }
}
