use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::Duration;

use moeshard_loadtest::{Error, run_and_print};

use crate::fake::{After, Fake, reply, reply_ok};
use crate::{args, run, run_one};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_counted_by_status_with_429_apart() {
    let fake = Fake::start(|idx, _, wire| match idx % 6 {
        0 => reply(wire, "429 Too Many Requests", "retry-after: 1\r\n", "full"),
        1 | 2 => reply(wire, "500 Internal Server Error", "", ""),
        3 => reply(wire, "413 Content Too Large", "", r#"{"error":"too long"}"#),
        _ => reply_ok(wire),
    });
    let rate = run_one(&fake, "--request-rate 200 --num-prompts 60").await;
    assert_eq!((rate.sent, rate.completed, rate.failed), (60, 20, 40));
    assert_eq!(rate.errors.too_many_requests, 10);
    assert_eq!(rate.errors.by_status, [(413, 10), (500, 20)].into());
    assert_eq!((rate.errors.connection, rate.errors.timeout), (0, 0));
    assert!(rate.first_error.unwrap().starts_with("status "));
    // A failed answer leaves its connection usable.
    assert!(fake.n_connections.load(Relaxed) <= rate.max_in_flight);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_fails_every_request_and_the_program() {
    let fake = Fake::refusing();
    let report = run(&fake, "--request-rate 500 --num-prompts 20 --num-warmups 2").await;
    assert_eq!(report.warmup_failures, 2);
    assert_eq!(
        (report.rates[0].completed, report.rates[0].errors.connection),
        (0, 20)
    );
    assert!(matches!(
        report.require_success(),
        Err(Error::AllFailed { n_requests: 20, .. })
    ));

    let mut out = Vec::new();
    let line = "--request-rate 500 --num-prompts 20";
    let error = run_and_print(args(&fake, line), &mut out)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("all 20 requests failed") && error.contains("refused"),
        "{error}"
    );
    let table = String::from_utf8(out).unwrap();
    assert!(table.contains("20 requests failed"), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_fails_requests_in_time_even_behind_the_cap() {
    let fake = Fake::start(|_, _, wire| {
        sleep(Duration::from_secs(5));
        reply_ok(wire)
    });
    let line = "--request-rate 200 --num-prompts 30 --timeout 0.2 --max-concurrency 3";
    let rate = run_one(&fake, line).await;
    assert_eq!((rate.completed, rate.errors.timeout), (0, 30));
    assert!(rate.duration_s < 2.0, "{} s", rate.duration_s);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_answer_is_a_connection_error() {
    let fake = Fake::start(|idx, _, wire| match idx % 3 {
        0 => reply_ok(wire),
        1 => {
            wire.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[[0.1")?;
            Ok(After::Close)
        }
        _ => Err(io::ErrorKind::Other.into()),
    });
    let rate = run_one(&fake, "--request-rate 100 --num-prompts 30").await;
    assert_eq!((rate.completed, rate.errors.connection), (10, 20));
    assert_eq!(rate.errors.total(), 20);
}

/// A server may close a connection between two requests, with a word of warning or without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_idle_connection_is_replaced() {
    for header in ["", "connection: close\r\n"] {
        let fake = Fake::start(move |_, _, wire| {
            reply(wire, "200 OK", header, "[[1.0]]")?;
            Ok(After::Close)
        });
        let line = "--request-rate 20 --num-prompts 20 --arrivals constant";
        let rate = run_one(&fake, line).await;
        assert_eq!(rate.completed, 20, "{:?}", rate.first_error);
        assert_eq!(fake.n_connections.load(Relaxed), 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_due_is_said_so() {
    let fake = Fake::refusing();
    let report = run(
        &fake,
        "--request-rate 0.01 --duration 0.05 --arrivals constant",
    )
    .await;
    assert_eq!(report.rates[0].sent, 0);
    assert!(matches!(report.require_success(), Err(Error::NothingSent)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_host_is_an_error_of_the_test() {
    let mut args = args(&Fake::refusing(), "");
    args.url = "http://host.invalid:1".to_owned();
    let error = moeshard_loadtest::run(args).await.unwrap_err();
    assert!(matches!(error, Error::Resolve { .. }), "{error}");
}
