//! Connections that end at once with a process that is killed.
//!
//! The system closes a killed process' connections only after it has taken down its memory: the longer the more there
//! is, and as long again as somebody else holds a lock on it. A link ends no earlier, and until then rank 0 takes a process for slow that is dead.
//!
//! Not all of a process need wait. On Linux a thread may have a table of files of its own, which is closed when the
//! thread ends, and of all threads that are killed only the last takes the memory down. So every follower sends out two
//! *sentinels*, threads with such a table and a connection to rank 0 in it: one of the two is not the last. Where they
//! cannot be had, the link's end has to do; also while a core is dumped, for which all threads wait.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::crew::Crew;
use super::link::Link;
use super::meet::{Meeting, say_hello};
use super::wire::{Message, Token};

/// One of them may be the last thread of its process.
const N_SENTINELS: usize = 2;

/// How long rank 0 waits for them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Before another try to reach it.
const AGAIN: Duration = Duration::from_millis(200);

/// How often a sentinel says something.
const SPEAK_EVERY: Duration = Duration::from_secs(2);

/// How often rank 0 looks whether anybody still wants to know.
const LOOK: Duration = Duration::from_secs(1);

/// Asks the processes at the other ends for sentinels, and watches those that come.
///
/// # Errors
/// If there is no port or no thread for it.
pub(super) fn ask(crew: &Arc<Crew>, links: &[Link]) -> io::Result<()> {
    let meeting = Meeting::open()?;
    let (token, port) = (meeting.token(), meeting.port()?);
    for link in links {
        // One that cannot be told is gone, which its link says.
        let _ = link.send(&Message::Sentinels { token, port });
    }
    let n_expected = links.len() * N_SENTINELS;
    let crew = Arc::downgrade(crew);
    let named = thread::Builder::new().name("sentinels".to_owned());
    named.spawn(move || receive(&meeting, n_expected, &crew))?;
    Ok(())
}

/// Lets sentinels in until all are there.
fn receive(meeting: &Meeting, n_expected: usize, crew: &Weak<Crew>) {
    let started = Instant::now();
    let mut n_here = 0;
    while n_here < n_expected && started.elapsed() < PATIENCE && crew.strong_count() > 0 {
        let Some((rank, stream)) = meeting.look() else {
            continue;
        };
        n_here += 1;
        let crew = Weak::clone(crew);
        let named = thread::Builder::new().name(format!("watch-{rank}"));
        // Without a thread for this one there are the other and the link.
        let _ = named.spawn(move || watch(&crew, rank, stream));
    }
}

/// Waits for the end of a sentinel's connection.
fn watch(crew: &Weak<Crew>, rank: usize, mut stream: TcpStream) {
    if stream.set_read_timeout(Some(LOOK)).is_err() {
        return;
    }
    while crew.strong_count() > 0 {
        match stream.read(&mut [0; 16]) {
            Ok(0) => {
                let _ = crew.upgrade().map(|crew| crew.miss(rank));
                return;
            }
            Ok(_) => {}
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => {}
                // A broken line says nothing of the process: the link knows more.
                _ => return,
            },
        }
    }
}

/// Sends out this process' sentinels to rank 0, where that has asked for them.
pub(super) fn send_out(rank: usize, token: Token, leader: SocketAddr) {
    for _ in 0..N_SENTINELS {
        let named = thread::Builder::new().name(format!("sentinel-{rank}"));
        let hello = Message::Hello { token, rank };
        // Without a thread, a table or a connection it is done without.
        let _ = named.spawn(move || stand(leader, &hello));
    }
}

/// Holds a connection until rank 0 closes it.
fn stand(leader: SocketAddr, hello: &Message) -> io::Result<()> {
    have_own_files()?;
    // From here on nothing may leave this thread that has a file.
    let mut stream = come(leader, hello)?;
    stream.set_read_timeout(Some(SPEAK_EVERY))?;
    loop {
        match stream.read(&mut [0]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => match error.kind() {
                // Whoever stands between closes connections on which nothing is said. Rank 0 says nothing: what is unread
                // would make of this end a broken line.
                ErrorKind::WouldBlock => stream.write_all(&[0])?,
                ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}

/// Rank 0 has room for so many at a time.
fn come(leader: SocketAddr, hello: &Message) -> io::Result<TcpStream> {
    let started = Instant::now();
    loop {
        match say_hello(leader, hello) {
            Err(_) if started.elapsed() < PATIENCE => thread::sleep(AGAIN),
            come => return come,
        }
    }
}

/// Gives this thread a table of files of its own, in which there are the standard streams alone. No handler of a signal
/// runs on it from then on: those write to files of the process.
#[cfg(target_os = "linux")]
fn have_own_files() -> io::Result<()> {
    const FIRST: libc::c_uint = libc::STDERR_FILENO.unsigned_abs() + 1;
    // SAFETY: a set of signals is plain data, filled before it is read, and the old one is not asked for.
    let failed = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut())
    };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    // SAFETY: the call reads no memory. It closes files in this thread's new table alone, of which the thread holds none.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn have_own_files() -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// What the files of a table are, as `socket:[1234]`.
    fn files(table: &Path) -> HashSet<PathBuf> {
        let entries = fs::read_dir(table).expect("a table of files");
        let links = entries.map(|entry| fs::read_link(entry.expect("a file").path()));
        links.filter_map(Result::ok).collect()
    }

    fn is_socket(file: &Path) -> bool {
        file.to_string_lossy().starts_with("socket:")
    }

    /// This process' threads of this name.
    fn threads_of(name: &str) -> Vec<PathBuf> {
        let tasks = fs::read_dir("/proc/self/task").expect("threads");
        let tasks = tasks.map(|task| task.expect("a thread").path());
        // One of another test that has just ended has no name.
        let named = tasks.filter(|task| {
            let found = fs::read_to_string(task.join("comm")).unwrap_or_default();
            found.trim_end() == name
        });
        named.collect()
    }

    /// The signals that a thread does not take.
    fn blocked(thread: &Path) -> u64 {
        let status = fs::read_to_string(thread.join("status")).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        u64::from_str_radix(line.expect("signals").trim(), 16).expect("a number")
    }

    #[test]
    fn a_sentinels_connection_is_in_its_own_table_alone() {
        let meeting = Meeting::open().expect("a port");
        let leader = ([127, 0, 0, 1], meeting.port().expect("a port")).into();
        // No other test has so many ranks.
        let rank = 9173;
        send_out(rank, meeting.token(), leader);
        let mut ends = Vec::new();
        let started = Instant::now();
        while ends.len() < N_SENTINELS {
            assert!(started.elapsed() < PATIENCE, "no sentinels");
            ends.extend(meeting.look());
        }
        assert!(ends.iter().all(|(found, _)| *found == rank));
        let sentinels = threads_of(&format!("sentinel-{rank}"));
        assert_eq!(sentinels.len(), N_SENTINELS, "{sentinels:?}");
        let shared = files(Path::new("/proc/self/fd"));
        let mut held = HashSet::new();
        for sentinel in sentinels {
            assert_ne!(blocked(&sentinel) & 1 << (libc::SIGTERM - 1), 0);
            let entries = fs::read_dir(sentinel.join("fd")).expect("a table of files");
            // Those of the standard streams may be closed.
            let numbers = entries.map(|file| file.expect("a file").file_name());
            let numbers = numbers.filter(|n| !["0", "1", "2"].contains(&n.to_str().unwrap_or("")));
            assert_eq!(numbers.count(), 1, "it has other files as well");
            let table = files(&sentinel.join("fd"));
            let own: Vec<_> = table.into_iter().filter(|file| is_socket(file)).collect();
            let own: Vec<_> = own.iter().filter(|file| !shared.contains(*file)).collect();
            assert_eq!(own.len(), 1, "{own:?}");
            held.insert(own[0].clone());
        }
        assert_eq!(held.len(), N_SENTINELS, "{held:?}");
    }
}
