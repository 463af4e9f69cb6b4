//! How rank 0 and the others find each other: rank 0 listens, its address travels through the
//! launcher's library together with a token, and the others connect.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Message, Token};

/// The longest that rank 0 waits for the others to connect. They all have just met by other means.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest that an address is tried, or a stranger listened to.
const TRY: Duration = Duration::from_secs(3);

/// Where rank 0 waits for the others.
#[derive(Debug)]
pub(super) struct Meeting {
    listener: TcpListener,
    token: Token,
}

impl Meeting {
    /// Listens on any free port of every address.
    pub(super) fn open() -> io::Result<Self> {
        // The first takes both kinds of addresses, where there is the newer one.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        Ok(Self {
            listener,
            token: token(),
        })
    }

    /// What the others must know: the token, and where this process may be reached. `hosts` come first.
    pub(super) fn invitation(&self, hosts: &[String]) -> io::Result<Vec<u8>> {
        let port = self.listener.local_addr()?.port();
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

    /// Waits for ranks `1 .. world_size`; their connections in this order.
    pub(super) fn wait(self, world_size: usize) -> io::Result<Vec<TcpStream>> {
        let mut streams: Vec<Option<TcpStream>> = (1..world_size).map(|_| None).collect();
        let deadline = Instant::now() + PATIENCE;
        self.listener.set_nonblocking(true)?;
        while let Some(missing) = streams.iter().position(Option::is_none) {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    // A stranger, or one that is gone again, is nobody that is waited for.
                    let welcomed = self.welcome(stream).ok();
                    let known = welcomed.and_then(|(rank, stream)| {
                        let place = streams.get_mut(rank.checked_sub(1)?)?;
                        place.is_none().then(|| *place = Some(stream))
                    });
                    if known.is_none() {
                        pause();
                    }
                }
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Err(_) if Instant::now() > deadline => {
                    let seconds = PATIENCE.as_secs();
                    let reason =
                        format!("rank {} has not connected within {seconds} s", missing + 1);
                    return Err(io::Error::new(ErrorKind::TimedOut, reason));
                }
                Err(_) => pause(),
            }
        }
        Ok(streams.into_iter().flatten().collect())
    }

    /// Lets in whoever has the token.
    fn welcome(&self, mut stream: TcpStream) -> io::Result<(usize, TcpStream)> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(TRY))?;
        match Message::read(&mut stream)? {
            Message::Hello { token, rank } if token == self.token => {
                Message::Ping.write(&mut stream)?;
                Ok((rank, stream))
            }
            _ => Err(ErrorKind::PermissionDenied.into()),
        }
    }
}

fn pause() {
    thread::sleep(Duration::from_millis(2));
}

/// Connects this rank to rank 0, which has sent the invitation.
pub(super) fn accept(invitation: &[u8], rank: usize) -> io::Result<TcpStream> {
    let no_sense = || io::Error::new(ErrorKind::InvalidData, "rank 0's address makes no sense");
    let (token, places) = invitation.split_first_chunk().ok_or_else(no_sense)?;
    let places = std::str::from_utf8(places).map_err(|_| no_sense())?;
    let hello = Message::Hello {
        token: *token,
        rank,
    };
    let mut failures = Vec::new();
    for place in places.lines().filter(|place| !place.is_empty()) {
        // A name may have several addresses, and may be known on rank 0's machine alone.
        let addresses = place.to_socket_addrs().into_iter().flatten();
        for address in addresses {
            match say_hello(address, &hello) {
                Ok(stream) => return Ok(stream),
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
    }
    let tried = failures.join("; ");
    let reason = format!("cannot connect to rank 0 ({tried})");
    Err(io::Error::other(reason))
}

fn say_hello(address: SocketAddr, hello: &Message) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, TRY)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    hello.write(&mut stream)?;
    match Message::read(&mut stream)? {
        Message::Ping => Ok(stream),
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
    use super::*;

    #[test]
    fn strangers_are_not_waited_for() {
        let meeting = Meeting::open().expect("a port");
        let invitation = meeting.invitation(&[]).expect("an address");
        let mut forged = invitation.clone();
        forged[0] ^= 1;
        let port = meeting.listener.local_addr().expect("an address").port();
        let ranks = thread::spawn(move || {
            // One that says nothing of sense, one with a wrong token, one whose rank is too high.
            let noise = TcpStream::connect(("127.0.0.1", port)).expect("the port");
            io::Write::write_all(&mut &noise, &[9; 100]).expect("bytes");
            drop(noise);
            assert!(accept(&forged, 1).is_err());
            let _ = accept(&invitation, 5);
            [2, 1].map(|rank| accept(&invitation, rank).expect("a connection"))
        });
        let streams = meeting.wait(3).expect("both ranks");
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
