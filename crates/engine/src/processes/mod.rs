//! Ranks that are processes, on one machine or many.
//!
//! Rank 0 leads: it is the only one that knows of requests, and [`RankEngine::lead`] is an engine like any
//! other. The others [`follow`]. Every process is one rank, with a device and a thread of its own.
//!
//! Two things connect them. A [`Collective`] carries what ranks exchange within a pass. A *link*, one TCP
//! connection between rank 0 and each other rank, carries jobs and answers, and ends when a process is
//! gone: the system closes its connections, while a collective may wait for it for ever. Both come from
//! [`JoinWorld`]: [`meet`] needs nothing but an address of rank 0's and has both over TCP; a launcher's
//! library has a collective of its own, and [`links`] connects the rest.
//!
//! In reading order: `wire` says how messages look, `link` sends them and notices silence, `door` lets processes in and
//! strangers not, `meet` connects ranks that know of each other, `rendezvous` has them know of each other, `crew`
//! is what rank 0 knows of the others, `sentinel` has it know at once when one is killed, `lead` and `follow` are the two
//! ends.
//!
//! [`RankEngine::lead`]: crate::RankEngine::lead

mod crew;
mod door;
mod follow;
mod lead;
mod link;
mod meet;
mod rendezvous;
mod sentinel;
mod wire;

use std::net::TcpStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moeshard_encoder::error::EncoderError;
use moeshard_tensor::collective::{Collective, CollectiveError};
use moeshard_tensor::device::DeviceError;

pub(crate) use crew::Crew;
pub use crew::OnLost;
pub use follow::{FollowError, follow};
pub use lead::Leadership;
pub(crate) use link::Link;
pub use meet::links;
pub use rendezvous::{Met, Missing, Rendezvous, meet};
pub(crate) use wire::Message;

/// A world that this process has joined.
pub struct Joined {
    /// This rank's end of it.
    pub collective: Box<dyn Collective>,
    /// At rank 0 the connections to ranks 1, 2, …; at another rank the one to rank 0.
    pub links: Vec<TcpStream>,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let links = &self.links;
        f.debug_struct("Joined").field("links", links).finish()
    }
}

/// Joins the world that a launcher has started, on the thread of this process' rank.
///
/// # Communication
/// Every rank must call it.
pub type JoinWorld = Box<dyn FnOnce() -> Result<Joined, CollectiveError> + Send>;

/// How long a rank that knows no more than that another one has failed waits for somebody who knows why. The
/// connections of a process that ends are closed within milliseconds of each other.
const HEARSAY: Duration = Duration::from_millis(250);

/// The longest that a process waits to leave the world together with the others. It takes milliseconds, but
/// a launcher that is ending the job itself lets nobody leave (Open MPI 4.1.4), and kills a second later.
const LEAVING: Duration = Duration::from_millis(500);

/// Whether a rank's failure says no more than that another one has failed.
pub(crate) fn is_hearsay(error: &EncoderError) -> bool {
    matches!(
        error,
        EncoderError::Device(DeviceError::Collective(CollectiveError::Poisoned { .. }))
    )
}

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
