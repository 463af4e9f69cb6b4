//! One connection between rank 0 and another rank.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::wire::Message;

/// A process that ends closes its connections; a machine that loses its power or its network does not.
/// Whoever is silent for so long is taken for lost, though it may only be very slow.
const SILENCE: Duration = Duration::from_secs(10);

/// How often an end says that it is there.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Why a process says nothing more that has closed its connections.
pub(super) const GONE: &str = "its process is gone";

/// The sending end. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    stream: Arc<Mutex<TcpStream>>,
}

impl Link {
    /// Takes over a connection. A thread hands each message that comes to `hear`, until that says that it
    /// has heard enough; the last it hears is why there are no more.
    pub(super) fn open(
        stream: TcpStream,
        name: &str,
        mut hear: impl FnMut(Result<Message, String>) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        // A peer that takes nothing is as lost as one that says nothing.
        stream.set_write_timeout(Some(SILENCE))?;
        let mut from = stream.try_clone()?;
        let link = Self {
            stream: Arc::new(Mutex::new(stream)),
        };
        let stream = Arc::downgrade(&link.stream);
        spawn(format!("ping-{name}"), move || ping(&stream))?;
        spawn(format!("link-{name}"), move || {
            loop {
                let message = Message::read(&mut from).map_err(|error| why(&error));
                let is_last = message.is_err();
                if !hear(message) || is_last {
                    return;
                }
            }
        })?;
        Ok(link)
    }

    /// Sends a message. That a connection is broken is also heard at its other end.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        message.write(&mut *stream)
    }

    /// Lets both ends hear no more.
    #[cfg(test)]
    pub(super) fn cut(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Until nobody has the link any more.
fn ping(stream: &Weak<Mutex<TcpStream>>) {
    while let Some(stream) = stream.upgrade() {
        if (Link { stream }).send(&Message::Ping).is_err() {
            return;
        }
        thread::sleep(PING_EVERY);
    }
}

/// Why nothing more comes.
fn why(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            GONE.to_owned()
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("it has said nothing for {} s", SILENCE.as_secs())
        }
        _ => error.to_string(),
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(run).map(drop)
}
