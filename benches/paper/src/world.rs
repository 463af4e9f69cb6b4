//! A model on ranks whose routing is imposed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use moeshard_batcher::{Engine, EngineStats, PackedBatch, Task};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_engine::placement::place;
use moeshard_engine::{DeviceMaker, Layout, RankEngine};
use moeshard_tensor::collective::Collective;
use moeshard_tensor::device::{DeviceError, Routing};
use moeshard_tensor::imposed::{Gates, Imposed, Script, TakesRouting};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::skew::{SkewRouter, routing};

/// Sequences of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Sequences of each rank.
    pub per_rank: usize,
    /// Tokens of each.
    pub length: usize,
}

impl Batch {
    /// Random ids of sequences for so many ranks.
    pub fn pack(self, n_ranks: usize, vocab_size: usize, seed: u64) -> PackedBatch {
        let n_seqs = self.per_rank * n_ranks;
        let n_tokens = n_seqs * self.length;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let most = vocab_size.max(1) as u32;
        PackedBatch {
            ids: (0..n_tokens).map(|_| rng.random_range(0..most)).collect(),
            type_ids: vec![0; n_tokens],
            cu_seqlens: (0..=n_seqs).map(|seq| seq * self.length).collect(),
            tasks: vec![
                Task::Embed {
                    normalize: true,
                    dimensions: None,
                };
                n_seqs
            ],
        }
    }

    /// What each rank is to impose, `[n_ranks][n_layers]`, when `router` deals all tokens out anew in each
    /// layer. A sequence has the same experts on whatever rank it lies.
    pub fn routings(
        self,
        n_ranks: usize,
        n_layers: usize,
        router: &SkewRouter,
        seed: u64,
    ) -> Vec<Arc<[Routing]>> {
        let lengths = vec![self.length; self.per_rank * n_ranks];
        let n_tokens = lengths.iter().sum();
        let layers: Vec<Vec<u32>> = (0..n_layers as u64)
            .map(|layer_idx| router.deal(n_tokens, seed.wrapping_add(layer_idx)))
            .collect();
        let of_layer = |seqs: &[usize], experts: &[u32]| {
            let tokens = |&seq: &usize| seq * self.length..(seq + 1) * self.length;
            routing(seqs.iter().flat_map(tokens).map(|token| experts[token]))
        };
        place(&lengths, n_ranks)
            .iter()
            .map(|seqs| layers.iter().map(|layer| of_layer(seqs, layer)).collect())
            .collect()
    }
}

/// Ranks that impose one script each, on the devices of `devices`.
struct ImposedRanks<M> {
    devices: M,
    scripts: Vec<Script>,
}

impl<M: DeviceMaker<Device: TakesRouting>> DeviceMaker for ImposedRanks<M> {
    type Device = Imposed<M::Device>;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        let script = self.scripts.get(collective.rank()).cloned();
        let device = self.devices.make(collective)?;
        Ok(Imposed::new(
            device,
            script.unwrap_or_default(),
            Gates::OfScript,
        ))
    }

    fn loaded(&self, device: &Self::Device) {
        self.devices.loaded(device.inner());
    }
}

/// A model on ranks, ready to run one batch under any routing.
pub struct World {
    engine: RankEngine,
    scripts: Vec<Script>,
    n_experts: usize,
}

/// What one pass was counted to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// `[n_ranks]`
    pub multiply_adds: Vec<u64>,
    /// Over all ranks.
    pub n_dropped: u64,
}

impl World {
    /// Starts the ranks of a model.
    ///
    /// # Errors
    /// If the model cannot be laid out like this, or a rank has no device.
    pub fn start<M: DeviceMaker<Device: TakesRouting>>(
        model: &Arc<Model>,
        (n_ranks, strategy): (usize, Strategy),
        devices: M,
    ) -> Result<Self> {
        // One each: clones of a script are one and the same.
        let scripts: Vec<Script> = (0..n_ranks).map(|_| Script::default()).collect();
        let ranks = ImposedRanks {
            devices,
            scripts: scripts.clone(),
        };
        let layout = Layout {
            n_ranks,
            strategy,
            sequence_capacity: None,
            overlap: None,
        };
        let progress: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(|_| {});
        let experts = model.spec.expert_layers().next();
        Ok(Self {
            engine: RankEngine::start(model, layout, ranks, &progress)
                .with_context(|| format!("{strategy} experts on {n_ranks} ranks"))?,
            scripts,
            n_experts: experts.map_or(0, |(_, experts)| experts.experts.len()),
        })
    }

    /// Imposes a routing on each rank, from the next pass on.
    pub fn impose(&self, routings: &[Arc<[Routing]>]) {
        for (script, routing) in self.scripts.iter().zip(routings) {
            script.set(Arc::clone(routing), self.n_experts);
        }
    }

    /// Runs a batch end to end, from ids to pooled vectors on the host, which takes as long as the slowest
    /// rank.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn run(&self, batch: &PackedBatch) -> Result<Duration> {
        let start = Instant::now();
        self.engine.run(batch)?;
        Ok(start.elapsed())
    }

    /// Runs a batch, and returns what the ranks counted meanwhile.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn count(&self, batch: &PackedBatch) -> Result<Counted> {
        let before = self.engine.stats();
        self.engine.run(batch)?;
        let EngineStats {
            expert_multiply_adds,
            n_dropped,
            ..
        } = self.engine.stats();
        let spent = expert_multiply_adds.iter();
        Ok(Counted {
            multiply_adds: spent
                .zip(&before.expert_multiply_adds)
                .map(|(after, before)| after - before)
                .collect(),
            n_dropped: n_dropped - before.n_dropped,
        })
    }
}
