//! A small problem, and ways to train on it.

use moeshard_decentralized::data::Dataset;
use moeshard_decentralized::model::{Linear, Model};
use moeshard_decentralized::partition::Partition;
use moeshard_decentralized::seed;
use moeshard_decentralized::topology::{Nodes, Schedule, Topology};
use moeshard_decentralized::train::absence::Absences;
use moeshard_decentralized::train::transport::InProcess;
use moeshard_decentralized::train::{Method, MixOrder, Settings, Task, Trainer};
use rand::RngExt;

pub(crate) const N_FEATURES: usize = 7;
pub(crate) const N_CLASSES: usize = 3;

/// Data of odd sizes on a few nodes, and a model for it.
pub(crate) struct Problem {
    pub(crate) model: Box<dyn Model>,
    pub(crate) train: Dataset,
    pub(crate) test: Dataset,
    pub(crate) partition: Partition,
}

impl Problem {
    /// Nodes of 11, 12, 13, … examples.
    pub(crate) fn new(n_nodes: usize) -> Self {
        let sizes: Vec<usize> = (0..n_nodes).map(|node| 11 + node % 5).collect();
        let n_examples: usize = sizes.iter().sum();
        let mut next = 0u32;
        let nodes = sizes.iter().map(|&size| {
            let examples = (next..next + size as u32).collect();
            next += size as u32;
            examples
        });
        Self {
            model: Box::new(Linear::new(N_FEATURES, N_CLASSES)),
            partition: Partition {
                nodes: nodes.collect(),
            },
            train: dataset(n_examples, 1),
            test: dataset(101, 2),
        }
    }

    pub(crate) fn task(&self) -> Task<'_> {
        Task {
            model: &*self.model,
            train: &self.train,
            test: &self.test,
            partition: &self.partition,
        }
    }

    pub(crate) fn trainer(&self, schedule: &Schedule, settings: &Settings) -> Trainer<'_> {
        let transport = Box::new(InProcess);
        Trainer::new(self.task(), schedule, settings.clone(), transport).expect("a trainer")
    }

    /// The models after some rounds.
    pub(crate) fn models(
        &self,
        schedule: &Schedule,
        settings: &Settings,
        n_rounds: u64,
    ) -> Vec<f32> {
        let mut trainer = self.trainer(schedule, settings);
        (0..n_rounds).for_each(|_| trainer.round().expect("a round"));
        trainer.models().to_vec()
    }
}

/// Examples whose first features tell their class, with noise.
pub(crate) fn dataset(n_examples: usize, seed: u64) -> Dataset {
    let mut rng = seed::rng(seed, 0);
    let labels: Vec<u32> = (0..n_examples)
        .map(|_| rng.random_range(0..N_CLASSES as u32))
        .collect();
    let features = labels.iter().flat_map(|&label| {
        let noise: [f32; N_FEATURES] = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
        let mut row = noise;
        row[label as usize] += 1.0;
        row
    });
    Dataset {
        n_features: N_FEATURES,
        n_classes: N_CLASSES,
        features: features.collect(),
        labels,
        shape: None,
    }
}

/// D-SGD of batches of 4.
pub(crate) fn settings() -> Settings {
    Settings {
        method: d_sgd(MixOrder::AfterStep, 0.0, false),
        learning_rate: 0.2,
        batch_size: 4.try_into().expect("not zero"),
        seed: 5,
        start_alike: None,
        absences: Absences::default(),
        n_threads: 2,
    }
}

pub(crate) fn d_sgd(order: MixOrder, momentum: f32, clique_averaging: bool) -> Method {
    Method::DSgd {
        order,
        momentum,
        clique_averaging,
    }
}

pub(crate) fn connect(topology: &dyn Topology, n_nodes: usize) -> Schedule {
    let nodes = Nodes {
        n_nodes,
        classes: None,
    };
    let schedule = topology.connect(&nodes, &mut seed::rng(9, 0));
    schedule.expect("a topology")
}
