//! What a server says of itself.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use moeshard_tests::server::{Server, run};
use serde_json::json;

use crate::numbers::metric;

#[test]
fn probes_and_info_describe_the_server() {
    let server = Server::start(&[]);
    let client = server.client();
    for path in ["/live", "/health", "/ready", "/ping"] {
        assert_eq!(client.get(path).status, 200, "{path}");
    }
    let info = client.get("/info").ok();
    let expect = [
        ("n_experts", json!(8)),
        ("top_k", json!(2)),
        ("n_layers", json!(4)),
        ("world_size", json!(1)),
        ("max_input_length", json!(256)),
        ("device", json!("cpu")),
    ];
    for (key, value) in expect {
        assert_eq!(info[key], value, "{key} of {info}");
    }
    let d_model = info["d_model"]
        .as_u64()
        .and_then(|n| usize::try_from(n).ok());
    let rows = client.post("/embed", json!({ "inputs": "hello" })).rows();
    assert_eq!(Some(rows[0].len()), d_model);
}

#[test]
fn the_port_is_bound_while_the_model_loads() {
    // A hub that accepts connections and never answers: the model is not there for a long time.
    let hub = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", hub.local_addr().expect("an address"));
    let cache = tempfile::tempdir().expect("a folder");
    let cache = cache.path().to_str().expect("a path in UTF-8");
    let args = ["--model", "somebody/something", "--hub-cache", cache];
    let server = Server::launch_with(&args, &[("HF_ENDPOINT", &endpoint)]);
    let client = server.client();
    let deadline = Instant::now() + Duration::from_secs(20);
    let live = loop {
        match client.try_get("/live") {
            Ok(answer) => break answer,
            Err(error) => assert!(Instant::now() < deadline, "{error}: {}", server.stderr()),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(live.status, 200, "/live does not wait for the model");
    for path in ["/health", "/ready"] {
        let answer = client.get(path);
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.json()["error"].is_string(), "{path}");
    }
    let answer = client.post("/embed", json!({ "inputs": "hello" }));
    assert_eq!(answer.status, 503);
}

#[test]
fn the_documentation_is_served() {
    let server = Server::start(&[]);
    let client = server.client();
    let page = client.get("/docs");
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/html"))
    );
    assert!(page.text().contains("api-doc/openapi.json"));

    let document = client.get("/api-doc/openapi.json").ok();
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with('3'))
    );
    for path in [
        "/embed",
        "/classify",
        "/predict",
        "/v1/embeddings",
        "/info",
        "/metrics",
        "/",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn metrics_exist_from_the_start_and_count() {
    let server = Server::start(&[]);
    let client = server.client();
    let before = client.get("/metrics").text();
    let tokens = |text: &str| metric(text, "moeshard_tokens_total").expect("a counter");
    assert_eq!(metric(&before, "moeshard_ready"), Some(1.0));
    assert_eq!(metric(&before, "moeshard_dropped_tokens_total"), Some(0.0));

    let answer = client.post("/embed", json!({ "inputs": ["hello", "I lost my card"] }));
    let spent: f64 = answer
        .header("x-compute-tokens")
        .and_then(|n| n.parse().ok())
        .expect("tokens");
    for header in [
        "x-total-time",
        "x-tokenization-time",
        "x-queue-time",
        "x-inference-time",
    ] {
        let value = answer.header(header).map(str::parse::<u64>);
        assert!(matches!(value, Some(Ok(_))), "{header}: {value:?}");
    }
    let after = client.get("/metrics").text();
    assert!(spent > 4.0);
    assert_eq!(tokens(&after) - tokens(&before), spent);
    let series = "moeshard_requests_total{route=\"/embed\",status=\"200\"}";
    assert_eq!(metric(&after, series), Some(1.0), "{after}");
}

#[test]
fn an_api_key_is_asked_for_and_never_logged() {
    let server = Server::start(&["--api-key", "correct-horse"]);
    let client = server.client();
    let body = br#"{"inputs":"hello"}"#;
    let with = |value: &str| {
        let headers = [("authorization", value)];
        client
            .send_with("POST", "/embed", &headers, body)
            .expect("an answer")
    };
    assert_eq!(with("Bearer correct-horse").status, 200);
    for wrong in ["Bearer battery-staple", "correct-horse", "Bearer "] {
        let answer = with(wrong);
        assert_eq!(answer.status, 401, "{wrong}");
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(client.get("/health").status, 200, "a probe has no key");
    assert!(
        !server.stderr().contains("correct-horse"),
        "{}",
        server.stderr()
    );
}

#[test]
fn help_and_version_are_printed() {
    let help = run(&["serve", "--help"]);
    assert!(help.status.success());
    for flag in [
        "--model",
        "--port",
        "--ranks",
        "--dtype",
        "--experts",
        "--payload-limit",
    ] {
        assert!(help.stdout.contains(flag), "{flag}:\n{}", help.stdout);
    }
    let version = run(&["--version"]);
    assert!(
        version.stdout.starts_with("moeshard "),
        "{}",
        version.stdout
    );
    let wrong = run(&["serve", "--prot", "1"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stderr.contains("--port"), "a hint: {}", wrong.stderr);
}
