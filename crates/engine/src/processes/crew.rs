//! What rank 0 knows of the other processes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use moeshard_encoder::error::EncoderError;
use moeshard_tensor::collective::CollectiveError;
use moeshard_tensor::device::DeviceError;

use super::link::{GONE, Link};
use super::wire::Message;
use super::{HEARSAY, LEAVING};
use crate::rank::RankAnswer;

/// Told once, when the processes cannot go on together, why.
pub type OnLost = Box<dyn Fn(&str) + Send + Sync>;

/// The other processes, all of which are there or all given up.
pub(crate) struct Crew {
    /// Why they were given up.
    failure: Arc<OnceLock<String>>,
    on_lost: OnLost,
    is_dismissed: AtomicBool,
    /// Those that have said that they leave, and are not missed.
    have_left: Mutex<Vec<usize>>,
    /// Somebody has left, or all were given up.
    changed: Condvar,
    links: OnceLock<Vec<Link>>,
    /// Where the engine waits for each rank, this process' as well: it may hang in a collective.
    waiting: Mutex<Vec<Sender<RankAnswer>>>,
}

impl Crew {
    pub(super) fn new(on_lost: OnLost) -> Self {
        Self {
            failure: Arc::default(),
            on_lost,
            is_dismissed: AtomicBool::new(false),
            have_left: Mutex::default(),
            changed: Condvar::new(),
            links: OnceLock::new(),
            waiting: Mutex::default(),
        }
    }

    /// Why the processes were given up, if they were.
    pub(crate) fn failure(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.failure)
    }

    /// Has whoever waits for this rank's answers know when there will be none.
    pub(super) fn wake_on_failure(&self, answers: Sender<RankAnswer>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(answers);
    }

    /// The connections, once there are all of them.
    pub(super) fn connect(&self, links: Vec<Link>) {
        let _ = self.links.set(links);
        // One may have failed while others were still being met.
        if self.failure.get().is_some() {
            self.tell_all(true);
        }
    }

    /// Gives the processes up, unless that has happened; answers with the reason that was first.
    pub(crate) fn fail(&self, reason: &str) -> String {
        if self.failure.set(reason.to_owned()).is_ok() {
            // First, so that a client that has its error already sees the server unhealthy.
            (self.on_lost)(reason);
            self.tell_all(true);
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for answers in waiting.iter() {
                // Nobody listens to a rank that the engine has given up.
                let _ = answers.send(Err(given_up(reason)));
            }
            // Behind whoever is about to wait.
            drop(self.have_left());
            self.changed.notify_all();
        }
        self.failure.get().cloned().unwrap_or_default()
    }

    /// As [`Crew::fail`], where the reason is that of a rank which knows only that another one has failed: that one
    /// may say why.
    pub(crate) fn fail_by_hearsay(&self, reason: &str) -> String {
        let is_unknown = |_: &mut Vec<usize>| self.failure.get().is_none();
        let _ = self
            .changed
            .wait_timeout_while(self.have_left(), HEARSAY, is_unknown);
        self.fail(reason)
    }

    /// A process has no more to say.
    pub(super) fn leave(&self, rank: usize) {
        self.have_left().push(rank);
        self.changed.notify_all();
    }

    /// A process says nothing more, for this reason.
    pub(super) fn lose(&self, rank: usize, reason: &str) {
        if !self.have_left().contains(&rank) {
            self.fail(&format!("rank {rank} is lost: {reason}"));
        }
    }

    /// A process has been killed, which its link may not say yet. One that was let go says on its link that it leaves,
    /// which may come later than its end.
    pub(super) fn miss(&self, rank: usize) {
        if !self.is_dismissed.load(Ordering::Acquire) {
            self.lose(rank, GONE);
        }
    }

    /// Lets the other processes go. One that was lost shortly before is noticed: it does not say that it goes.
    pub(crate) fn dismiss(&self) {
        if self.failure.get().is_some() || self.is_dismissed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.tell_all(false);
        let n_others = self.links.get().map_or(0, Vec::len);
        let waits = |left: &mut Vec<usize>| left.len() < n_others && self.failure.get().is_none();
        let _ = self
            .changed
            .wait_timeout_while(self.have_left(), LEAVING, waits);
    }

    fn have_left(&self) -> MutexGuard<'_, Vec<usize>> {
        self.have_left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_all(&self, failed: bool) {
        for link in self.links.get().into_iter().flatten() {
            // One that cannot be told has ended already.
            let _ = link.send(&Message::End { failed });
        }
    }
}

/// In the place of a rank's answer.
pub(super) fn given_up(reason: &str) -> EncoderError {
    EncoderError::Device(DeviceError::Collective(CollectiveError::Transport {
        op: "a pass",
        rank: 0,
        world_size: 0,
        reason: reason.to_owned(),
    }))
}
