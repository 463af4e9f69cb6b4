//! A port where processes of the job are expected, and anybody else may come.

use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

/// The longest that a word of a stranger is waited for.
pub(super) const TRY: Duration = Duration::from_secs(3);

/// Most connections that have not said yet who they are. One more is closed.
const MOST_UNKNOWN: usize = 64;

/// What makes of a connection a guest; an error for a stranger.
type Welcome<T> = dyn Fn(TcpStream) -> io::Result<T> + Send + Sync;

/// Where guests come in. Each connection is heard on a thread of its own, so that nobody waits for a stranger who says
/// nothing.
pub(super) struct Door<T> {
    listener: TcpListener,
    welcome: Arc<Welcome<T>>,
    tell: Sender<T>,
    come: Receiver<T>,
}

impl<T: Send + 'static> Door<T> {
    /// Listens on a port of every address; 0 is any that is free.
    pub(super) fn open(
        port: u16,
        welcome: impl Fn(TcpStream) -> io::Result<T> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        // The first takes both kinds of addresses, where there is the newer one.
        let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
            Err(error) if error.kind() != ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            }
            bound => bound,
        }?;
        listener.set_nonblocking(true)?;
        let (tell, come) = channel();
        Ok(Self {
            listener,
            welcome: Arc::new(welcome),
            tell,
            come,
        })
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Who has come meanwhile, if anybody; waits for a moment at most.
    pub(super) fn look(&self) -> Option<T> {
        match self.listener.accept() {
            Ok((stream, _)) => self.hear(stream),
            // Nobody, or one that is gone again, or there is no room for one now: whoever waits has a deadline.
            Err(_) => pause(),
        }
        self.come.try_recv().ok()
    }

    fn hear(&self, stream: TcpStream) {
        // This one, and one for each thread.
        if Arc::strong_count(&self.welcome) > MOST_UNKNOWN {
            return;
        }
        let (welcome, tell) = (Arc::clone(&self.welcome), self.tell.clone());
        let named = thread::Builder::new().name("welcome".to_owned());
        // Without a thread it is closed.
        let _ = named.spawn(move || {
            let ready = stream
                .set_nonblocking(false)
                .and_then(|()| notice_silence(&stream))
                .and_then(|()| stream.set_write_timeout(Some(TRY)));
            if let Ok(guest) = ready.and_then(|()| welcome(stream)) {
                // The door may be closed by now.
                let _ = tell.send(guest);
            }
        });
    }
}

/// Has the system look after a connection on which nothing is said for long: a machine that has vanished closes none.
pub(super) fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// What somebody says until [`TRY`] is over, however slowly.
pub(super) struct FirstWords<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> FirstWords<'a> {
    pub(super) fn of(stream: &'a TcpStream) -> Self {
        Self {
            stream,
            until: Instant::now() + TRY,
        }
    }
}

impl Read for FirstWords<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(to)
    }
}

/// Between two looks.
pub(super) fn pause() {
    thread::sleep(Duration::from_millis(2));
}
