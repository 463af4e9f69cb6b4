//! The engine of rank 0.

use std::net::TcpStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use moeshard_encoder::model::Model;
use moeshard_tensor::device::DeviceStats;

use super::JoinWorld;
use super::crew::{Crew, OnLost, given_up};
use super::link::Link;
use super::sentinel;
use super::wire::Message;
use crate::engine::{Layout, RankEngine, StartError, check_layout};
use crate::rank::{DeviceMaker, Jobs, Rank, RankAnswer, RankSetUp, start};

/// What rank 0 needs to lead the other processes.
pub struct Leadership {
    /// Joins the launcher's world.
    pub join: JoinWorld,
    /// Told when the processes cannot go on together.
    pub on_lost: OnLost,
}

impl std::fmt::Debug for Leadership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leadership").finish_non_exhaustive()
    }
}

impl RankEngine {
    /// Starts rank 0 in this process, meets the others, which [`follow`](super::follow), and waits until all
    /// have loaded.
    ///
    /// # Communication
    /// As many processes as `layout` has ranks must take part.
    ///
    /// # Errors
    /// As [`RankEngine::start`]; also if a process cannot be met or is lost.
    pub fn lead<M: DeviceMaker>(
        model: &Arc<Model>,
        layout: Layout,
        devices: M,
        leadership: Leadership,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Self, StartError> {
        check_layout(model, layout)?;
        let Leadership { join, on_lost } = leadership;
        let crew = Arc::new(Crew::new(on_lost));
        let (streams, met) = channel();
        let set_up = RankSetUp {
            model: Arc::clone(model),
            plan: layout.plan(0),
            sequence_capacity: layout.sequence_capacity,
            devices: Arc::new(devices),
            join: Box::new(move || {
                let joined = join()?;
                // The engine is gone if nobody listens.
                let _ = streams.send(joined.links);
                Ok(joined.collective)
            }),
            progress: Arc::clone(progress),
        };
        let (answer_queue, answers) = channel();
        crew.wake_on_failure(answer_queue.clone());
        let own = start(set_up, (answer_queue, answers))?;
        let mut ranks = vec![own];
        // Without a word this rank has failed, which it says itself.
        if let Ok(streams) = met.recv() {
            ranks.extend(remote_ranks(&crew, streams)?);
        }
        Self::of_ranks(model, layout, ranks, Some(crew))
    }
}

/// The ranks at the other ends.
fn remote_ranks(crew: &Arc<Crew>, streams: Vec<TcpStream>) -> Result<Vec<Rank>, StartError> {
    let mut ranks = Vec::new();
    let mut links = Vec::new();
    for (rank, stream) in (1..).zip(streams) {
        let (answer_queue, answers) = channel();
        crew.wake_on_failure(answer_queue.clone());
        let stats = Arc::new(Mutex::default());
        let hear = {
            let (crew, stats) = (Arc::clone(crew), Arc::clone(&stats));
            move |message| hear(&crew, rank, message, &stats, &answer_queue)
        };
        let link = Link::open(stream, &rank.to_string(), hear)
            .map_err(|error| StartError::Processes(crew.fail(&format!("rank {rank}: {error}"))))?;
        links.push(link.clone());
        ranks.push(Rank {
            jobs: Jobs::Process(link),
            answers,
            stats,
            n_streams: Arc::default(),
            thread: None,
        });
    }
    // Without them there are the links.
    let _ = sentinel::ask(crew, &links);
    crew.connect(links);
    Ok(ranks)
}

/// Passes on what a rank says; whether more is to be heard.
fn hear(
    crew: &Crew,
    rank: usize,
    message: Result<Message, String>,
    stats: &Mutex<DeviceStats>,
    answers: &Sender<RankAnswer>,
) -> bool {
    match message {
        Ok(Message::Answer {
            stats: counted,
            answer,
        }) => {
            *stats.lock().unwrap_or_else(PoisonError::into_inner) = counted;
            match answer {
                Ok(rows) => return answers.send(Ok(rows)).is_ok(),
                Err(reason) => {
                    let reason = crew.fail(&format!("rank {rank}: {reason}"));
                    let _ = answers.send(Err(given_up(&reason)));
                }
            }
        }
        Ok(Message::Ping) => {}
        Ok(Message::End { .. }) => crew.leave(rank),
        Ok(_) => {
            crew.fail(&format!("rank {rank} says what only rank 0 may say"));
        }
        Err(reason) => {
            crew.lose(rank, &reason);
        }
    }
    true
}
