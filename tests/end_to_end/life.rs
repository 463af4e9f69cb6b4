//! Clients that leave, and a server that is asked to.

use std::io::Read;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use moeshard_tests::http::Client;
use moeshard_tests::server::Server;
use serde_json::json;

use crate::numbers::metric;

const SOON: Duration = Duration::from_secs(60);

/// More work than fits a batch of 1,024 tokens many times over.
fn bulk(n_texts: usize) -> Vec<u8> {
    let texts: Vec<String> = (0..n_texts)
        .map(|idx| format!("{} {idx}", "my card has not arrived yet ".repeat(16)))
        .collect();
    json!({ "inputs": texts }).to_string().into_bytes()
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn read(client: Client, series: &str) -> f64 {
    let text = client.get("/metrics").text();
    metric(&text, series).unwrap_or_else(|| panic!("no {series} in\n{text}"))
}

#[test]
fn the_work_of_a_client_that_hangs_up_is_dropped() {
    let server = Server::start(&["--max-batch-tokens", "1024"]);
    let client = server.client();
    let n_texts = 1_500;
    let stream = client
        .begin("POST", "/embed", &[], &bulk(n_texts))
        .expect("a connection");
    wait_until("some of it ran", || {
        read(client, "moeshard_tokens_total") > 0.0
    });
    drop(stream);
    wait_until("the queue is empty", || {
        read(client, "moeshard_queue_sequences") == 0.0
    });
    let n_tokens = read(client, "moeshard_tokens_total");
    // Each text has more than 96 tokens.
    let all = (n_texts * 96) as f64;
    assert!(n_tokens < all, "{n_tokens} tokens were run for nobody");
    assert_eq!(
        client
            .post("/embed", json!({ "inputs": "hello" }))
            .rows()
            .len(),
        1
    );
}

#[test]
fn a_client_that_hangs_up_within_its_request_harms_nobody() {
    let server = Server::start(&[]);
    let client = server.client();
    for sent in [
        "",
        "POST",
        "POST /embed HTTP/1.1\r\n",
        "\r\n\r\n",
        "\0\0\0\0",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("a connection");
        std::io::Write::write_all(&mut stream, sent.as_bytes()).expect("sent");
    }
    let head = "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"inputs\":";
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("a connection");
    std::io::Write::write_all(&mut stream, head.as_bytes()).expect("sent");
    drop(stream);
    assert_eq!(
        client
            .post("/embed", json!({ "inputs": "hello" }))
            .rows()
            .len(),
        1
    );
}

#[test]
fn too_much_work_is_refused_until_there_is_room() {
    let server = Server::start(&["--max-batch-tokens", "256", "--max-queue-tokens", "512"]);
    let client = server.client();
    let stream = client
        .begin("POST", "/embed", &[], &bulk(1_000))
        .expect("a connection");
    wait_until("it was accepted", || {
        read(client, "moeshard_queue_sequences") > 0.0
    });
    for (path, field) in [("/embed", "inputs"), ("/v1/embeddings", "input")] {
        let answer = client.post(path, json!({ field: "hello" }));
        assert_eq!(answer.status, 429, "{}", answer.text());
        let retry_after = answer.header("retry-after").map(str::parse::<u64>);
        assert!(matches!(retry_after, Some(Ok(1..))), "{retry_after:?}");
        assert!(answer.text().contains("512"), "{}", answer.text());
    }
    assert_eq!(client.get("/health").status, 200, "busy is not ill");
    drop(stream);
    wait_until("there is room", || {
        client.post("/embed", json!({ "inputs": "hello" })).status == 200
    });
}

#[test]
fn what_was_accepted_is_answered_at_shutdown() {
    let mut server = Server::start(&["--max-batch-tokens", "1024"]);
    let client = server.client();
    let n_texts = 200;
    let mut stream = client
        .begin("POST", "/embed", &[], &bulk(n_texts))
        .expect("a connection");
    wait_until("it was accepted", || {
        read(client, "moeshard_queue_sequences") > 0.0
    });
    server.terminate();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let rows: Vec<Vec<f32>> = serde_json::from_str(body).expect("rows");
    assert_eq!(rows.len(), n_texts);
    let status = server.wait(SOON);
    assert!(status.success(), "{status}:\n{}", server.stderr());
    assert!(client.try_get("/live").is_err(), "the port is closed");
}

#[test]
fn an_idle_server_ends_at_once() {
    let mut server = Server::start(&[]);
    server.terminate();
    let status = server.wait(Duration::from_secs(10));
    assert!(status.success(), "{status}:\n{}", server.stderr());
}
