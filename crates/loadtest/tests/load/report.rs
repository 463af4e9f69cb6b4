use std::sync::{Arc, Mutex};

use moeshard_loadtest::run_and_print;
use serde_json::{Value, json};

use crate::fake::{Fake, reply, reply_ok};
use crate::{args, run, run_one};

const SERVER_HEADERS: &str = "x-compute-tokens: 7\r\nx-total-time: 9\r\nx-queue-time: 4\r\n\
                              x-tokenization-time: 0\r\nx-inference-time: 5\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_has_the_known_keys() {
    let fake = Fake::start(|_, _, wire| reply(wire, "200 OK", SERVER_HEADERS, "[[1.0]]"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/when/needed.json");
    let line = format!(
        "--request-rate 100,inf --max-concurrency 2 --num-prompts 50 --batch 3 --seed 9 --output {}",
        path.display()
    );
    let mut table = Vec::new();
    run_and_print(args(&fake, &line), &mut table).await.unwrap();

    let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(report["parameters"]["seed"], 9);
    assert_eq!(report["environment"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["environment"]["cores"].as_u64().unwrap() >= 1);
    assert!(report["environment"]["os"].is_string());
    assert_eq!(report["rates"][0]["request_rate"], 100.0);
    assert_eq!(report["rates"][1]["request_rate"], "inf");
    for rate in report["rates"].as_array().unwrap() {
        assert_counts_and_keys(rate);
    }
    let table = String::from_utf8(table).unwrap();
    assert!(
        table
            .lines()
            .nth(2)
            .unwrap()
            .trim_start()
            .starts_with("100  "),
        "{table}"
    );
    assert!(
        table
            .lines()
            .nth(3)
            .unwrap()
            .trim_start()
            .starts_with("inf  "),
        "{table}"
    );
}

fn assert_counts_and_keys(rate: &Value) {
    assert_eq!(
        (&rate["sent"], &rate["completed"]),
        (&json!(50), &json!(50))
    );
    assert_eq!(
        (&rate["completed_texts"], &rate["total_tokens"]),
        (&json!(150), &json!(350))
    );
    assert_eq!(rate["server"]["mean_queue_ms"], 4.0);
    assert_eq!(rate["server"]["mean_inference_ms"], 5.0);
    let number = |key: &str| {
        rate[key]
            .as_f64()
            .unwrap_or_else(|| panic!("no {key} in {rate}"))
    };
    for what in ["ttfb", "ttft", "e2el"] {
        for statistic in ["mean", "p50", "p90", "p95", "p99", "p999", "max"] {
            assert!(number(&format!("{statistic}_{what}_ms")) > 0.0);
        }
    }
    let duration_s = number("duration_s");
    let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} for {b}");
    close(number("request_throughput"), 50.0 / duration_s);
    close(number("text_throughput"), 150.0 / duration_s);
    close(number("total_token_throughput"), 350.0 / duration_s);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_does_not_say_is_null() {
    let fake = Fake::start(|_, _, wire| reply_ok(wire));
    let rate = run_one(&fake, "--request-rate 500 --num-prompts 5").await;
    let json = serde_json::to_value(&rate).unwrap();
    assert_eq!(json["total_token_throughput"], Value::Null);
    assert_eq!(json["server"]["mean_queue_ms"], Value::Null);

    let refused = run_one(&Fake::refusing(), "--request-rate 500 --num-prompts 5").await;
    assert_eq!(
        serde_json::to_value(&refused).unwrap()["p99_ttft_ms"],
        Value::Null
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_fixes_what_is_sent_at_every_rate() {
    let bodies = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let seen = Arc::clone(&bodies);
    let fake = Fake::start(move |_, body, wire| {
        seen.lock().unwrap().push(body.to_vec());
        reply_ok(wire)
    });
    let sent_with = async |line: &str| {
        run(&fake, line).await;
        let mut sent = std::mem::take(&mut *bodies.lock().unwrap());
        sent.sort_unstable();
        sent
    };
    let first = sent_with("--request-rate 500 --num-prompts 20 --seed 1 --words 4:9").await;
    assert_eq!(first.len(), 20);
    let again = sent_with("--request-rate 900 --num-prompts 20 --seed 1 --words 4:9").await;
    let other = sent_with("--request-rate 500 --num-prompts 20 --seed 2 --words 4:9").await;
    assert_eq!(first, again);
    assert_ne!(first, other);
    let body: Value = serde_json::from_slice(&first[0]).unwrap();
    assert!(body["inputs"].is_string(), "{body}");
}
