//! The server as a process: the port, readiness, signals, and models that cannot be loaded.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{fails, model, program, said, text};

/// A server that is stopped when it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts a server on a free port and waits until the port is bound.
    fn start(args: &[&str]) -> Self {
        let args = [&["serve", "--port", "0", "--hostname", "127.0.0.1"], args].concat();
        let mut child = program(&args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut log = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on http://")?;
                rest.split(',').next().map(str::to_owned)
            })
            .expect("a server that listens");
        // Nobody must wait for a log that nobody reads.
        thread::spawn(move || log.for_each(drop));
        Self { child, address }
    }

    fn wait_until_ready(&self) {
        let started = Instant::now();
        while self.get("/ready") != 200 {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "not ready after a minute"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn get(&self, path: &str) -> u16 {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n"
        ))
        .0
    }

    fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nConnection: close\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    fn send(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned());
        (status.expect("a status"), body.expect("a body"))
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.expect("kill").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_built_in_model_embeds_and_classifies() {
    let server = Server::start(&["--ranks", "2"]);
    assert_eq!(server.get("/live"), 200);
    server.wait_until_ready();
    let (status, body) = server.post("/embed", r#"{"inputs":"hello"}"#);
    assert_eq!((status, body.starts_with("[[")), (200, true), "{body}");
    let (status, body) = server.post("/classify", r#"{"inputs":"I lost my card","top_k":1}"#);
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("lost_or_stolen_card"), "{body}");
}

#[test]
fn a_signal_lets_accepted_work_finish() {
    let folder = model("nomic_moe");
    for name in ["TERM", "INT"] {
        let mut server = Server::start(&["--model", text(folder.path())]);
        server.wait_until_ready();
        let inputs = vec!["some words of a longer text".repeat(3); 3000];
        let body = serde_json::json!({ "inputs": inputs }).to_string();
        let (status, answer) = thread::scope(|scope| {
            let client = scope.spawn(|| server.post("/embed", &body));
            thread::sleep(Duration::from_millis(60));
            server.signal(name);
            client.join().expect("a client")
        });
        assert_eq!(status, 200, "{answer:.200}");
        let rows: Vec<Vec<f32>> = serde_json::from_str(&answer).expect("rows");
        assert_eq!(rows.len(), 3000);
        assert!(server.child.wait().expect("an end").success());
        assert!(
            TcpStream::connect(&server.address).is_err(),
            "the port is closed"
        );
    }
}

#[test]
fn variables_that_say_nothing_are_ignored() {
    let check = |variables: &[(&str, &str)], expect: &str| {
        let mut program = program(&["serve", "--hostname", "my.host"]);
        program.envs(variables.iter().copied());
        let said = said(&program.output().expect("the program runs"));
        assert!(said.contains(expect), "{said}");
        // Which is the first thing that is wrong.
        assert!(said.contains("--hostname must be an IP address"), "{said}");
    };
    check(
        &[("MOESHARD_PORT", "tcp://10.96.0.1:3000")],
        "MOESHARD_PORT=tcp://10.96.0.1:3000 is the link of a service, no port: ignored",
    );
    check(
        &[
            ("MOESHARD_PORT", ""),
            ("MODEL_ID", ""),
            ("MOESHARD_THREADS", ""),
        ],
        "",
    );
    // A key that got lost is no wish for a server without one.
    for name in ["API_KEY", "MOESHARD_API_KEY"] {
        let mut program = program(&["serve"]);
        let said = said(&program.env(name, "").output().expect("the program runs"));
        assert!(said.contains("--api-key must not be empty"), "{said}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let args = ["serve", "--hostname", "127.0.0.1", "--port", &port];
    fails(
        &args,
        &format!("port {port} of 127.0.0.1 is in use by another program"),
    );
    fails(
        &["serve", "--hostname", "203.0.113.7"],
        "203.0.113.7 is no address of this machine",
    );
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_program() {
    let check = |break_it: &dyn Fn(&Path), expect: &str| {
        let folder = model("nomic_moe");
        break_it(folder.path());
        let path = text(folder.path());
        fails(
            &[
                "serve",
                "--hostname",
                "127.0.0.1",
                "--port",
                "0",
                "--model",
                path,
            ],
            expect,
        );
    };
    let remove =
        |name: &'static str| move |dir: &Path| fs::remove_file(dir.join(name)).expect(name);
    check(
        &remove("config.json"),
        "config.json: expected a file of this name, found none",
    );
    check(
        &remove("tokenizer.json"),
        "expected a file tokenizer.json, found none",
    );
    check(&remove("model.safetensors"), "model.safetensors");
    let write = |name: &'static str, contents: &'static str| {
        move |dir: &Path| fs::write(dir.join(name), contents).expect(name)
    };
    check(&write("tokenizer.json", "{}"), "tokenizer.json");
    check(
        &write("config.json", r#"{"model_type":"gpt9"}"#),
        "expected one of",
    );
    check(&write("model.safetensors", "garbage"), "model.safetensors");
    let truncate = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).expect("weights");
        fs::write(&path, &bytes[..bytes.len() - 100]).expect("weights");
    };
    check(&truncate, "model.safetensors");
    let prompt = model("nomic_moe");
    let path = text(prompt.path());
    fails(
        &[
            "serve",
            "--port",
            "0",
            "--model",
            path,
            "--default-prompt-name",
            "query",
        ],
        "--default-prompt-name `query` is no prompt of",
    );
}

#[test]
fn the_key_is_asked_for_and_never_logged() {
    let folder = model("nomic_moe");
    let path = text(folder.path());
    let server = Server::start(&["--model", path, "--api-key", "s3cret", "--json-output"]);
    server.wait_until_ready();
    assert_eq!(server.post("/embed", r#"{"inputs":"hello"}"#).0, 401);
}
