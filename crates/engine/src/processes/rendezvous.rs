//! How the processes of a job meet where nothing but an address is known: rank 0 listens there, the others come
//! and say who they are. When all are there, each hears how to reach every other, and they connect.
//!
//! The connection on which a rank came to rank 0 becomes its link. Until the world is joined, which may take long where a
//! model is downloaded first, nothing is said on links, and a *watch* notices whose end is gone.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moeshard_tensor::collective::{Collective, CollectiveError, Tcp};

use super::door::{Door, FirstWords, TRY, notice_silence, pause};
use super::link::GONE;
use super::meet::{self, Meeting};
use super::wire::Message;
use super::{FollowError, HEARSAY, Joined};
use crate::engine::DEADLINE;

/// The longest that processes wait for each other to be started: a pod's image may have to be fetched.
const PATIENCE: Duration = Duration::from_secs(600);

/// How much later than rank 0 another rank gives up.
const AGREED: Duration = Duration::from_secs(60);

/// Joining takes as long as the slowest takes to open its model. Whoever is lost meanwhile is noticed, a machine that
/// vanishes by the system's probes.
const JOINING: Duration = Duration::from_secs(24 * 3600);

/// Between two looks at the links.
const LOOK: Duration = Duration::from_millis(10);

/// Before another try to reach rank 0, which may not have been started yet.
const AGAIN: Duration = Duration::from_millis(50);

/// The first bytes of whoever belongs to moeshard, with the version of what follows.
const MAGIC: [u8; 8] = *b"moeshrd1";

/// Bytes of an invitation, at most; a name has 253.
const MOST_INVITATION: usize = 4096;

/// Rank 0's first bytes: refused, for a reason; noted; all are there.
const REFUSED: u8 = 0xf0;
const NOTED: u8 = 0xf1;
const ALL_ARE_THERE: u8 = 0xf2;

/// Where the processes of a job meet, and which of them this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    /// This process, below `world_size`.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Name or address of rank 0's machine.
    pub host: String,
    /// Where rank 0 listens.
    pub port: u16,
    /// The same in all processes of a job; what other jobs do not have.
    pub job: u64,
}

/// Ranks that have not come yet, for whoever wants to know what is waited for.
#[derive(Clone, Debug, Default)]
pub struct Missing(Arc<Mutex<Vec<usize>>>);

impl Missing {
    /// Those that a process waits for at first: rank 0 for all, any other for rank 0.
    #[must_use]
    pub fn before(place: &Rendezvous) -> Self {
        let missing = Self::default();
        match place.rank {
            0 => missing.set(1..place.world_size),
            _ => missing.set(0..1),
        }
        missing
    }

    /// The ranks.
    #[must_use]
    pub fn ranks(&self) -> Vec<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, ranks: impl Iterator<Item = usize>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ranks.collect();
    }
}

/// Told once when a process is lost between meeting and joining.
type OnLost = Box<dyn FnOnce(FollowError) + Send>;

/// Processes that have met and are connected.
pub struct Met {
    rank: usize,
    links: Vec<TcpStream>,
    mesh: Vec<Option<TcpStream>>,
    watch: Watch,
}

impl std::fmt::Debug for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Met").finish_non_exhaustive()
    }
}

/// Meets the other processes; from then on `on_lost` hears if one is gone before the world is joined.
///
/// # Communication
/// Every process of the job must call it.
///
/// # Errors
/// If a process does not come, is lost or belongs to another job, or the port is taken.
pub fn meet(
    place: &Rendezvous,
    missing: &Missing,
    on_lost: impl FnOnce(FollowError) + Send + 'static,
) -> Result<Met, FollowError> {
    let meeting = Meeting::open()?;
    let (links, invitations) = match place.rank {
        0 => lead(place, missing, &meeting)?,
        _ => come(place, missing, &meeting)?,
    };
    let mesh = connect(place, &links, &invitations, meeting).map_err(|error| match place.rank {
        0 => {
            say_it_is_over(&links);
            error
        }
        // Rank 0 may know better.
        _ => last_word(&links).unwrap_or(error),
    })?;
    let watched = links.iter().map(TcpStream::try_clone);
    let watched = watched.collect::<io::Result<Vec<_>>>()?;
    let watch = Watch::start(place.rank, watched, Box::new(on_lost))?;
    Ok(Met {
        rank: place.rank,
        links,
        mesh,
        watch,
    })
}

/// Waits for the others; their links, and the invitations of all ranks.
fn lead(
    place: &Rendezvous,
    missing: &Missing,
    meeting: &Meeting,
) -> Result<(Vec<TcpStream>, Vec<Vec<u8>>), FollowError> {
    // Where the others come to is where they can reach this machine.
    let invitation = meeting.invitation(slice::from_ref(&place.host))?;
    let (job, world_size, port) = (place.job, place.world_size, place.port);
    let door = Door::open(port, move |stream| hear(job, world_size, stream)).map_err(|error| {
        FollowError::Failed(format!(
            "cannot listen for the other processes on port {port}: {error}; choose another with --leader HOST:PORT"
        ))
    })?;
    let mut guests: Vec<Option<Guest>> = (1..world_size).map(|_| None).collect();
    let deadline = Instant::now() + PATIENCE;
    let result = loop {
        let free = (1..).zip(&guests).filter(|(_, guest)| guest.is_none());
        missing.set(free.map(|(rank, _)| rank));
        if missing.ranks().is_empty() {
            break Ok(());
        }
        if let Some(guest) = door.look() {
            seat(guest, &mut guests);
        }
        let seated = (1..).zip(&guests);
        let streams = seated.filter_map(|(rank, guest)| Some((rank, &guest.as_ref()?.stream)));
        if let Some(lost) = first_lost(streams) {
            break Err(lost);
        }
        if Instant::now() > deadline {
            let (ranks, seconds) = (missing.ranks(), PATIENCE.as_secs());
            break Err(FollowError::Failed(format!(
                "ranks {ranks:?} have not come within {seconds} s"
            )));
        }
    };
    let (links, mut invitations): (Vec<_>, Vec<_>) = guests
        .into_iter()
        .flatten()
        .map(|guest| (guest.stream, guest.invitation))
        .unzip();
    invitations.insert(0, invitation);
    let told = result.and_then(|()| Ok(tell_all(&links, &invitations)?));
    if let Err(error) = told {
        say_it_is_over(&links);
        return Err(error);
    }
    Ok((links, invitations))
}

/// Somebody of the job.
struct Guest {
    rank: usize,
    stream: TcpStream,
    invitation: Vec<u8>,
}

/// Makes of a connection a guest; others hear why they are none, if they are moeshard at all.
fn hear(job: u64, world_size: usize, mut stream: TcpStream) -> io::Result<Guest> {
    let mut words = FirstWords::of(&stream);
    let mut magic = [0; MAGIC.len()];
    words.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let [found_job, rank] = [read_word(&mut words)?, read_word(&mut words)?];
    let invitation = read_bytes(&mut words)?;
    let rank = usize::try_from(rank).unwrap_or(usize::MAX);
    let reason = match (found_job == job, rank) {
        (false, _) => "belongs to another job or is another version".to_owned(),
        (true, 0) => "is rank 0 as well".to_owned(),
        (true, rank) if rank >= world_size => format!("has ranks below {world_size} alone"),
        _ => {
            stream.set_read_timeout(None)?;
            return Ok(Guest {
                rank,
                stream,
                invitation,
            });
        }
    };
    refuse(&mut stream, &reason);
    Err(io::ErrorKind::PermissionDenied.into())
}

fn refuse(stream: &mut TcpStream, reason: &str) {
    let mut answer = vec![REFUSED];
    put_bytes(&mut answer, reason.as_bytes());
    // Nobody is waited for that is refused.
    let _ = stream.write_all(&answer);
}

/// Gives a guest its place, unless somebody is there.
fn seat(mut guest: Guest, guests: &mut [Option<Guest>]) {
    let place = guest.rank.checked_sub(1);
    let Some(place) = place.and_then(|place| guests.get_mut(place)) else {
        return;
    };
    if place.is_some() {
        return refuse(&mut guest.stream, "has met this rank already");
    }
    let noted = guest.stream.write_all(&[NOTED]);
    let noted = noted.and_then(|()| guest.stream.set_nonblocking(true));
    if noted.is_ok() {
        *place = Some(guest);
    }
}

/// Hands every rank's invitation to all.
fn tell_all(links: &[TcpStream], invitations: &[Vec<u8>]) -> io::Result<()> {
    let mut answer = vec![ALL_ARE_THERE];
    for invitation in invitations {
        put_bytes(&mut answer, invitation);
    }
    for mut link in links {
        link.set_nonblocking(false)?;
        let told = link.write_all(&answer);
        link.set_nonblocking(true)?;
        // One that is gone is noticed, and named, a moment later.
        let _ = told;
    }
    Ok(())
}

/// Comes to rank 0 and waits until all are there.
fn come(
    place: &Rendezvous,
    missing: &Missing,
    meeting: &Meeting,
) -> Result<(Vec<TcpStream>, Vec<Vec<u8>>), FollowError> {
    let at = format!("{}:{}", place.host, place.port);
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match say(place, meeting) {
            Ok((stream, NOTED)) => break stream,
            Ok((mut stream, REFUSED)) => {
                let reason = read_bytes(&mut stream).unwrap_or_default();
                let reason = String::from_utf8_lossy(&reason).into_owned();
                let said = format!("rank 0 at {at} {reason}");
                return Err(FollowError::Failed(said));
            }
            Ok(_) => {
                let said = format!("what listens at {at} is no rank 0 of moeshard");
                return Err(FollowError::Failed(said));
            }
            Err(error) if Instant::now() > deadline => {
                let seconds = PATIENCE.as_secs();
                let said = format!("rank 0 at {at} was not met within {seconds} s: {error}");
                return Err(FollowError::Failed(said));
            }
            Err(_) => thread::sleep(AGAIN),
        }
    };
    missing.set(0..0);
    // Rank 0 gives up before.
    stream.set_read_timeout(Some(PATIENCE + AGREED))?;
    let lost = |_| FollowError::LeaderLost("its process is gone".to_owned());
    if read_byte(&mut stream).map_err(lost)? != ALL_ARE_THERE {
        return Err(FollowError::Ended);
    }
    let invitations = (0..place.world_size).map(|_| read_bytes(&mut stream));
    let invitations = invitations.collect::<io::Result<_>>().map_err(lost)?;
    stream.set_nonblocking(true)?;
    Ok((vec![stream], invitations))
}

/// One try to reach rank 0: the connection, and its first word.
fn say(place: &Rendezvous, meeting: &Meeting) -> io::Result<(TcpStream, u8)> {
    let mut failure = io::Error::other("its name has no address");
    // Asked for every time: a name may become known as late as the process behind it.
    for address in (place.host.as_str(), place.port).to_socket_addrs()? {
        let tried = TcpStream::connect_timeout(&address, TRY).and_then(|mut stream| {
            notice_silence(&stream)?;
            stream.set_read_timeout(Some(2 * TRY))?;
            stream.write_all(&hello(place, meeting, &stream)?)?;
            let word = read_byte(&mut stream)?;
            Ok((stream, word))
        });
        match tried {
            Ok(heard) => return Ok(heard),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A rank's first word.
fn hello(place: &Rendezvous, meeting: &Meeting, stream: &TcpStream) -> io::Result<Vec<u8>> {
    // The address by which this machine reaches rank 0's is one by which others may reach this one, unless both are
    // the same machine.
    let own = stream.local_addr()?.ip().to_canonical();
    let hosts = match own.is_loopback() {
        true => vec![],
        false => vec![own.to_string()],
    };
    let mut hello = MAGIC.to_vec();
    hello.extend_from_slice(&place.job.to_le_bytes());
    hello.extend_from_slice(&(place.rank as u64).to_le_bytes());
    put_bytes(&mut hello, &meeting.invitation(&hosts)?);
    Ok(hello)
}

/// Connects every two ranks: each goes to those below it, then waits for those above it.
fn connect(
    place: &Rendezvous,
    links: &[TcpStream],
    invitations: &[Vec<u8>],
    meeting: Meeting,
) -> Result<Vec<Option<TcpStream>>, FollowError> {
    let rank = place.rank;
    let mut mesh = Vec::with_capacity(place.world_size);
    for (lower, invitation) in invitations.iter().enumerate().take(rank) {
        let stream = meet::accept(invitation, rank);
        mesh.push(Some(stream.map_err(|error| {
            FollowError::Failed(format!("rank {lower}: {error}"))
        })?));
    }
    mesh.push(None);
    let first = usize::from(rank == 0);
    let check = || first_lost((first..).zip(links)).map_or(Ok(()), Err);
    let higher = meeting.wait(rank + 1..place.world_size, check)?;
    mesh.extend(higher.into_iter().map(Some));
    Ok(mesh)
}

/// The first of the connections, each with its rank, from which nothing will come any more.
fn first_lost<'a>(mut links: impl Iterator<Item = (usize, &'a TcpStream)>) -> Option<FollowError> {
    links.find_map(|(rank, link)| {
        let mut word = [0];
        let reason = match link.peek(&mut word) {
            Ok(0) => "its process is gone".to_owned(),
            Ok(_) if word[0] == (Message::End { failed: true }).kind() && rank == 0 => {
                return Some(FollowError::Ended);
            }
            Ok(_) => return None,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return None,
                io::ErrorKind::ConnectionReset => GONE.to_owned(),
                _ => error.to_string(),
            },
        };
        Some(match rank {
            0 => FollowError::LeaderLost(reason),
            _ => FollowError::Failed(format!("rank {rank} is lost: {reason}")),
        })
    })
}

/// What rank 0 says in a moment, if it does.
fn last_word(links: &[TcpStream]) -> Option<FollowError> {
    let started = Instant::now();
    loop {
        let lost = first_lost((0..).zip(links));
        if lost.is_some() || started.elapsed() > HEARSAY {
            return lost;
        }
        pause();
    }
}

/// Lets the others end without a word of their own.
fn say_it_is_over(links: &[TcpStream]) {
    for mut link in links {
        // One that is gone needs no word.
        let _ = Message::End { failed: true }.write(&mut link);
    }
}

/// Looks after the links while nothing is said on them.
struct Watch {
    is_over: Arc<AtomicBool>,
    /// What it has seen.
    verdict: Arc<OnceLock<String>>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(rank: usize, links: Vec<TcpStream>, on_lost: OnLost) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let verdict = Arc::new(OnceLock::new());
        let (ends, seen) = (Arc::clone(&is_over), Arc::clone(&verdict));
        let look = move || {
            let first = usize::from(rank == 0);
            while !ends.load(Ordering::Acquire) {
                if let Some(lost) = first_lost((first..).zip(&links)) {
                    let reason = lost.to_string();
                    on_lost(lost);
                    // First, so that whoever hears the verdict is not the first to tell it.
                    let _ = seen.set(reason);
                    if rank == 0 {
                        say_it_is_over(&links);
                    }
                    return;
                }
                thread::sleep(LOOK);
            }
        };
        let thread = thread::Builder::new()
            .name("watch".to_owned())
            .spawn(look)?;
        Ok(Self {
            is_over,
            verdict,
            thread,
        })
    }

    /// What it has seen by now, or sees in a moment.
    fn verdict(&self) -> Option<String> {
        let started = Instant::now();
        while self.verdict.get().is_none() && started.elapsed() < HEARSAY {
            pause();
        }
        self.verdict.get().cloned()
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Release);
        // If it panicked, the panic was reported.
        let _ = self.thread.join();
    }
}

impl Met {
    /// Joins the world, once all processes do, which must have the same `agreement`.
    ///
    /// # Errors
    /// If they differ, or one is lost.
    pub fn join(self, agreement: u64) -> Result<Joined, CollectiveError> {
        let (rank, world_size) = (self.rank, self.mesh.len());
        let failed = move |reason: String| CollectiveError::Transport {
            op: "joining the other processes",
            rank,
            world_size,
            reason,
        };
        let broken = |error: io::Error| failed(error.to_string());
        let mut collective = Tcp::over(rank, self.mesh, JOINING).map_err(broken)?;
        // Gathering copies bits, so a number may travel as two floats.
        let halves = [agreement as u32, (agreement >> 32) as u32].map(f32::from_bits);
        let mut all = vec![0.0; 2 * world_size];
        let gathered = collective.all_gather(&halves, &vec![2; world_size], &mut all);
        gathered.map_err(|error| self.watch.verdict().map_or(error, failed))?;
        let differs = |found: &[f32]| {
            let bits = found.iter().map(|half| half.to_bits());
            bits.ne(halves.map(f32::to_bits))
        };
        if let Some(other) = all.chunks_exact(2).position(differs) {
            return Err(failed(format!(
                "the ranks do not agree on the model and its flags: ranks {rank} and {other} differ"
            )));
        }
        self.watch.end();
        collective.set_deadline(DEADLINE).map_err(broken)?;
        for link in &self.links {
            link.set_nonblocking(false).map_err(broken)?;
        }
        Ok(Joined {
            collective: Box::new(collective),
            links: self.links,
        })
    }
}

fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    to.extend_from_slice(bytes);
}

fn read_byte(from: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn read_word(from: &mut impl Read) -> io::Result<u64> {
    let mut word = [0; 8];
    from.read_exact(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// As many as the word in front says, up to what an invitation may have.
fn read_bytes(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let n = usize::try_from(read_word(from)?).unwrap_or(usize::MAX);
    if n > MOST_INVITATION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; n];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "rendezvous_tests.rs"]
mod tests;
