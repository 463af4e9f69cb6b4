//! The other end: a process that does what rank 0 says.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use moeshard_encoder::model::Model;

use super::link::Link;
use super::sentinel;
use super::wire::Message;
use super::{HEARSAY, JoinWorld, is_hearsay, leave};
use crate::engine::{Layout, StartError, check_layout};
use crate::rank::{DeviceMaker, Jobs, RankSetUp, start};

/// How long a rank that has failed waits for rank 0 to say so.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Why a process cannot follow any more. Its thread may hang in a collective, so that it must not be waited
/// for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// It could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Rank 0 is gone.
    #[error("rank 0 is lost: {0}")]
    LeaderLost(String),
    /// This rank failed, and rank 0 has not said so.
    #[error("{0}")]
    Failed(String),
    /// Some rank failed, and rank 0 has said why.
    #[error("rank 0 has ended the job")]
    Ended,
}

impl From<io::Error> for FollowError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What may happen to a follower.
enum Event {
    /// Rank 0 has no more jobs.
    End { failed: bool },
    /// Rank 0 is gone.
    Lost(String),
    /// This rank has failed.
    Failed(String),
}

/// Joins the world as `rank`, loads its part of the model, and runs what rank 0 sends until there is no more.
///
/// # Communication
/// Rank 0 must [`lead`](crate::RankEngine::lead) with the same model and layout.
///
/// # Errors
/// If this rank cannot start or fails, or another one is lost. The process should then end at once.
pub fn follow<M: DeviceMaker>(
    model: Arc<Model>,
    layout: Layout,
    devices: M,
    rank: usize,
    join: JoinWorld,
) -> Result<(), FollowError> {
    check_layout(&model, layout)?;
    let (links, linked) = channel();
    let set_up = RankSetUp {
        plan: layout.plan(rank),
        sequence_capacity: layout.sequence_capacity,
        devices: Arc::new(devices),
        join: Box::new(move || {
            let joined = join()?;
            // The follower is gone if nobody listens.
            let _ = links.send(joined.links);
            Ok(joined.collective)
        }),
        progress: Arc::new(|_| {}),
        model,
    };
    let own = start(set_up, channel()).map_err(StartError::Rank)?;
    let Ok(links) = linked.recv() else {
        // This rank has failed, and says why.
        let error = own.answers.recv().ok().and_then(Result::err);
        let error = error.map_or(StartError::Stopped { rank }, StartError::Rank);
        return Err(error.into());
    };
    let (events, happened) = channel();
    let link = connect(rank, links, own.jobs, events.clone())?;
    let leader = link.clone();
    let answering = {
        let stats = Arc::clone(&own.stats);
        move || {
            let reason = answer_all(&link, &own.answers, &stats);
            // After the last answer, or because of an error.
            let _ = events.send(Event::Failed(reason));
        }
    };
    let named = thread::Builder::new().name("answers".to_owned());
    named
        .spawn(answering)
        .map_err(|error| StartError::Processes(format!("cannot start a thread: {error}")))?;
    wait(&happened)?;
    // So that rank 0 does not miss this one. Should it be gone, there is no more to be done either.
    let _ = leader.send(&Message::End { failed: false });
    leave(own.thread);
    Ok(())
}

/// Has what rank 0 sends come to this rank.
fn connect(
    rank: usize,
    links: Vec<TcpStream>,
    jobs: Jobs,
    events: Sender<Event>,
) -> io::Result<Link> {
    let stream = links.into_iter().next();
    let stream = stream.ok_or_else(|| io::Error::other("there is no link to rank 0"))?;
    let mut leader = stream.peer_addr()?;
    Link::open(stream, "0", move |message| {
        let event = match message {
            Ok(Message::Job(job)) => {
                // A rank that takes no more has failed, and says so itself.
                jobs.send(job);
                return true;
            }
            Ok(Message::Sentinels { token, port }) => {
                leader.set_port(port);
                sentinel::send_out(rank, token, leader);
                return true;
            }
            Ok(Message::End { failed }) => Event::End { failed },
            Ok(_) => return true,
            Err(reason) => Event::Lost(reason),
        };
        let _ = events.send(event);
        // The queue of jobs goes with this closure.
        false
    })
}

/// Sends every answer to rank 0; why there are no more.
fn answer_all(
    link: &Link,
    answers: &Receiver<crate::rank::RankAnswer>,
    stats: &std::sync::Mutex<moeshard_tensor::device::DeviceStats>,
) -> String {
    while let Ok(answer) = answers.recv() {
        let stats = *stats
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if answer.as_ref().is_err_and(is_hearsay) {
            // Rank 0 is told nothing that it may know better by itself.
            thread::sleep(HEARSAY);
        }
        let answer = answer.map_err(|error| error.to_string());
        let failure = answer.as_ref().err().cloned();
        // That rank 0 is gone is heard by whoever listens to it.
        let _ = link.send(&Message::Answer { stats, answer });
        if let Some(reason) = failure {
            return reason;
        }
    }
    "it has stopped".to_owned()
}

/// Waits for the end.
fn wait(happened: &Receiver<Event>) -> Result<(), FollowError> {
    match happened.recv() {
        Ok(Event::End { failed: false }) => Ok(()),
        Ok(Event::End { failed: true }) => Err(FollowError::Ended),
        Ok(Event::Lost(reason)) => Err(FollowError::LeaderLost(reason)),
        Ok(Event::Failed(reason)) => match happened.recv_timeout(LAST_WORD) {
            Ok(Event::End { .. } | Event::Lost(_)) => Err(FollowError::Ended),
            _ => Err(FollowError::Failed(reason)),
        },
        Err(_) => Err(FollowError::Failed("it has stopped".to_owned())),
    }
}
