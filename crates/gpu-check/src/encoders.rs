//! Whole encoders.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use moeshard_cuda::CudaDevice;
use moeshard_cuda::driver::Driver;
use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_tensor::device::Pooling;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::models::ModelShape;
use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::timing::median;

/// Batches before the first that counts.
const N_WARM_UP: usize = 3;

/// Makes a model, loads it, and runs its batches: from ids on the host to pooled vectors there.
pub(crate) fn run<R: Driver>(
    device: CudaDevice<R>,
    shape: &ModelShape,
    scale: &Scale,
    folder: &Path,
    report: &mut Report,
) -> Result<()> {
    let folder = folder.join(shape.name);
    eprintln!("making {}", folder.display());
    shape.write(&folder)?;
    let model = Model::open(&folder).with_context(|| folder.display().to_string())?;
    let plan = ShardPlan {
        strategy: Strategy::Replicated,
        rank: 0,
        world_size: 1,
    };
    let start = Instant::now();
    let encoder = Encoder::load(device, &model.spec, &model.checkpoint, plan, None, &|_| {})?;
    let n_bytes = model.checkpoint.n_bytes();
    let name = format!("{}, loading {:.1} GB", shape.name, n_bytes as f64 / 1e9);
    report.row(Row::new(name, start.elapsed()).bytes(n_bytes as f64));
    for &(batch, length) in shape.batches {
        let times = of_batch(&encoder, shape, scale, (batch, length))?;
        let name = format!("{}, {batch} × {length} tokens", shape.name);
        report.row(Row::new(name, median(times)).tokens((batch * length) as f64));
    }
    Ok(())
}

fn of_batch<R: Driver>(
    encoder: &Encoder<CudaDevice<R>>,
    shape: &ModelShape,
    scale: &Scale,
    (batch, length): (usize, usize),
) -> Result<Vec<Duration>> {
    let n_tokens = batch * length;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut times = Vec::new();
    let cu_seqlens: Vec<usize> = (0..=batch).map(|seq| seq * length).collect();
    for round in 0..N_WARM_UP + scale.n_rounds * scale.n_passes {
        // Other ids, and with them another routing, each time.
        let largest = shape.vocab_size as u32;
        let ids: Vec<u32> = (0..n_tokens)
            .map(|_| rng.random_range(0..largest))
            .collect();
        let batch = RankBatch {
            ids: &ids,
            type_ids: &vec![0; n_tokens],
            cu_seqlens: &cu_seqlens,
            n_tokens_per_rank: &[n_tokens],
        };
        let start = Instant::now();
        let hidden = encoder.forward(&batch)?;
        encoder.pool(&hidden, &cu_seqlens, Pooling::Mean)?;
        if round >= N_WARM_UP {
            times.push(start.elapsed());
        }
    }
    Ok(times)
}
