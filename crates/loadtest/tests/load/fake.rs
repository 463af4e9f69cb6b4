use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

/// An HTTP/1.1 server with a thread per connection.
///
/// It shares neither the HTTP library nor the timer of what it checks: blocking sockets and
/// `thread::sleep`, which keeps a fixed 50 ms within about 0.1 ms where the runtime's timer
/// rounds up to the next millisecond.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) n_connections: Arc<AtomicUsize>,
}

/// Whether the connection stays open after an answer.
pub(crate) enum After {
    KeepAlive,
    Close,
}

impl Fake {
    /// Answers request number `idx` with `answer(idx, body, wire)`.
    pub(crate) fn start<F>(answer: F) -> Self
    where
        F: Fn(usize, &[u8], &mut TcpStream) -> io::Result<After> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let n_connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&n_connections);
        let shared = Arc::new((answer, AtomicUsize::new(0)));
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Relaxed);
                let shared = Arc::clone(&shared);
                // An error is the client hanging up, which some tests want.
                thread::spawn(move || serve(stream?, &shared.0, &shared.1));
            }
        });
        Self {
            address,
            n_connections,
        }
    }

    /// An address that refuses connections: bound once, so that it was free, and given up.
    pub(crate) fn refusing() -> Self {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        Self {
            address,
            n_connections: Arc::default(),
        }
    }
}

fn serve<F>(stream: TcpStream, answer: &F, n_requests: &AtomicUsize) -> io::Result<()>
where
    F: Fn(usize, &[u8], &mut TcpStream) -> io::Result<After>,
{
    stream.set_nodelay(true)?;
    let mut wire = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(body) = read_request(&mut reader)? {
        let idx = n_requests.fetch_add(1, Relaxed);
        if let After::Close = answer(idx, &body, &mut wire)? {
            break;
        }
    }
    Ok(())
}

/// The body of the next request; `None` if the client closed the connection between two.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    assert_eq!(line, "POST /embed HTTP/1.1\r\n");
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let lower = line.trim().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(body))
}

/// A whole answer; `headers` are complete lines.
pub(crate) fn reply(
    wire: &mut TcpStream,
    status: &str,
    headers: &str,
    body: &str,
) -> io::Result<After> {
    let length = body.len();
    wire.write_all(
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}").as_bytes(),
    )?;
    Ok(After::KeepAlive)
}

/// What a server of embeddings answers.
pub(crate) fn reply_ok(wire: &mut TcpStream) -> io::Result<After> {
    reply(
        wire,
        "200 OK",
        "content-type: application/json\r\n",
        "[[0.6,0.8]]",
    )
}
