//! What clients of a server over processes see; also when a process is killed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The longest that clients and probes wait to hear that a process is lost.
pub(crate) const HEARD: Duration = Duration::from_secs(1);

const TEXTS: &str = r#"{"inputs": ["How do I activate my new card?", "my card was stolen",
    "the exchange rate is wrong and I was charged twice for one payment", "ok"]}"#;

/// Head and body of an answer; an error if there is none or it breaks off.
pub(crate) fn request(port: u16, head: &str, body: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parts = answer.split_once("\r\n\r\n");
    let (head, body) = parts.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((head.to_lowercase(), body.to_owned()))
}

/// What `routes` make of several texts at once.
pub(crate) fn answers(port: u16, routes: &[&str]) -> Vec<String> {
    let answer = |route: &&str| {
        let (head, body) = request(port, &format!("POST {route}"), TEXTS).expect("an answer");
        assert!(head.starts_with("http/1.1 200"), "{route}: {head} {body}");
        body
    };
    routes.iter().map(answer).collect()
}

/// That two answers are the same numbers but for the order in which they were added up.
pub(crate) fn assert_close(found: &str, expected: &str, what: &str) {
    let numbers = |body: &str| -> Vec<f32> {
        let words = body.split(|c: char| !(c.is_ascii_digit() || ".-+eE".contains(c)));
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let (found, expected) = (numbers(found), numbers(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let apart = found.iter().zip(&expected).map(|(x, y)| (x - y).abs());
    let apart = apart.fold(0f32, f32::max);
    assert!(apart <= 1e-5 * largest, "{what}: {apart} of {largest}");
}

/// Sends a signal to a process, which may have ended.
pub(crate) fn kill(signal: &str, process: u32) {
    let mut command = Command::new("kill");
    command.args(["-s", signal, &process.to_string()]);
    let _ = command.stderr(Stdio::null()).status();
}

/// Numbers by chance, the same in every run (SplitMix64).
pub(crate) fn chance(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Kills the process of a rank after a pause, while two clients ask and two probes look; `ended` returns when the rest of
/// the job has ended. How many requests were refused.
pub(crate) fn kill_at_work(
    port: u16,
    (rank, process): (usize, u32),
    pause: Duration,
    ended: impl FnOnce(),
) -> usize {
    let told = Kill {
        of_leader: rank == 0,
        ..Kill::default()
    };
    thread::scope(|scope| {
        let clients = [0, 1].map(|_| scope.spawn(|| ask(port, &told)));
        let probes = ["/health", "/ready"].map(|route| {
            let told = &told;
            scope.spawn(move || probe(port, route, told))
        });
        thread::sleep(pause);
        let _ = told.at.set(Instant::now());
        kill("KILL", process);
        ended();
        told.is_over.store(true, Ordering::Relaxed);
        for probe in probes {
            let was_told = probe.join().expect("a probe");
            assert!(was_told || rank == 0, "nobody said 503");
        }
        let n_refused = clients.map(|client| client.join().expect("a client"));
        n_refused.iter().sum()
    })
}

/// Waits until a process has logged something, which must be before it ends.
pub(crate) fn wait_for<T>(
    process: &mut Child,
    log: impl Fn() -> String,
    found: impl Fn(&str) -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        let log = log();
        if let Some(found) = found(&log) {
            return found;
        }
        let ended = process.try_wait().expect("a process");
        assert!(ended.is_none(), "{ended:?}: {log}");
        assert!(started.elapsed() < PATIENCE, "it hangs: {log}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A kill that clients and probes wait for.
#[derive(Default)]
struct Kill {
    /// When.
    at: OnceLock<Instant>,
    /// Everybody has ended.
    is_over: AtomicBool,
    /// Rank 0 was killed, which then can tell nobody.
    of_leader: bool,
}

impl Kill {
    /// That this happened in time after the kill.
    fn assert_heard(&self, what: &str) {
        let passed = self.at.get().map_or(Duration::ZERO, Instant::elapsed);
        assert!(passed <= HEARD, "{what} {passed:?} after the kill");
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }
}

/// Asks until the server is gone; each answer must be right or a refusal, and what was pending must be refused in
/// time. How many were refused.
fn ask(port: u16, kill: &Kill) -> usize {
    let text = "a process may be lost at any time ".repeat(40);
    let body = format!(r#"{{"inputs": ["{text}", "{text}", "{text}", "{text}"]}}"#);
    let mut n_refused = 0;
    while kill.goes_on() {
        let is_pending = kill.at.get().is_none();
        match request(port, "POST /embed", &body) {
            Ok((head, _)) if head.starts_with("http/1.1 200") => {}
            Ok((head, body)) => {
                assert!(head.starts_with("http/1.1 503"), "{head} {body}");
                assert!(head.contains("retry-after"), "{head} {body}");
                if is_pending {
                    kill.assert_heard("what was pending was refused");
                }
                n_refused += 1;
                thread::sleep(Duration::from_millis(20));
            }
            // The connection was closed, or nobody listens any more.
            Err(error) => {
                let excused = kill.of_leader || !is_pending;
                assert!(excused, "what was pending was not answered: {error}");
                return n_refused;
            }
        }
    }
    n_refused
}

/// Asks how the server is until it says 503, which must be in time after the kill, or is gone. Whether it said so.
fn probe(port: u16, route: &str, kill: &Kill) -> bool {
    loop {
        match request(port, &format!("GET {route}"), "") {
            Ok((head, _)) if head.starts_with("http/1.1 200") => {
                kill.assert_heard("healthy as ever");
            }
            Ok((head, _)) => {
                assert!(head.starts_with("http/1.1 503"), "{head}");
                kill.assert_heard("unhealthy as late as");
                return true;
            }
            Err(error) => {
                assert!(kill.of_leader, "gone without a word: {error}");
                return false;
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}
