//! What the log never holds.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::Method;
use moeshard_http::{ApiKey, HttpConfig};
use tracing::Level;

use crate::support::{Server, Setup, send};

/// Keeps what is written; clones write to the same place.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_keys_nor_bodies_are_logged_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // Of this thread, on which the whole test runs but for the engine and the tokenizers.
    let _guard = tracing::subscriber::set_default(subscriber);
    let http = HttpConfig {
        api_key: Some(ApiKey::new("sesame")),
        ..HttpConfig::default()
    };
    let server = Server::start(Setup {
        http,
        ..Setup::default()
    });
    tracing::trace!(config = ?server.state.config(), state = ?server.state, "state");
    let bodies = [
        r#"{"inputs":"confidential"}"#,
        r#"{"inputs":"confidential""#,
    ];
    for key in [
        "Bearer sesame",
        "Bearer sesame-oil",
        "Basic sesame",
        "sesame",
    ] {
        for body in bodies {
            let headers = [("authorization", key)];
            let body = Body::from(body);
            send(&server.router, Method::POST, "/embed", &headers, body).await;
        }
    }
    server.get("/live").await;
    let log = log.text();
    for seen in [
        "TRACE",
        "DEBUG",
        "INFO",
        "status=200",
        "status=400",
        "status=401",
    ] {
        assert!(log.contains(seen), "{seen} is missing in\n{log}");
    }
    for secret in ["sesame", "confidential"] {
        assert!(!log.contains(secret), "{secret} is in\n{log}");
    }
}
