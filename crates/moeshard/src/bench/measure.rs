//! Runs forward passes and keeps the time of every operation.

use std::time::{Duration, Instant};

use moeshard_encoder::error::EncoderError;
use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::ShardPlan;
use moeshard_engine::DeviceMaker;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::device::Device;
use moeshard_tensor::timed::{Record, Timed};

use super::args::{Shape, Until};
use crate::model::{ComputeConfig, dtype};
use crate::random::RandomIds;

/// Forward passes before the first that counts: they fault memory in and wake the threads.
const N_WARM_UP: usize = 2;

/// A model on one rank, with its clock.
pub(super) struct Bench<'a, D: Device> {
    model: &'a Model,
    encoder: Encoder<Timed<D>>,
}

/// What the rounds of one shape took.
pub(super) struct Measured {
    /// Each forward pass, pooling included.
    pub(super) forwards: Vec<Duration>,
    /// Each kind of operation, by its first call.
    pub(super) operations: Vec<Measure>,
}

/// One kind of operation.
pub(super) struct Measure {
    /// Calls and work of one forward pass, and the time of the first.
    pub(super) record: Record,
    /// Time of all calls in each forward pass.
    pub(super) elapsed: Vec<Duration>,
}

impl<'a, D: Device> Bench<'a, D> {
    /// Loads a model on the one device that `devices` makes.
    pub(super) fn load(
        model: &'a Model,
        compute: &ComputeConfig,
        devices: &impl DeviceMaker<Device = D>,
    ) -> Result<Self, EncoderError> {
        let plan = ShardPlan {
            strategy: compute.strategy,
            rank: 0,
            world_size: 1,
        };
        let device = devices.make(Box::new(Solo))?;
        let device = Timed::new(device, dtype(model, compute), plan.rank);
        let (spec, checkpoint, capacity) =
            (&model.spec, &model.checkpoint, compute.sequence_capacity);
        let encoder = Encoder::load(device, spec, checkpoint, plan, capacity, &|_| {})?;
        devices.loaded(encoder.device().inner());
        Ok(Self { model, encoder })
    }

    /// The device without its clock.
    pub(super) fn device(&self) -> &D {
        self.encoder.device().inner()
    }

    /// Runs one shape after the other.
    pub(super) fn run_all(
        &self,
        shapes: &[Shape],
        until: Until,
    ) -> Result<Vec<Measured>, EncoderError> {
        shapes.iter().map(|&shape| self.run(shape, until)).collect()
    }

    /// Runs one shape on random ids.
    fn run(&self, shape: Shape, until: Until) -> Result<Measured, EncoderError> {
        let Shape { batch, length } = shape;
        let n_tokens = batch * length;
        let ids = RandomIds::new(self.model.spec.embedding.vocab_size).take(n_tokens);
        let cu_seqlens: Vec<usize> = (0..=batch).map(|seq| seq * length).collect();
        let batch = RankBatch {
            ids: &ids,
            type_ids: &vec![0; n_tokens],
            cu_seqlens: &cu_seqlens,
            n_tokens_per_rank: &[n_tokens],
        };
        for _ in 0..N_WARM_UP {
            self.forward(&batch)?;
        }
        let mut measured = Measured {
            forwards: Vec::new(),
            operations: Vec::new(),
        };
        let start = Instant::now();
        while !until.is_over(measured.forwards.len(), start.elapsed()) {
            let (elapsed, records) = self.forward(&batch)?;
            measured.add(elapsed, records);
        }
        Ok(measured)
    }

    /// One forward pass: how long it took, and what it did.
    fn forward(&self, batch: &RankBatch<'_>) -> Result<(Duration, Vec<Record>), EncoderError> {
        let start = Instant::now();
        let hidden = self.encoder.forward(batch)?;
        let pooling = self.model.settings.pooling;
        self.encoder.pool(&hidden, batch.cu_seqlens, pooling)?;
        Ok((start.elapsed(), self.encoder.device().take()))
    }
}

impl Measured {
    fn add(&mut self, elapsed: Duration, records: Vec<Record>) {
        self.forwards.push(elapsed);
        for record in records {
            let mut operations = self.operations.iter_mut();
            match operations.find(|m| m.record.operation == record.operation) {
                Some(measure) => measure.elapsed.push(record.elapsed),
                None => self.operations.push(Measure {
                    record,
                    elapsed: vec![record.elapsed],
                }),
            }
        }
    }
}

/// The middle one, or the mean of the two in the middle.
pub(super) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => (*low + *high) / 2,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let check = |times: &[u64], expect| {
            let times: Vec<Duration> = times.iter().copied().map(Duration::from_millis).collect();
            assert_eq!(median(&times), Duration::from_millis(expect));
        };
        check(&[], 0);
        check(&[7], 7);
        check(&[9, 1, 5], 5);
        check(&[9, 1, 5, 7], 6);
    }
}
