//! One run: a topology, from its first round to its last.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::measures::{Links, Spectrum};
use moeshard_decentralized::partition::{Labels, Partition};
use moeshard_decentralized::record::{Evaluation, Record, RunEnd, Spread};
use moeshard_decentralized::seed;
use moeshard_decentralized::topology::{Nodes, Schedule, Topology};
use moeshard_decentralized::train::{Task, TrainError, Trainer};
use moeshard_encoder::fingerprint::Fingerprint;

use super::args::TrainConfig;
use super::folder::Folder;
use super::header::header;
use super::ranks::Ranks;
use super::task::LoadedTask;
use crate::arg_error::ArgError;
use crate::progress::{Progress, Unit};

/// Streams of the seed for partition and topology, beyond those of nodes and rounds.
pub(crate) const PARTITION_STREAM: u64 = 1 << 60;
pub(crate) const TOPOLOGY_STREAM: u64 = PARTITION_STREAM + 1;

/// Nodes with their data, and how they are connected.
#[derive(Debug)]
pub struct Network {
    /// The rule by which they are connected.
    pub topology: String,
    /// Which node has which examples.
    pub partition: Partition,
    /// Examples of each class on each node.
    pub classes: ClassCounts,
    /// Who exchanges with whom.
    pub schedule: Schedule,
    /// Edges and components.
    pub links: Links,
    /// How fast models come to agree.
    pub spectrum: Spectrum,
}

impl Network {
    /// Divides the data and connects the nodes.
    ///
    /// # Errors
    /// If the rules do not fit the data, or the graph falls apart and that is not allowed.
    pub fn new(config: &TrainConfig, task: &LoadedTask, topology: &dyn Topology) -> Result<Self> {
        let labels = Labels {
            labels: &task.train.labels,
            n_classes: task.train.n_classes,
        };
        let seed = config.settings.seed;
        let mut rng = seed::rng(seed, PARTITION_STREAM);
        let partition = (config.partition.1).partition(&labels, config.n_nodes, &mut rng)?;
        let classes = partition.class_counts(labels.labels, labels.n_classes);
        let nodes = Nodes {
            n_nodes: config.n_nodes,
            classes: Some(&classes),
        };
        let schedule = topology.connect(&nodes, &mut seed::rng(seed, TOPOLOGY_STREAM))?;
        let network = Self {
            topology: topology.name(),
            partition,
            classes,
            links: Links::of(&schedule),
            spectrum: Spectrum::of(&schedule),
            schedule,
        };
        network.check(config)?;
        Ok(network)
    }

    /// That training on it can succeed.
    fn check(&self, config: &TrainConfig) -> Result<(), TrainError> {
        let n_components = self.links.n_strong_components;
        if n_components > 1 && !config.allow_disconnected {
            let topology = self.topology.clone();
            return Err(TrainError::Disconnected {
                topology,
                n_components,
            });
        }
        let method = config.settings.method;
        method.check_topology(
            &self.topology,
            &self.schedule,
            self.spectrum.smallest_eigenvalue,
        )
    }
}

/// One run: what it trains, how far it is, and where it writes.
struct Run<'a> {
    config: &'a TrainConfig,
    trainer: Trainer<'a>,
    folder: Option<&'a Folder>,
    /// Whether this is the rank that measures and writes.
    is_first: bool,
    /// What a run that goes on must agree with.
    fingerprint: String,
    n_params: usize,
    schedule: &'a Schedule,
    evaluations: Vec<Evaluation>,
    /// Spent on rounds.
    train: Duration,
    /// Spent on evaluations.
    evaluate: Duration,
}

/// What a run has come to.
#[derive(Debug)]
pub struct Trained {
    /// From the first to the last.
    pub evaluations: Vec<Evaluation>,
    /// `[n_nodes, n_params]`; empty but on rank 0.
    pub models: Vec<f32>,
}

/// Trains on one topology, or goes on with it. Without a folder nothing is written.
///
/// # Errors
/// If parts do not fit, training diverges, or a file cannot be written.
pub fn run(
    config: &TrainConfig,
    task: &LoadedTask,
    network: &Network,
    ranks: &Ranks,
    folder: Option<&Folder>,
) -> Result<Trained> {
    let started = Instant::now();
    let mut run = Run::new(config, task, network, ranks, folder)?;
    run.begin(task, network)?;
    let per_epoch = run.trainer.rounds_per_epoch();
    let n_rounds = n_rounds(config, per_epoch)?;
    ranks.agree_on("what is trained", hash(&run.fingerprint))?;
    ranks.agree_on("the round to start from", run.trainer.n_rounds())?;
    if run.trainer.n_rounds() > n_rounds {
        let done = run.trainer.n_rounds() / per_epoch;
        let reason = format!(
            "{} is less than the {done} that the checkpoint has",
            config.epochs
        );
        return Err(ArgError::other("--epochs", reason).into());
    }
    let progress = Progress::of(Unit::Rounds, &network.topology, Some(n_rounds));
    let progress = progress.from(run.trainer.n_rounds());
    let mut note = String::new();
    loop {
        let round = run.trainer.n_rounds();
        let is_last = round >= n_rounds;
        let is_due = |every: u64| {
            is_last || every > 0 && round.is_multiple_of(every.saturating_mul(per_epoch))
        };
        if is_due(config.output.evaluate_every) {
            run.evaluate(per_epoch)?;
            if let Some(last) = run.evaluations.last() {
                note = format!("accuracy {:.2} %", 100.0 * last.accuracy.mean);
            }
        }
        if round > 0 && is_due(config.output.checkpoint_every) {
            run.save()?;
        }
        if is_last {
            break;
        }
        let start = Instant::now();
        run.trainer.round()?;
        run.train += start.elapsed();
        progress.set(run.trainer.n_rounds(), &note);
    }
    progress.finish();
    run.end(started)?;
    Ok(Trained {
        models: run.trainer.gather_models()?.unwrap_or_default(),
        evaluations: run.evaluations,
    })
}

impl<'a> Run<'a> {
    fn new(
        config: &'a TrainConfig,
        task: &'a LoadedTask,
        network: &'a Network,
        ranks: &'a Ranks,
        folder: Option<&'a Folder>,
    ) -> Result<Self> {
        let parts = Task {
            model: &*task.model,
            train: &task.train,
            test: &task.test,
            partition: &network.partition,
        };
        let settings = config.settings.clone();
        Ok(Self {
            config,
            trainer: Trainer::new(parts, &network.schedule, settings, ranks.transport())?,
            is_first: ranks.is_first(),
            folder,
            fingerprint: fingerprint(config, task, network),
            n_params: task.model.n_params(),
            schedule: &network.schedule,
            evaluations: Vec::new(),
            train: Duration::ZERO,
            evaluate: Duration::ZERO,
        })
    }

    /// Goes on from the folder's checkpoint if that is asked for, else begins the folder anew.
    fn begin(&mut self, task: &LoadedTask, network: &Network) -> Result<()> {
        let Some(folder) = self.folder else {
            return Ok(());
        };
        let header = header(self.config, task, network);
        if !(self.config.output.resume && folder.has_checkpoint()) {
            if !self.is_first {
                return Ok(());
            }
            return folder.append(&Record::Header(Box::new(header)));
        }
        let checkpoint = folder.read_checkpoint()?;
        self.trainer
            .restore(&checkpoint, &self.fingerprint, &folder.checkpoint())?;
        let round = self.trainer.n_rounds();
        if !self.is_first {
            return Ok(());
        }
        self.evaluations = folder.keep_records(round, header)?;
        if let Some(last) = self.evaluations.last() {
            let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
            self.train = duration(last.train_s);
            self.evaluate = duration(last.eval_s);
        }
        tracing::info!("{}: going on after round {round}", network.topology);
        Ok(())
    }

    /// Measures the models, unless that was done in this round.
    fn evaluate(&mut self, per_epoch: u64) -> Result<()> {
        let round = self.trainer.n_rounds();
        if self.trainer.last_evaluation() == Some(round) {
            return Ok(());
        }
        let start = Instant::now();
        let measured = self.trainer.evaluate()?;
        let heterogeneity = self.trainer.heterogeneity(self.schedule)?;
        self.evaluate += start.elapsed();
        let Some(measured) = measured else {
            return Ok(());
        };
        let accuracies: Vec<f64> = measured.accuracy.iter().map(|&a| f64::from(a)).collect();
        let messages = self.trainer.n_messages();
        let has_absences = !self.config.settings.absences.is_none();
        let evaluation = Evaluation {
            epoch: round as f64 / per_epoch as f64,
            round,
            accuracy: Spread::of(&accuracies).context("no nodes")?,
            train_loss: (round > 0).then_some(measured.train_loss),
            test_loss: measured.loss,
            consensus_distance: measured.consensus_distance,
            heterogeneity,
            bytes_sent: messages * 4 * self.n_params as u64,
            messages,
            absence_bias: has_absences.then(|| self.trainer.absence_bias()),
            train_s: self.train.as_secs_f64(),
            eval_s: self.evaluate.as_secs_f64(),
        };
        if let Some(folder) = self.folder {
            folder.append(&Record::Evaluation(evaluation.clone()))?;
        }
        self.evaluations.push(evaluation);
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let Some(folder) = self.folder else {
            return Ok(());
        };
        match self.trainer.checkpoint(&self.fingerprint)? {
            Some(checkpoint) => folder.write_checkpoint(&checkpoint, self.config.n_nodes),
            None => Ok(()),
        }
    }

    fn end(&self, started: Instant) -> Result<()> {
        let (Some(folder), Some(last)) = (self.folder, self.evaluations.last()) else {
            return Ok(());
        };
        folder.append(&Record::End(RunEnd {
            epoch: last.epoch,
            round: last.round,
            bytes_sent: last.bytes_sent,
            messages: last.messages,
            train_s: self.train.as_secs_f64(),
            eval_s: self.evaluate.as_secs_f64(),
            wall_s: started.elapsed().as_secs_f64(),
        }))
    }
}

/// Rounds of the whole run.
fn n_rounds(config: &TrainConfig, per_epoch: u64) -> Result<u64, ArgError> {
    let too_many = || ArgError::other("--epochs", format!("must be fewer, got {}", config.epochs));
    let n_rounds = config.epochs.checked_mul(per_epoch);
    // Counts are kept as numbers that are exact up to here.
    n_rounds.filter(|&n| n < 1 << 53).ok_or_else(too_many)
}

/// What a run that goes on must agree with, and ranks among each other.
fn fingerprint(config: &TrainConfig, task: &LoadedTask, network: &Network) -> String {
    let settings = &config.settings;
    let parts = [
        format!("task {}", task.identity),
        format!("{} examples", task.train.labels.len()),
        format!("labels {}", labels_of(task)),
        format!("classifier {}", task.classifier),
        format!("{} nodes", config.n_nodes),
        format!("partition {}", config.partition.0),
        format!("examples of nodes {}", examples_of(network)),
        format!("topology {}", network.topology),
        format!("mixing matrices {}", matrices_of(network)),
        format!("{:?}", settings.method),
        format!("learning rate {}", settings.learning_rate),
        format!("batch size {}", settings.batch_size),
        format!("seed {}", settings.seed),
        format!("start alike {:?}", settings.start_alike),
        format!("{:?}", settings.absences),
    ];
    parts.join("; ")
}

fn hash(text: &str) -> u64 {
    let mut hash = Fingerprint::default();
    hash.add(text.as_bytes());
    hash.short()
}

fn labels_of(task: &LoadedTask) -> Fingerprint {
    let mut hash = Fingerprint::default();
    for set in [&task.train, &task.test] {
        hash.add(bytemuck::cast_slice(&set.labels));
    }
    for name in task.text.iter().flat_map(|text| &text.label_names) {
        hash.add(name.as_bytes());
    }
    hash
}

fn examples_of(network: &Network) -> Fingerprint {
    let mut hash = Fingerprint::default();
    for node in &network.partition.nodes {
        hash.add(bytemuck::cast_slice(node));
    }
    hash
}

fn matrices_of(network: &Network) -> Fingerprint {
    let mut hash = Fingerprint::default();
    for mixing in &network.schedule.rounds {
        for node in 0..mixing.n_nodes() {
            let (cols, weights) = mixing.row(node);
            hash.add(bytemuck::cast_slice(cols));
            hash.add(bytemuck::cast_slice(weights));
        }
    }
    hash
}
