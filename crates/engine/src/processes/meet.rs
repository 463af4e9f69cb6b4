//! How ranks that know of each other connect: one listens, its address travels by other means together with
//! a token, and the others connect.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

use moeshard_tensor::collective::CollectiveError;

use super::door::{Door, FirstWords, TRY, notice_silence};
use super::wire::{Message, Token};

/// The longest that a rank waits for the others to connect. They all have just met by other means.
const PATIENCE: Duration = Duration::from_secs(60);

/// A first word is no longer; who says more is a stranger.
const MOST_HELLO: u64 = 64;

/// Where a rank waits for others.
pub(super) struct Meeting {
    door: Door<(usize, TcpStream)>,
    token: Token,
}

impl Meeting {
    /// Listens on any free port of every address.
    pub(super) fn open() -> io::Result<Self> {
        let token = token();
        Ok(Self {
            door: Door::open(0, move |stream| welcome(token, stream))?,
            token,
        })
    }

    /// What whoever comes must know.
    pub(super) fn token(&self) -> Token {
        self.token
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        self.door.port()
    }

    /// Who has come meanwhile, if anybody; waits for a moment at most.
    pub(super) fn look(&self) -> Option<(usize, TcpStream)> {
        self.door.look()
    }

    /// What the others must know: the token, and where this process may be reached. `hosts` come first.
    pub(super) fn invitation(&self, hosts: &[String]) -> io::Result<Vec<u8>> {
        let port = self.door.port()?;
        let mut hosts = hosts.to_vec();
        hosts.extend(address_of_route());
        hosts.extend(hostname());
        hosts.push("127.0.0.1".to_owned());
        let lines = hosts.iter().map(|host| match host.contains(':') {
            true => format!("\n[{host}]:{port}"),
            false => format!("\n{host}:{port}"),
        });
        let mut invitation = self.token.to_vec();
        invitation.extend(lines.collect::<String>().bytes());
        Ok(invitation)
    }

    /// Waits for ranks; their connections in this order. Gives up when `check` fails.
    pub(super) fn wait<E: From<io::Error>>(
        self,
        ranks: Range<usize>,
        check: impl Fn() -> Result<(), E>,
    ) -> Result<Vec<TcpStream>, E> {
        let mut streams: Vec<Option<TcpStream>> = ranks.clone().map(|_| None).collect();
        let deadline = Instant::now() + PATIENCE;
        while let Some(missing) = streams.iter().position(Option::is_none) {
            if let Some((rank, stream)) = self.door.look() {
                let place = rank.checked_sub(ranks.start);
                let place = place.and_then(|place| streams.get_mut(place));
                if let Some(place @ None) = place {
                    *place = Some(stream);
                }
                continue;
            }
            check()?;
            if Instant::now() > deadline {
                let (rank, seconds) = (ranks.start + missing, PATIENCE.as_secs());
                let reason = format!("rank {rank} has not connected within {seconds} s");
                return Err(io::Error::new(ErrorKind::TimedOut, reason).into());
            }
        }
        Ok(streams.into_iter().flatten().collect())
    }
}

/// Lets in whoever has the token.
fn welcome(token: Token, mut stream: TcpStream) -> io::Result<(usize, TcpStream)> {
    match Message::read(&mut FirstWords::of(&stream).take(MOST_HELLO))? {
        Message::Hello { token: found, rank } if found == token => {
            Message::Ping.write(&mut stream)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            Ok((rank, stream))
        }
        _ => Err(ErrorKind::PermissionDenied.into()),
    }
}

/// Connects rank 0 with each other rank, where something else can hand a word of rank 0's on to all. At rank 0
/// the connections are those to ranks 1, 2, …; at another the one to rank 0. `hosts` are names or addresses under
/// which rank 0 may be reached, before those that it finds itself.
///
/// # Communication
/// Every rank must call it; `broadcast` replaces the bytes by those of rank 0.
///
/// # Errors
/// If the broadcast fails, or somebody cannot be reached.
pub fn links(
    (rank, world_size): (usize, usize),
    hosts: &[String],
    broadcast: impl FnOnce(&mut Vec<u8>) -> Result<(), CollectiveError>,
) -> Result<Vec<TcpStream>, CollectiveError> {
    let broken = |error: io::Error| CollectiveError::Transport {
        op: match rank {
            0 => "meeting the other processes",
            _ => "meeting rank 0",
        },
        rank,
        world_size,
        reason: error.to_string(),
    };
    if rank > 0 {
        let mut invitation = Vec::new();
        broadcast(&mut invitation)?;
        return accept(&invitation, rank)
            .map(|stream| vec![stream])
            .map_err(broken);
    }
    let meeting = Meeting::open().map_err(broken)?;
    let mut invitation = meeting.invitation(hosts).map_err(broken)?;
    broadcast(&mut invitation)?;
    let waited: io::Result<_> = meeting.wait(1..world_size, || Ok(()));
    waited.map_err(broken)
}

/// Connects this rank to the one that has sent the invitation.
pub(super) fn accept(invitation: &[u8], rank: usize) -> io::Result<TcpStream> {
    let no_sense = || io::Error::new(ErrorKind::InvalidData, "the address makes no sense");
    let (token, places) = invitation.split_first_chunk().ok_or_else(no_sense)?;
    let places = std::str::from_utf8(places).map_err(|_| no_sense())?;
    let hello = Message::Hello {
        token: *token,
        rank,
    };
    let mut failures = Vec::new();
    for place in places.lines().filter(|place| !place.is_empty()) {
        // A name may have several addresses, and may be known on one machine alone.
        let addresses = place.to_socket_addrs().into_iter().flatten();
        for address in addresses {
            match say_hello(address, &hello) {
                Ok(stream) => return Ok(stream),
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
    }
    let tried = failures.join("; ");
    Err(io::Error::other(format!("cannot connect ({tried})")))
}

/// Connects to whoever expects this.
pub(super) fn say_hello(address: SocketAddr, hello: &Message) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, TRY)?;
    notice_silence(&stream)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    hello.write(&mut stream)?;
    match Message::read(&mut stream.by_ref().take(MOST_HELLO))? {
        Message::Ping => {
            stream.set_read_timeout(None)?;
            Ok(stream)
        }
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// Nobody outside the job can guess it: the standard library keys its hashes from the system's random
/// numbers.
fn token() -> Token {
    let mut token = [0; 16];
    for half in token.chunks_exact_mut(8) {
        half.copy_from_slice(&RandomState::new().hash_one(half.len()).to_le_bytes());
    }
    token
}

/// The address under which this machine talks to others. Connecting a datagram socket sends nothing, but
/// has the system choose a route; the address is one kept for documentation.
fn address_of_route() -> Option<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

fn hostname() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn strangers_are_not_waited_for() {
        let meeting = Meeting::open().expect("a port");
        let invitation = meeting.invitation(&[]).expect("an address");
        let mut forged = invitation.clone();
        forged[0] ^= 1;
        let port = meeting.door.port().expect("an address");
        let ranks = thread::spawn(move || {
            // Many that say nothing, one that says nothing of sense or without end, one with a wrong token, one
            // whose rank is too high.
            let silent = || TcpStream::connect(("127.0.0.1", port)).expect("the port");
            let _silent: Vec<_> = (0..40).map(|_| silent()).collect();
            let mut endless = vec![2];
            endless.resize(1 << 20, 0xff);
            // Nobody listens for long.
            let _ = io::Write::write_all(&mut silent(), &endless);
            let noise = TcpStream::connect(("127.0.0.1", port)).expect("the port");
            io::Write::write_all(&mut &noise, &[9; 100]).expect("bytes");
            drop(noise);
            assert!(accept(&forged, 1).is_err());
            let _ = accept(&invitation, 5);
            [2, 1].map(|rank| accept(&invitation, rank).expect("a connection"))
        });
        let started = Instant::now();
        let streams: io::Result<_> = meeting.wait(1..3, || Ok(()));
        let streams = streams.expect("both ranks");
        assert!(started.elapsed() < TRY, "they are waited for");
        let ranks = ranks.join().expect("a thread");
        let peer = |stream: &TcpStream| stream.peer_addr().expect("an address").port();
        let own = |stream: &TcpStream| stream.local_addr().expect("an address").port();
        assert_eq!(
            [peer(&streams[0]), peer(&streams[1])],
            [own(&ranks[1]), own(&ranks[0])]
        );
    }

    #[test]
    fn an_invitation_without_sense_is_an_error() {
        assert!(accept(&[], 1).is_err());
        assert!(accept(&[0xff; 40], 1).is_err());
        assert!(accept(&[0; 16], 1).is_err());
    }
}
