//! A client of a few lines that can also misbehave: send what is no UTF-8, or hang up.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than any test's answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends requests to one address, each over its own connection.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    addr: SocketAddr,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in lower case, with values.
    pub headers: Vec<(String, String)>,
    /// The body, decoded if it came in chunks.
    pub body: Vec<u8>,
}

impl Client {
    /// A client of the server at `addr`.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr }
    }

    /// Gets a path.
    ///
    /// # Errors
    /// If nothing listens there or the answer breaks off.
    pub fn try_get(&self, path: &str) -> io::Result<Answer> {
        self.send("GET", path, b"")
    }

    /// Gets a path of a server that runs.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        let answer = self.try_get(path);
        answer.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Posts JSON to a server that runs.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "reads well with json!")]
    pub fn post(&self, path: &str, body: Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    /// Posts any bytes, said to be JSON.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        let answer = self.send("POST", path, body);
        answer.unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// If the connection or the answer breaks.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.send_with(method, path, &[], body)
    }

    /// Sends one request with more headers and reads the whole answer.
    ///
    /// # Errors
    /// If the connection or the answer breaks.
    pub fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut stream = self.begin(method, path, headers, body)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Answer::parse(&bytes)
    }

    /// Sends one request and returns the connection; dropping it hangs up.
    ///
    /// # Errors
    /// If nothing listens there.
    pub fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n",
            self.addr,
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes())?;
        // A server may answer and close before it has read a body that it refuses.
        let _ = stream.write_all(body);
        Ok(stream)
    }
}

impl Answer {
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let split = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let split = split.ok_or_else(|| broken("no end of the head"))?;
        let head = String::from_utf8_lossy(&bytes[..split]);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.and_then(|status| status.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let mut answer = Self {
            status: status.ok_or_else(|| broken("no status"))?,
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
            body: bytes[split + 4..].to_vec(),
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunk(&answer.body).ok_or_else(|| broken("a broken chunk"))?;
        }
        let announced = answer.header("content-length").map(str::parse::<usize>);
        match announced {
            Some(length) if length != Ok(answer.body.len()) => Err(broken("a body cut short")),
            _ => Ok(answer),
        }
    }

    /// The value of a header, its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        let value = serde_json::from_slice(&self.body);
        value.unwrap_or_else(|error| panic!("{}: {error}: {}", self.status, self.text()))
    }

    /// The body of a 200 as JSON.
    ///
    /// # Panics
    /// If the status is another.
    #[must_use]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The body of a 200 as rows of numbers, as `/embed` answers.
    ///
    /// # Panics
    /// If it is something else.
    #[must_use]
    pub fn rows(&self) -> Vec<Vec<f32>> {
        let rows = serde_json::from_value(self.ok());
        rows.unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}
