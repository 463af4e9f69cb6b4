//! Ranks that are processes, on one machine or many.
//!
//! Rank 0 leads: it is the only one that knows of requests, and [`RankEngine::lead`] is an engine like any
//! other. The others [`follow`]. Every process is one rank, with a device and a thread of its own.
//!
//! Two things connect them. A [`Collective`] carries what ranks exchange within a pass; a launcher's
//! library makes it ([`JoinWorld`]). A *link*, one TCP connection between rank 0 and each other rank, carries
//! jobs and answers, and says at once when a process is gone: the system closes its connections, while a
//! collective would wait for it for ever.
//!
//! In reading order: `wire` says how messages look, `link` sends them and notices silence, `meet` connects
//! the links, `crew` is what rank 0 knows of the others, `lead` and `follow` are the two ends.
//!
//! [`RankEngine::lead`]: crate::RankEngine::lead

mod crew;
mod follow;
mod lead;
mod link;
mod meet;
mod wire;

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moeshard_tensor::collective::{Collective, CollectiveError};

pub(crate) use crew::Crew;
pub use crew::OnLost;
pub use follow::{FollowError, follow};
pub use lead::Leadership;
pub(crate) use link::Link;
pub(crate) use wire::Message;

/// Joins the world that a launcher has started, on the thread of this process' rank. Replaces the bytes by
/// those of rank 0, which say where it can be reached.
///
/// # Communication
/// Every rank must call it.
pub type JoinWorld =
    Box<dyn FnOnce(&mut Vec<u8>) -> Result<Box<dyn Collective>, CollectiveError> + Send>;

/// The longest that a process waits to leave the world together with the others. It takes milliseconds, but
/// a launcher that is ending the job itself lets nobody leave (Open MPI 4.1.4), and kills a second later.
const LEAVING: Duration = Duration::from_millis(500);

/// Lets the threads of this process' ranks, which have no more jobs, leave their world.
pub(crate) fn leave(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    let started = Instant::now();
    for thread in threads {
        while !thread.is_finished() && started.elapsed() < LEAVING {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests;
