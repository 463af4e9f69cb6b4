use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::target::Target;

/// Bytes of a failed answer's body that are kept for the report.
const MAX_ERROR_BYTES: usize = 300;

type Connection = SendRequest<Full<Bytes>>;

/// HTTP/1.1 client with a pool of keep-alive connections to one server.
///
/// It opens as many connections as there are requests in flight and pipelines nothing. It never
/// repeats a request that may have reached the server, so each is counted once.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
    /// The last one used is taken first, so that spare ones grow old and are closed.
    idle: Mutex<Vec<Connection>>,
}

/// A successful answer and when its parts arrived.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The head of the response.
    pub(crate) head: Instant,
    /// The first complete result: see the crate's documentation.
    pub(crate) first_result: Instant,
    /// The last byte.
    pub(crate) end: Instant,
    pub(crate) server: ServerHeaders,
}

/// What the server says of its own work, in headers of the answer.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct ServerHeaders {
    pub(crate) tokens: Option<u64>,
    pub(crate) total_ms: Option<f64>,
    pub(crate) tokenization_ms: Option<f64>,
    pub(crate) queue_ms: Option<f64>,
    pub(crate) inference_ms: Option<f64>,
}

/// Why a request has no successful answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The server answered with a status that is no success.
    Status { code: u16, message: String },
    /// The connection was refused or broke.
    Connection(String),
    /// No complete answer in time.
    Timeout(Duration),
}

impl Client {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target,
            idle: Mutex::default(),
        }
    }

    /// Posts `body` and reads the answer to its end.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which tells the server.
    pub(crate) async fn post(&self, body: Bytes) -> Result<Answer, Failure> {
        let (connection, response) = self.send(self.request(body)).await?;
        let head = Instant::now();
        let answer = read(response, head).await;
        if !matches!(answer, Err(Failure::Connection(_))) {
            self.idle().push(connection);
        }
        answer
    }

    fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        Request::builder()
            .method(Method::POST)
            .uri(&self.target.route)
            .header(HOST, &self.target.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(
                USER_AGENT,
                concat!("moeshard-loadtest/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(body))
            .expect("route and authority come from a parsed URL")
    }

    /// Sends on an idle connection, or on a new one if there is none or the server closed them.
    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Connection, Response<Incoming>), Failure> {
        while let Some(mut connection) = self.take_idle() {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((connection, response)),
                // The request comes back only if no byte of it was written.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(error.error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        match connection.send_request(request).await {
            Ok(response) => Ok((connection, response)),
            Err(error) => Err(broken(&error)),
        }
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(&self.target.addresses[..])
            .await
            .map_err(|error| Failure::Connection(format!("cannot connect: {error}")))?;
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        let (connection, io) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        // Ends when `connection` is dropped or the server closes; the request gets its error.
        tokio::spawn(async move { drop(io.await) });
        Ok(connection)
    }

    fn take_idle(&self) -> Option<Connection> {
        self.idle().pop()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error with the causes that it wraps, which name what the system said.
fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let text: Vec<String> = causes.map(ToString::to_string).collect();
    Failure::Connection(text.join(": "))
}

async fn read(response: Response<Incoming>, head: Instant) -> Result<Answer, Failure> {
    let status = response.status();
    if !status.is_success() {
        return Err(read_failure(status, response.into_body()).await);
    }
    let server = ServerHeaders::parse(response.headers());
    let is_stream = is_ndjson(response.headers());
    let mut body = response.into_body();
    let mut first_line = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let has_line = frame.data_ref().is_some_and(|data| data.contains(&b'\n'));
        if is_stream && has_line {
            first_line.get_or_insert_with(Instant::now);
        }
    }
    let end = Instant::now();
    Ok(Answer {
        head,
        first_result: first_line.unwrap_or(end),
        end,
        server,
    })
}

/// Reads the whole body, so that the connection can be used again, and keeps its beginning.
async fn read_failure(status: StatusCode, mut body: Incoming) -> Failure {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.as_ref().map(|frame| frame.data_ref()) {
            Ok(Some(data)) => {
                let room = MAX_ERROR_BYTES - kept.len();
                kept.extend_from_slice(&data[..data.len().min(room)]);
            }
            Ok(None) => {}
            Err(error) => return broken(error),
        }
    }
    let message = String::from_utf8_lossy(&kept).trim().to_owned();
    Failure::Status {
        code: status.as_u16(),
        message,
    }
}

fn is_ndjson(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case("application/x-ndjson")
}

impl ServerHeaders {
    fn parse(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let millis = |name: &str| -> Option<f64> {
            text(name)?
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite())
        };
        Self {
            tokens: text("x-compute-tokens").and_then(|value| value.parse().ok()),
            total_ms: millis("x-total-time"),
            tokenization_ms: millis("x-tokenization-time"),
            queue_ms: millis("x-queue-time"),
            inference_ms: millis("x-inference-time"),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status { code, message } if message.is_empty() => write!(f, "status {code}"),
            Self::Status { code, message } => write!(f, "status {code}: {message}"),
            Self::Connection(error) => f.write_str(error),
            Self::Timeout(after) => write!(f, "no answer within {} s", after.as_secs_f64()),
        }
    }
}
