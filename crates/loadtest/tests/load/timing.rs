use std::io::Write;
use std::sync::{Mutex, atomic::Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use moeshard_loadtest::{RateReport, Summary};

use crate::fake::{After, Fake, reply_ok};
use crate::run_one;

/// A machine that compiles something else at the same time delays single runs by many
/// milliseconds. That says nothing about the generator, while a generator that is wrong is wrong
/// every time: so the best of a few runs decides.
const N_ATTEMPTS: usize = 3;

fn fixed(delay: Duration) -> Fake {
    Fake::start(move |_, _, wire| {
        sleep(delay);
        reply_ok(wire)
    })
}

fn p50(summary: Option<Summary>) -> f64 {
    summary.expect("completed requests").p50_ms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_50_ms_is_measured_within_2_ms() {
    let fake = fixed(Duration::from_millis(50));
    let mut found = Vec::new();
    for _ in 0..N_ATTEMPTS {
        let rate = run_one(&fake, "--request-rate 50 --num-prompts 80").await;
        assert_eq!((rate.sent, rate.completed), (80, 80));
        let medians = [
            rate.latencies.ttfb,
            rate.latencies.ttft,
            rate.latencies.e2el,
        ]
        .map(p50);
        assert!(
            medians.iter().all(|&p50| p50 >= 50.0),
            "faster than the server: {medians:?}"
        );
        if medians.iter().all(|&p50| p50 <= 52.0) {
            return;
        }
        found.push(medians);
    }
    panic!("medians of TTFB, TTFT and total: {found:?}");
}

/// A server that answers at once but for one second, in which nothing is answered at all.
fn stalling_at(stalled_idx: usize) -> Fake {
    let until = Mutex::new(None::<Instant>);
    Fake::start(move |idx, _, wire| {
        let end = {
            let mut until = until.lock().unwrap();
            if idx == stalled_idx {
                *until = Some(Instant::now() + Duration::from_secs(1));
            }
            *until
        };
        if let Some(end) = end {
            sleep(end.saturating_duration_since(Instant::now()));
        }
        reply_ok(wire)
    })
}

/// 400 requests in 4 s, of which a quarter falls into the stall: the fifth largest wait is about
/// 960 ms. A closed-loop client would send one request in that second and report a p99 of 1 ms.
fn assert_stall_is_seen(rate: &RateReport) {
    assert_eq!((rate.sent, rate.completed), (400, 400));
    let ttft = rate.latencies.ttft.unwrap();
    assert!(ttft.p99_ms >= 900.0, "the stall is missing: {ttft:?}");
    assert!(ttft.max_ms >= 990.0, "the stall is missing: {ttft:?}");
    assert!(ttft.p50_ms < 500.0, "the rest is slow too: {ttft:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_of_a_second_shows_in_the_99th_percentile() {
    for arrivals in ["constant", "poisson"] {
        let line = format!("--request-rate 100 --num-prompts 400 --arrivals {arrivals}");
        let rate = run_one(&stalling_at(100), &line).await;
        assert_stall_is_seen(&rate);
        assert!(
            rate.max_in_flight > 50,
            "{} in flight: not open loop",
            rate.max_in_flight
        );
        assert_eq!(rate.delayed, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_concurrency_cap_does_not_hide_a_stall() {
    let line = "--request-rate 100 --num-prompts 400 --arrivals constant --max-concurrency 4";
    let rate = run_one(&stalling_at(100), line).await;
    assert_stall_is_seen(&rate);
    assert!(rate.max_in_flight <= 4);
    // All that fell due in the stall but those in flight, whether or not a slot was free when
    // their turn came; none of it is the generator's own lag.
    assert!(rate.delayed >= 90, "{} delayed", rate.delayed);
    assert!(rate.latencies.send_lag.unwrap().p50_ms < 50.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_is_kept_on_few_connections() {
    let fake = fixed(Duration::from_millis(1));
    let rate = run_one(&fake, "--request-rate 200 --duration 2 --arrivals constant").await;
    assert_eq!(rate.sent, 400);
    assert!(
        rate.duration_s >= 2.0 && rate.duration_s < 3.0,
        "{} s",
        rate.duration_s
    );
    let n_connections = fake.n_connections.load(Relaxed);
    assert!(
        n_connections <= rate.max_in_flight,
        "{n_connections} connections opened"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_keeps_its_slots_full() {
    let fake = fixed(Duration::from_millis(20));
    let line = "--request-rate inf --max-concurrency 5 --num-prompts 100";
    let rate = run_one(&fake, line).await;
    assert_eq!(
        (rate.completed, rate.max_in_flight, rate.delayed),
        (100, 5, 0)
    );
    // 20 rounds of 20 ms at best.
    assert!(rate.duration_s >= 0.4, "{} s", rate.duration_s);
    assert!(p50(rate.latencies.ttft) >= 20.0);
}

/// Head at once, the first line after 30 ms, the second after 150 ms.
fn streaming(content_type: &'static str) -> Fake {
    Fake::start(move |_, _, wire| {
        write!(wire, "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n")?;
        wire.write_all(b"transfer-encoding: chunked\r\n\r\n")?;
        sleep(Duration::from_millis(30));
        wire.write_all(b"6\r\n[0.6]\n\r\n")?;
        sleep(Duration::from_millis(120));
        wire.write_all(b"6\r\n[0.8]\n\r\n0\r\n\r\n")?;
        Ok(After::KeepAlive)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_result_of_a_stream_is_its_first_line() {
    let fake = streaming("application/x-ndjson; charset=utf-8");
    let latencies = run_one(&fake, "--request-rate 20 --num-prompts 15")
        .await
        .latencies;
    let [ttfb, ttft, e2el] = [latencies.ttfb, latencies.ttft, latencies.e2el].map(p50);
    assert!(ttfb + 15.0 < ttft && ttft >= 30.0, "{ttfb} {ttft}");
    assert!(ttft + 60.0 < e2el && e2el >= 150.0, "{ttft} {e2el}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_result_of_a_document_is_its_end() {
    let fake = streaming("application/json");
    let latencies = run_one(&fake, "--request-rate 20 --num-prompts 5")
        .await
        .latencies;
    assert_eq!(latencies.ttft, latencies.e2el);
    assert!(p50(latencies.ttft) >= 150.0);
}
