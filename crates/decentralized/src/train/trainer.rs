//! Runs rounds.

use std::fmt::Debug;
use std::ops::Range;

use moeshard_tensor::linalg::Threads;

use super::absence::Absence;
use super::cliques::CliqueMixer;
use super::gradients::Gradients;
use super::mixer::{Mixer, Round, Weights, rows_of};
use super::settings::{Method, Settings};
use super::state::State;
use super::transport::{Transport, deal};
use super::{Result, TrainError};
use crate::batches::Batches;
use crate::data::Dataset;
use crate::measures::n_messages;
use crate::model::Model;
use crate::partition::Partition;
use crate::topology::Schedule;

/// What is learned from what.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// What is trained.
    pub model: &'a dyn Model,
    /// What nodes learn from.
    pub train: &'a Dataset,
    /// What their models are measured on.
    pub test: &'a Dataset,
    /// Which node has which examples.
    pub partition: &'a Partition,
}

/// A training run: the nodes of one rank, and how it reaches the others.
pub struct Trainer<'a> {
    pub(super) run: Run<'a>,
    pub(super) settings: Settings,
    pub(super) transport: Box<dyn Transport + 'a>,
    pub(super) mixer: Mixer,
    pub(super) clique_mixer: Option<CliqueMixer>,
    pub(super) gradients: Gradients,
    pub(super) state: State,
    n_links: LinkCounts,
    messages: u64,
    /// Sum over rounds.
    absence_bias: f64,
    /// The round before which the last evaluation was, if there was one.
    pub(super) evaluated: Option<u64>,
}

/// What stays the same during a round.
pub(super) struct Run<'a> {
    pub(super) task: Task<'a>,
    pub(super) threads: Threads,
    /// The nodes of this rank.
    pub(super) nodes: Range<usize>,
    /// The matrices of the schedule.
    pub(super) weights: Vec<Weights>,
    /// Who misses the round, if anybody ever does.
    pub(super) absence: Option<Absence>,
    pub(super) round: u64,
}

/// How many rows nodes send to one another in a round if nobody is absent.
struct LinkCounts {
    /// Of models, by round of the schedule.
    models: Vec<u64>,
    /// Of gradients within cliques.
    gradients: u64,
}

impl<'a> Trainer<'a> {
    /// Prepares a run from its beginning.
    ///
    /// # Communication
    /// Sets up exchanges; every rank must call it, with the same arguments.
    ///
    /// # Errors
    /// If settings, task and schedule do not fit one another.
    pub fn new(
        task: Task<'a>,
        schedule: &Schedule,
        settings: Settings,
        mut transport: Box<dyn Transport + 'a>,
    ) -> Result<Self> {
        settings.check()?;
        check_sizes(&task, schedule)?;
        let n_nodes = task.partition.nodes.len();
        let n_params = task.model.n_params();
        let threads = Threads::new(settings.n_threads)?;
        let nodes = deal(n_nodes, transport.world_size())[transport.rank()].clone();
        let weights: Vec<Weights> = schedule.rounds.iter().map(rows_of).collect();
        let mixer = Mixer::new(&weights, n_params, &mut *transport)?;
        let clique_mixer = match settings.method {
            Method::DSgd {
                clique_averaging: true,
                ..
            } => Some(CliqueMixer::new(schedule, n_params, &mut *transport)?),
            _ => None,
        };
        let examples = &task.partition.nodes[nodes.clone()];
        let batches = nodes.clone().zip(examples).map(|(node, examples)| {
            Batches::new(
                examples.clone(),
                settings.batch_size,
                settings.seed,
                node as u32,
            )
        });
        Ok(Self {
            gradients: Gradients::new(settings.n_threads, batches.collect()),
            state: State::new(&settings, &task, &nodes),
            run: Run {
                absence: (!settings.absences.is_none()).then(|| Absence::new(n_nodes)),
                round: 0,
                task,
                threads,
                nodes,
                weights,
            },
            n_links: LinkCounts::of(schedule),
            messages: 0,
            absence_bias: 0.0,
            evaluated: None,
            settings,
            transport,
            mixer,
            clique_mixer,
        })
    }

    /// Rounds done.
    #[must_use]
    pub fn n_rounds(&self) -> u64 {
        self.run.round
    }

    /// The round before which models were last measured, on whatever ranks: a run that goes on knows it
    /// from its checkpoint.
    #[must_use]
    pub fn last_evaluation(&self) -> Option<u64> {
        self.evaluated
    }

    /// Rows of parameters or gradients that nodes have sent to other nodes, all nodes together, each
    /// direction counted.
    #[must_use]
    pub fn n_messages(&self) -> u64 {
        self.messages
    }

    /// By how much absent nodes have made W other than doubly stochastic: the mean absolute deviation
    /// of its columns' sums from one, averaged over rounds.
    #[must_use]
    pub fn absence_bias(&self) -> f64 {
        self.absence_bias / self.run.round.max(1) as f64
    }

    /// Rounds of an epoch: as many as the average node needs to see each of its examples once.
    #[must_use]
    pub fn rounds_per_epoch(&self) -> u64 {
        let nodes = &self.run.task.partition.nodes;
        let n_examples: usize = nodes.iter().map(Vec::len).sum();
        (n_examples.div_ceil(nodes.len())).div_ceil(self.settings.batch_size.get()) as u64
    }

    /// Parameters of this rank's nodes, `[n_local, n_params]`.
    #[must_use]
    pub fn models(&self) -> &[f32] {
        &self.state.models
    }

    /// Parameters of all nodes, `[n_nodes, n_params]`; on rank 0, nothing elsewhere.
    ///
    /// # Communication
    /// One gather; every rank must call it.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn gather_models(&mut self) -> Result<Option<Vec<f32>>> {
        let n_params = self.run.task.model.n_params();
        self.transport.gather(n_params, &self.state.models)
    }

    /// Runs one round.
    ///
    /// # Communication
    /// One or two exchanges; every rank must call it.
    ///
    /// # Errors
    /// If training diverges or a rank is lost.
    pub fn round(&mut self) -> Result<()> {
        if let Some(absence) = &mut self.run.absence {
            absence.advance(&self.settings.absences, self.settings.seed, self.run.round);
        }
        let loss = match self.settings.method {
            Method::DSgd {
                momentum, order, ..
            } => self.d_sgd(momentum, order)?,
            Method::GradientTracking => self.gradient_tracking()?,
            Method::D2 => self.d2()?,
        };
        let round = self.run.round;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { round, loss });
        }
        self.count_messages();
        self.gradients.add_losses(&mut self.state.losses);
        self.run.round += 1;
        Ok(())
    }

    /// What a run that goes on needs beside the state of nodes.
    pub(super) fn numbers(&self) -> [(&'static str, f64); 4] {
        // Counts below 2^53 are exact.
        [
            ("round", self.run.round as f64),
            ("messages", self.messages as f64),
            ("absence_bias", self.absence_bias),
            (
                "evaluated",
                self.evaluated.map_or(-1.0, |round| round as f64),
            ),
        ]
    }

    /// Takes them back by name.
    pub(super) fn set_numbers(&mut self, number: impl Fn(&str) -> Result<f64>) -> Result<()> {
        self.run.round = number("round")? as u64;
        self.messages = number("messages")? as u64;
        self.absence_bias = number("absence_bias")?;
        let evaluated = number("evaluated")?;
        self.evaluated = (evaluated >= 0.0).then_some(evaluated as u64);
        if let Some(absence) = &mut self.run.absence {
            // Who has left follows from all rounds before.
            let Settings { absences, seed, .. } = &self.settings;
            (0..self.run.round).for_each(|round| absence.advance(absences, *seed, round));
        }
        Ok(())
    }

    fn count_messages(&mut self) {
        let round = self.run.round as usize % self.run.weights.len();
        let weights = &self.run.weights[round];
        let absence = self.run.absence.as_ref();
        let n_lost = |weights| absence.map_or(0, |absence| absence.n_lost(weights));
        let n_models = self.n_links.models[round] - n_lost(weights);
        let n_gradients = match (&self.clique_mixer, self.settings.method) {
            (Some(cliques), _) => self.n_links.gradients - n_lost(&cliques.weights[0]),
            (None, Method::GradientTracking) if !self.run.begins() => n_models,
            _ => 0,
        };
        self.messages += n_models + n_gradients;
        if let Some(absence) = absence {
            self.absence_bias += absence.bias(weights);
        }
    }
}

impl Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("settings", &self.settings)
            .field("nodes", &self.run.nodes)
            .field("round", &self.run.round)
            .finish_non_exhaustive()
    }
}

impl Run<'_> {
    /// The round `idx` of a schedule of `weights`, without those who miss this one.
    pub(super) fn round_of<'r>(&'r self, idx: u64, weights: &'r [Weights]) -> Round<'r> {
        Round {
            idx: idx as usize,
            weights,
            absence: self.absence.as_ref(),
        }
    }

    /// Whether methods with a memory of other nodes begin in this round: in the first, and whenever a
    /// node has left or come back. What is remembered adds up to zero, or to the sum of all gradients,
    /// over the nodes that took part; over others it does not, and models would drift.
    pub(super) fn begins(&self) -> bool {
        self.round == 0 || (self.absence.as_ref()).is_some_and(Absence::has_changed)
    }

    /// Whether a node computes nothing in this round.
    pub(super) fn has_left(&self, node: usize) -> bool {
        (self.absence.as_ref()).is_some_and(|absence| absence.has_left(node))
    }
}

impl LinkCounts {
    fn of(schedule: &Schedule) -> Self {
        let rounds = 0..schedule.rounds.len();
        let models = rounds.map(|round| n_messages(schedule, round, false));
        Self {
            gradients: n_messages(schedule, 0, true) - n_messages(schedule, 0, false),
            models: models.collect(),
        }
    }
}

fn check_sizes(task: &Task<'_>, schedule: &Schedule) -> Result<()> {
    let mismatch = |what, (one, one_of), (other, other_of)| {
        Err(TrainError::Mismatch {
            what,
            one,
            one_of,
            other,
            other_of,
        })
    };
    let n_nodes = task.partition.nodes.len();
    for round in &schedule.rounds {
        if round.n_nodes() != n_nodes {
            let one = (round.n_nodes(), "the topology");
            return mismatch("nodes", one, (n_nodes, "the partition"));
        }
    }
    for data in [task.train, task.test] {
        if data.n_features != task.model.n_features() {
            let one = (task.model.n_features(), "the model");
            return mismatch("features", one, (data.n_features, "the data"));
        }
        if data.n_classes > task.model.n_classes() {
            let one = (task.model.n_classes(), "the model");
            return mismatch("classes", one, (data.n_classes, "the data"));
        }
    }
    match task.partition.nodes.iter().position(Vec::is_empty) {
        Some(node) => Err(TrainError::EmptyNode { node }),
        None => Ok(()),
    }
}
