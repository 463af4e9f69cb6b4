//! A hub of one model on a local port: as much of the protocol as the client uses.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// The commit of the fake model.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does and has seen.
#[derive(Default)]
pub(crate) struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// How many more answers with more than a byte of `model.safetensors` are cut in the middle.
    pub(crate) n_cuts: AtomicUsize,
    /// Whether files are refused with 403.
    pub(crate) gated: AtomicBool,
    /// Path, range and token of every request.
    pub(crate) seen: Mutex<Vec<Seen>>,
}

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    /// First byte asked for.
    pub(crate) from: Option<usize>,
    /// Last byte asked for.
    pub(crate) to: Option<usize>,
    pub(crate) token: Option<String>,
}

/// A running hub.
pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    pub(crate) state: Arc<State>,
}

impl FakeHub {
    /// Serves `files` as the model `owner/tiny`.
    pub(crate) fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(State {
            files,
            ..State::default()
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &state));
            }
        });
        Self { endpoint, state }
    }

    /// Requests so far for more than the first byte of a file.
    pub(crate) fn downloads(&self, file: &str) -> Vec<Seen> {
        let seen = self.state.seen.lock().expect("a lock");
        let is_download = |seen: &&Seen| seen.path.ends_with(file) && seen.to != Some(0);
        seen.iter().filter(is_download).cloned().collect()
    }
}

/// Answers one request and closes. A client that leaves is no error.
fn answer(mut stream: TcpStream, state: &State) {
    let Some(seen) = read_request(&stream) else {
        return;
    };
    state.seen.lock().expect("a lock").push(seen.clone());
    let _ = match seen.path.strip_prefix("/api/models/owner/tiny/revision/") {
        Some("main" | COMMIT) => send(&mut stream, "200 OK", &description(state)),
        Some(_) => send(&mut stream, "404 Not Found", b"{}"),
        None if seen.path.starts_with("/api/models/private") => {
            send(&mut stream, "401 Unauthorized", b"{}")
        }
        None => send_file(&mut stream, state, &seen),
    };
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut seen = Seen {
        path,
        ..Seen::default()
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (from, to) = value.trim_start_matches("bytes=").split_once('-')?;
                (seen.from, seen.to) = (from.parse().ok(), to.parse().ok());
            }
            "authorization" => seen.token = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(seen)
}

fn description(state: &State) -> Vec<u8> {
    let siblings: Vec<_> = state
        .files
        .keys()
        .map(|name| serde_json::json!({ "rfilename": name }))
        .collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings })
        .to_string()
        .into_bytes()
}

fn send(stream: &mut TcpStream, status: &str, body: &[u8]) -> io::Result<()> {
    send_head(stream, status, "", body.len())?;
    stream.write_all(body)
}

fn send_head(stream: &mut TcpStream, status: &str, headers: &str, n: usize) -> io::Result<()> {
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {n}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes())
}

fn send_file(stream: &mut TcpStream, state: &State, seen: &Seen) -> io::Result<()> {
    let name = seen
        .path
        .strip_prefix(&format!("/owner/tiny/resolve/{COMMIT}/"));
    let Some((name, bytes)) = name.and_then(|name| state.files.get_key_value(name)) else {
        return send(stream, "404 Not Found", b"");
    };
    if state.gated.load(Ordering::SeqCst) {
        return send(stream, "403 Forbidden", b"");
    }
    let from = seen.from.unwrap_or(0);
    let to = seen.to.map_or(bytes.len(), |to| bytes.len().min(to + 1));
    if from >= bytes.len() {
        return send(stream, "416 Range Not Satisfiable", b"");
    }
    let part = &bytes[from..to];
    let headers = format!(
        "ETag: \"etag-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        to - 1,
        bytes.len()
    )
    .replace("1_Pooling/", "1_Pooling-");
    let take_one = |n: usize| n.checked_sub(1);
    let is_large = name == "model.safetensors" && part.len() > 1;
    let cuts = is_large
        && state
            .n_cuts
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one)
            .is_ok();
    let n = part.len();
    send_head(stream, "206 Partial Content", &headers, n)?;
    stream.write_all(if cuts { &part[..n / 2] } else { part })
}
