//! Over real connections: loading, overload, clients that leave, shutdown.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use moeshard_batcher::{BatcherConfig, ModelSlot};
use moeshard_http::{ApiKey, AppState, HttpConfig, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{FakeEngine, Server, Setup};

/// A server on a port of its own.
struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Running {
    fn begin_shutdown(&mut self) {
        let stop = self.stop.take().expect("not stopped yet");
        stop.send(()).expect("it runs");
    }
}

async fn listen(state: AppState) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { stopped.await.unwrap_or(()) };
    let task = tokio::spawn(serve(listener, state, shutdown));
    Running {
        address,
        stop: Some(stop),
        task,
    }
}

async fn connect(address: SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body.as_bytes()).await.expect("sent");
    stream
}

/// Status, head and body of the answer.
async fn finish(mut stream: TcpStream) -> (u16, String, Value) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head[9..12].parse().expect("a status");
    (
        status,
        head.to_owned(),
        serde_json::from_str(body).unwrap_or(Value::Null),
    )
}

async fn get(address: SocketAddr, path: &str) -> (u16, String, Value) {
    finish(connect(address, "GET", path, "").await).await
}

fn slow(delay_ms: u64, batcher: BatcherConfig) -> Server {
    let delay = Duration::from_millis(delay_ms);
    let engine = FakeEngine {
        delay,
        ..FakeEngine::default()
    };
    Server::start(Setup {
        engine,
        batcher,
        ..Setup::default()
    })
}

async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn a_batch_runs(server: &Server) {
    let n_runs = &server.engine.n_runs;
    wait_until("a batch runs", || n_runs.load(Ordering::SeqCst) > 0).await;
}

#[tokio::test]
async fn the_port_is_bound_before_the_model_is_loaded() {
    let slot = ModelSlot::new();
    let running = listen(AppState::new(slot.clone(), HttpConfig::default())).await;
    assert_eq!(get(running.address, "/live").await.0, 200);
    for path in ["/health", "/ready", "/ping", "/info", "/v1/models"] {
        assert_eq!(get(running.address, path).await.0, 503, "{path}");
    }
    let body = r#"{"inputs":"hello"}"#;
    let early = finish(connect(running.address, "POST", "/embed", body).await).await;
    assert_eq!(
        (early.0, &early.2["error_type"]),
        (503, &json!("Unhealthy"))
    );
    assert!(early.1.contains("retry-after: 1"));
    assert_eq!(get(running.address, "/metrics").await.0, 200);
    let loaded = Server::new();
    slot.fill(loaded.slot.handle().expect("loaded"));
    assert_eq!(get(running.address, "/ready").await.0, 200);
    let answer = finish(connect(running.address, "POST", "/embed", body).await).await;
    assert_eq!(answer.0, 200);
    let failed = ModelSlot::new();
    failed.fail("no such folder");
    let running = listen(AppState::new(failed, HttpConfig::default())).await;
    let (status, _, body) = get(running.address, "/health").await;
    assert_eq!(status, 503);
    assert_eq!(body["error"], "the model cannot answer: no such folder");
}

#[tokio::test]
async fn overload_is_a_429_with_retry_after() {
    let batcher = BatcherConfig {
        max_queue_tokens: 4,
        ..BatcherConfig::default()
    };
    let server = slow(300, batcher);
    let running = listen(server.state.clone()).await;
    let bulk = r#"{"inputs":["hello","hello","hello"]}"#;
    let first = connect(running.address, "POST", "/embed", bulk).await;
    a_batch_runs(&server).await;
    for path in ["/embed", "/v1/embeddings"] {
        let body = r#"{"inputs":"hello","input":"hello"}"#;
        let (status, head, body) = finish(connect(running.address, "POST", path, body).await).await;
        assert_eq!(status, 429, "{path} {body}");
        assert!(head.contains("retry-after: 1"), "{head}");
    }
    // Probes never wait behind a batch.
    let asked = Instant::now();
    assert_eq!(get(running.address, "/health").await.0, 200);
    assert!(asked.elapsed() < Duration::from_millis(200));
    assert_eq!(finish(first).await.0, 200);
    let again = connect(running.address, "POST", "/embed", r#"{"inputs":"hello"}"#).await;
    assert_eq!(finish(again).await.0, 200);
}

#[tokio::test]
async fn the_work_of_a_client_that_hangs_up_is_dropped() {
    let batcher = BatcherConfig {
        max_batch_tokens: 3,
        ..BatcherConfig::default()
    };
    let server = slow(100, batcher);
    let running = listen(server.state.clone()).await;
    let bulk = json!({ "inputs": vec!["hello"; 50] }).to_string();
    let client = connect(running.address, "POST", "/embed", &bulk).await;
    a_batch_runs(&server).await;
    drop(client);
    let handle = server.slot.handle().expect("loaded");
    wait_until("nothing is queued", || handle.load().n_seqs == 0).await;
    assert!(
        server.engine.n_runs.load(Ordering::SeqCst) < 10,
        "the rest was dropped"
    );
    let metrics = server.state.metrics().render(&server.slot);
    assert!(metrics.contains(r#"moeshard_requests_total{route="/embed",status="499"} 1"#));
    let next = connect(running.address, "POST", "/embed", r#"{"inputs":"world"}"#).await;
    assert_eq!(finish(next).await.0, 200);
}

#[tokio::test]
async fn shutdown_finishes_what_was_accepted() {
    let batcher = BatcherConfig {
        max_batch_tokens: 9,
        ..BatcherConfig::default()
    };
    let server = slow(50, batcher);
    let mut running = listen(server.state.clone()).await;
    let bulk = json!({ "inputs": vec!["hello"; 12] }).to_string();
    let client = connect(running.address, "POST", "/embed", &bulk).await;
    a_batch_runs(&server).await;
    running.begin_shutdown();
    let (status, _, body) = finish(client).await;
    assert_eq!((status, body.as_array().map(Vec::len)), (200, Some(12)));
    running.task.await.expect("no panic").expect("a clean end");
    assert!(
        TcpStream::connect(running.address).await.is_err(),
        "the port is free again"
    );
    assert!(server.slot.handle().is_err(), "nothing more is accepted");
}

#[tokio::test]
async fn shutdown_does_not_wait_forever_for_a_client() {
    let http = HttpConfig {
        shutdown_timeout: Duration::from_millis(200),
        ..HttpConfig::default()
    };
    let server = Server::start(Setup {
        http,
        ..Setup::default()
    });
    let mut running = listen(server.state.clone()).await;
    let mut client = TcpStream::connect(running.address)
        .await
        .expect("a connection");
    let half = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    client.write_all(half).await.expect("sent");
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.begin_shutdown();
    let end = tokio::time::timeout(Duration::from_secs(5), running.task).await;
    end.expect("in time")
        .expect("no panic")
        .expect("a clean end");
}

#[tokio::test]
async fn a_body_over_the_limit_is_answered_while_it_is_still_sent() {
    let http = HttpConfig {
        payload_limit: 1 << 20,
        ..HttpConfig::default()
    };
    let server = Server::start(Setup {
        http,
        ..Setup::default()
    });
    let running = listen(server.state.clone()).await;
    let body = json!({ "inputs": "a".repeat(8 << 20) }).to_string();
    let (status, _, body) = finish(connect(running.address, "POST", "/embed", &body).await).await;
    assert_eq!(status, 413);
    assert_eq!(
        body["error"],
        "the body is longer than the limit of 1048576 bytes"
    );
}

#[tokio::test]
async fn a_refused_request_is_answered_while_its_body_is_still_sent() {
    let http = HttpConfig {
        api_key: Some(ApiKey::new("secret")),
        ..HttpConfig::default()
    };
    let locked = Server::start(Setup {
        http,
        ..Setup::default()
    });
    let (locked, open) = (
        listen(locked.state).await,
        listen(Server::new().state).await,
    );
    let body = json!({ "inputs": "a".repeat(8 << 20) }).to_string();
    let cases = [
        (locked.address, "/embed", 401),
        (open.address, "/nowhere", 404),
        (open.address, "/info", 405),
    ];
    for (address, path, expect) in cases {
        let (status, _, body) = finish(connect(address, "POST", path, &body).await).await;
        assert_eq!(status, expect, "{path} {body}");
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_refused_without_its_body() {
    let running = listen(Server::new().state).await;
    let mut client = TcpStream::connect(running.address)
        .await
        .expect("connected");
    let head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                 expect: 100-continue\r\ncontent-length: 100\r\n\r\n";
    client.write_all(head).await.expect("sent");
    let asked = Instant::now();
    assert_eq!(finish(client).await.0, 404);
    assert!(asked.elapsed() < Duration::from_secs(2));
}
