//! Reads a JSON body and says exactly what is wrong with one.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::drain::Unread;
use crate::error::RequestError;
use crate::state::AppState;
use crate::wire::with_most_inputs;

/// How long a client may send nothing in the middle of its body.
const IDLE_TIME: Duration = Duration::from_secs(30);

/// A longer body is parsed on a thread of its own: it would hold up every other connection.
const PARSED_AT_ONCE: usize = 64 << 10;

/// A body within the limit. Clones share it.
#[derive(Clone)]
pub(crate) struct Raw {
    bytes: Bytes,
    /// Its share of the bytes that all bodies may take.
    _share: Arc<OwnedSemaphorePermit>,
}

/// A body of type `T`, whatever its content type says; unknown fields are ignored.
pub(crate) struct Payload<T>(pub(crate) T);

impl FromRequest<AppState> for Raw {
    type Rejection = RequestError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, RequestError> {
        let (parts, body) = request.into_parts();
        let unread = parts.extensions.get::<Unread>();
        let mut body = unread.map_or(body, Unread::take);
        check_announced(&parts.headers, state.config().payload_limit).inspect_err(|_| {
            let silent = parts.headers.contains_key(header::EXPECT);
            give_back(unread, &mut body, silent);
        })?;
        let result = read(&mut body, state).await;
        if let Err(error) = &result {
            let silent = matches!(error, RequestError::Slow { .. });
            give_back(unread, &mut body, silent);
        }
        result
    }
}

impl Raw {
    /// Parses the body, a long one away from the server's threads.
    pub(crate) async fn parse<T>(&self, state: &AppState) -> Result<T, RequestError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let most = state.config().max_client_batch_size;
        if self.bytes.len() <= PARSED_AT_ONCE {
            return with_most_inputs(most, || parse(&self.bytes));
        }
        let turn = state.parsers().clone().acquire_owned().await;
        let raw = self.clone();
        let parsed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            with_most_inputs(most, || parse(&raw.bytes))
        });
        parsed.await.unwrap_or(Err(RequestError::Internal))
    }
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for Payload<T> {
    type Rejection = RequestError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, RequestError> {
        let raw = Raw::from_request(request, state).await?;
        Ok(Self(raw.parse(state).await?))
    }
}

/// Parses a JSON object.
///
/// # Errors
/// [`RequestError::NotUtf8`], [`RequestError::Syntax`], or [`RequestError::Field`] naming the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RequestError> {
    let text = std::str::from_utf8(bytes).map_err(|error| RequestError::NotUtf8 {
        byte: error.valid_up_to(),
    })?;
    if !text.trim_ascii_start().starts_with('{') {
        return Err(not_an_object(text));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    json.end().map_err(|error| explain("", &error))?;
    Ok(value)
}

/// A struct would also be read from a JSON list, field by field: refuse that.
fn not_an_object(text: &str) -> RequestError {
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => RequestError::field("", "the body must be a JSON object"),
        Err(error) => RequestError::Syntax(error.to_string()),
    }
}

fn explain(path: &str, error: &serde_json::Error) -> RequestError {
    if !error.is_data() {
        return RequestError::Syntax(error.to_string());
    }
    // The path of the body itself is `.`, and `?` stands for a part without a name.
    let field = path.trim_end_matches('?').trim_end_matches('.');
    RequestError::field(field, in_words_of_json(error.to_string()))
}

/// A message of serde's, which calls an object a map and a list a sequence.
fn in_words_of_json(message: String) -> String {
    // Only the beginning is serde's for certain: further on, it may quote the client.
    for (serde, json) in [
        ("map,", "object,"),
        ("sequence,", "list,"),
        ("floating point", "number"),
    ] {
        if let Some(rest) = message.strip_prefix(&format!("invalid type: {serde}")) {
            return format!("invalid type: {json}{rest}");
        }
    }
    message
}

fn give_back(unread: Option<&Unread>, body: &mut Body, silent: bool) {
    if let Some(unread) = unread {
        unread.give_back(std::mem::take(body), silent);
    }
}

/// Refuses a body by the length that its head announces.
fn check_announced(headers: &HeaderMap, limit: usize) -> Result<(), RequestError> {
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|announced| announced > limit) {
        return Err(RequestError::TooLarge { limit });
    }
    Ok(())
}

/// Reads a body within the limits of one and of all bodies.
async fn read(body: &mut Body, state: &AppState) -> Result<Raw, RequestError> {
    let limit = state.config().payload_limit;
    let mut share = state.share_of_bytes(0)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(body, IDLE_TIME).await? {
        if bytes.len() + chunk.len() > limit {
            return Err(RequestError::TooLarge { limit });
        }
        share.merge(state.share_of_bytes(chunk.len())?);
        bytes.extend_from_slice(&chunk);
    }
    Ok(Raw {
        bytes: bytes.into(),
        _share: Arc::new(share),
    })
}

/// The next bytes; `None` at the end.
///
/// # Errors
/// [`RequestError::Unreadable`], or [`RequestError::Slow`] if nothing comes for `idle_time`.
pub(crate) async fn next_chunk(
    body: &mut Body,
    idle_time: Duration,
) -> Result<Option<Bytes>, RequestError> {
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
        let frame = tokio::time::timeout(idle_time, frame).await;
        match frame.map_err(|_| RequestError::Slow { idle_time })? {
            None => return Ok(None),
            Some(Err(error)) => return Err(RequestError::Unreadable(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HttpConfig;
    use crate::wire::EmbedRequest;
    use moeshard_batcher::ModelSlot;

    #[tokio::test]
    async fn all_bodies_share_a_limit() {
        let state = AppState::new(ModelSlot::new(), HttpConfig::default());
        let read = async || read(&mut Body::from("0123456789"), &state).await;
        let others = state.share_of_bytes(512_000_000 - 15).expect("free");
        let first = read().await.expect("it fits");
        let error = read().await.err().expect("it does not fit");
        assert!(matches!(error, RequestError::TooManyBytes), "{error}");
        drop(first);
        read().await.expect("it fits again");
        drop(others);
    }

    /// The thread that parsed it.
    struct Parsed(std::thread::ThreadId);

    impl<'de> serde::Deserialize<'de> for Parsed {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            serde::de::IgnoredAny::deserialize(deserializer)?;
            Ok(Self(std::thread::current().id()))
        }
    }

    #[tokio::test]
    async fn long_bodies_are_parsed_aside_and_take_turns() {
        let state = AppState::new(ModelSlot::new(), HttpConfig::default());
        let body = |n: usize| Body::from(format!("{{{}}}", " ".repeat(n)));
        let long = read(&mut body(PARSED_AT_ONCE), &state).await.expect("read");
        let short = read(&mut body(10), &state).await.expect("read");
        let here = std::thread::current().id();
        assert_ne!(long.parse::<Parsed>(&state).await.expect("JSON").0, here);
        let n_turns = state.parsers().available_permits() as u32;
        let turns = state.parsers().acquire_many(n_turns).await.expect("open");
        let wait = Duration::from_millis(20);
        let waits = tokio::time::timeout(wait, long.parse::<Parsed>(&state)).await;
        assert!(waits.is_err(), "no turn is free");
        assert_eq!(short.parse::<Parsed>(&state).await.expect("JSON").0, here);
        drop(turns);
        long.parse::<Parsed>(&state).await.expect("its turn");
    }

    #[tokio::test]
    async fn a_client_that_stops_sending_is_told() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let handler = async |mut body: Body| loop {
            match next_chunk(&mut body, Duration::from_millis(20)).await {
                Ok(Some(_)) => {}
                end => break end.expect_err("it stalls"),
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let router = axum::Router::new().route("/", axum::routing::post(handler));
        let server = tokio::spawn(async { axum::serve(listener, router).await });
        let mut client = tokio::net::TcpStream::connect(address).await.expect("up");
        let half = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
        client.write_all(half).await.expect("sent");
        let mut status = [0; 12];
        client.read_exact(&mut status).await.expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 408");
        server.abort();
    }

    #[test]
    fn a_wrong_body_is_explained() {
        let check = |body: &[u8], expect: &str| {
            let error = parse::<EmbedRequest>(body).expect_err(expect);
            // The place is serde's; what matters is what is wrong, and where in the structure.
            let message = error.to_string();
            assert_eq!(message.split(" at line").next(), Some(expect));
        };
        check(
            b"{\"inputs\":\"\xff\"}",
            "the body is not valid UTF-8 (at byte 11)",
        );
        check(b"", "the body is not valid JSON: EOF while parsing a value");
        check(
            b"{\"inputs\":",
            "the body is not valid JSON: EOF while parsing a value",
        );
        check(
            b"{\"inputs\":\"a\"} x",
            "the body is not valid JSON: trailing characters",
        );
        check(b"[\"a\"]", "the body must be a JSON object");
        check(b"{}", "missing field `inputs`");
        check(
            br#"{"inputs":"a","truncate":"yes"}"#,
            "`truncate`: invalid type: string \"yes\", expected a boolean",
        );
        check(
            br#"{"inputs":{"a":1}}"#,
            "`inputs`: invalid type: object, expected a text, a list of token ids, or a list of \
             those",
        );
        check(
            br#"{"inputs":["a",{"b":2}]}"#,
            "`inputs[1]`: invalid type: object, expected a text or a list of token ids",
        );
        check(
            br#"{"inputs":[1,-2]}"#,
            "`inputs[1]`: invalid value: integer `-2`, expected a token id (an integer from 0 to \
             4294967295)",
        );
        check(
            br#"{"inputs":"a","dimensions":-1}"#,
            "`dimensions`: invalid value: integer `-1`, expected a positive integer",
        );
        check(
            br#"{"inputs":"a","truncation_direction":"up"}"#,
            "`truncation_direction`: expected `left` or `right`, got `up`",
        );
    }
}
