//! Several ranks on one GPU: whether they give what one gives, how long they take together, and how fast they
//! exchange rows.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use moeshard_cuda::driver::Driver;
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_tensor::collective::{Collective, Solo, in_process};
use moeshard_tensor::device::{Device, Pooling, Result as DeviceResult};
use moeshard_tensor::dtype::DType;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::models::ModelShape;
use crate::report::{Failure, Report, Row, Suite};
use crate::scale::Scale;
use crate::timing::median;

/// Ranks that share the GPU.
const WORLDS: [usize; 2] = [2, 4];
const STRATEGIES: [Strategy; 3] = [Strategy::Sharded, Strategy::Parallel, Strategy::Replicated];
/// The longest that a rank waits for the others.
const DEADLINE: Duration = Duration::from_secs(60);
const N_WARM_UP: usize = 3;
/// Of the vectors of a text on some ranks and on one.
const LEAST_COSINE: f64 = 0.999;
/// Exchanges that are timed together.
const N_EXCHANGES: usize = 50;

/// Checks and measures a model that is there already.
pub(crate) fn run<R: Driver>(
    open: &(impl Fn() -> DeviceResult<R> + Sync),
    dtype: DType,
    (shape, model): (&ModelShape, &Model),
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let &(batch, length) = shape.batches.first().context("a shape without batches")?;
    let work = Work {
        model,
        texts: texts(shape, batch, length),
        length,
        dtype,
        n_passes: N_WARM_UP + scale.n_rounds * scale.n_passes,
    };
    let (expected, alone) = work.run(open, 1, Strategy::Sharded)?;
    let name = |n: usize| {
        format!(
            "{}, {batch} × {length} tokens, {n} ranks on one GPU",
            shape.name
        )
    };
    let row = |n, time| Row::new(name(n), time).tokens((batch * length) as f64);
    report.row(row(1, alone));
    for n_ranks in WORLDS {
        let mut suite = Suite::new(&format!(
            "{dtype}, {n_ranks} ranks on one GPU, cosines to one"
        ));
        for strategy in STRATEGIES {
            let (found, time) = work.run(open, n_ranks, strategy)?;
            suite.n_cases += 1;
            let cosine = mean_cosine(&found, &expected);
            if cosine.is_nan() || cosine < LEAST_COSINE {
                let case = format!("{}, {strategy}", shape.name);
                let reason =
                    format!("expected a cosine of {LEAST_COSINE} to one rank, found {cosine}");
                suite.failures.push(Failure { case, reason });
            }
            if strategy == Strategy::Sharded {
                report.row(row(n_ranks, time));
            }
        }
        report.suites.push(suite);
        let (bytes, meet) = exchange(open, dtype, n_ranks, scale)?;
        let name = format!("gathering, {n_ranks} ranks on one GPU");
        report.row(Row::new(
            format!("{name}, a row each"),
            Duration::from_secs_f64(meet),
        ));
        let whole = (n_ranks - 1) * scale.n_tokens.div_ceil(n_ranks) * scale.d_model * dtype.size();
        let time = Duration::from_secs_f64(meet + whole as f64 / bytes);
        report.row(Row::new(name, time).bytes(whole as f64));
        (report.exchanged_bytes, report.meet_seconds) = (Some(bytes), Some(meet));
    }
    Ok(())
}

/// A model, and a batch of texts of one length.
struct Work<'a> {
    model: &'a Model,
    texts: Vec<Vec<u32>>,
    length: usize,
    dtype: DType,
    n_passes: usize,
}

impl Work<'_> {
    /// The vector of each text, and the median time of a pass.
    fn run<R: Driver>(
        &self,
        open: &(impl Fn() -> DeviceResult<R> + Sync),
        n_ranks: usize,
        strategy: Strategy,
    ) -> Result<(Vec<Vec<f32>>, Duration)> {
        let share = self.texts.len().div_ceil(n_ranks);
        let counts: Vec<usize> = (0..n_ranks)
            .map(|rank| self.of_rank(rank, share).len() * self.length)
            .collect();
        let of_ranks = on_ranks(open, self.dtype, n_ranks, |rank, device| {
            let plan = ShardPlan {
                strategy,
                rank,
                world_size: n_ranks,
            };
            let (spec, checkpoint) = (&self.model.spec, &self.model.checkpoint);
            let encoder = Encoder::load(device, spec, checkpoint, plan, None, &|_| {});
            self.pass_by_pass(&encoder?, self.of_rank(rank, share), &counts)
        })?;
        let mut vectors = Vec::new();
        let mut slowest = vec![Duration::ZERO; self.n_passes - N_WARM_UP];
        for (rows, times) in of_ranks {
            vectors.extend(rows);
            for (slowest, time) in slowest.iter_mut().zip(times) {
                *slowest = time.max(*slowest);
            }
        }
        Ok((vectors, median(slowest)))
    }

    fn of_rank(&self, rank: usize, share: usize) -> &[Vec<u32>] {
        let n = self.texts.len();
        &self.texts[(rank * share).min(n)..((rank + 1) * share).min(n)]
    }

    fn pass_by_pass<R: Driver>(
        &self,
        encoder: &Encoder<CudaDevice<R>>,
        texts: &[Vec<u32>],
        counts: &[usize],
    ) -> Result<(Vec<Vec<f32>>, Vec<Duration>)> {
        let ids = texts.concat();
        let cu_seqlens: Vec<usize> = (0..=texts.len()).map(|i| i * self.length).collect();
        let batch = RankBatch {
            ids: &ids,
            type_ids: &vec![0; ids.len()],
            cu_seqlens: &cu_seqlens,
            n_tokens_per_rank: counts,
        };
        let (mut rows, mut times) = (Vec::new(), Vec::new());
        for pass in 0..self.n_passes {
            let start = Instant::now();
            let hidden = encoder.forward(&batch)?;
            rows = encoder.pool(&hidden, &cu_seqlens, Pooling::Mean)?;
            if pass >= N_WARM_UP {
                times.push(start.elapsed());
            }
        }
        let width = encoder.spec().d_model;
        Ok((rows.chunks(width).map(<[f32]>::to_vec).collect(), times))
    }
}

/// Bytes per second that a rank gets from others, and seconds to meet them.
fn exchange<R: Driver>(
    open: &(impl Fn() -> DeviceResult<R> + Sync),
    dtype: DType,
    n_ranks: usize,
    scale: &Scale,
) -> Result<(f64, f64)> {
    let share = scale.n_tokens.div_ceil(n_ranks);
    let of_ranks = on_ranks(open, dtype, n_ranks, |_, device| {
        let timed = |n_rows: usize| -> Result<f64> {
            let counts = vec![n_rows; n_ranks];
            let x = device.rows_from_host(&vec![1.0; n_rows * scale.d_model], scale.d_model)?;
            let mut best = f64::INFINITY;
            for _ in 0..N_WARM_UP + scale.n_rounds {
                device.wait()?;
                let start = Instant::now();
                for _ in 0..N_EXCHANGES {
                    device.all_gather(&x, &counts)?;
                }
                device.start()?;
                device.wait()?;
                best = best.min(start.elapsed().as_secs_f64() / N_EXCHANGES as f64);
            }
            Ok(best)
        };
        Ok((timed(1)?, timed(share)?))
    })?;
    let slowest = |of: fn(&(f64, f64)) -> f64| of_ranks.iter().map(of).fold(0.0, f64::max);
    let (meet, whole) = (slowest(|t| t.0), slowest(|t| t.1));
    let bytes = ((n_ranks - 1) * share * scale.d_model * dtype.size()) as f64;
    Ok((bytes / (whole - meet).max(f64::MIN_POSITIVE), meet))
}

/// What each rank gives, all at once, each with a device on the same GPU.
fn on_ranks<R: Driver, T: Send>(
    open: &(impl Fn() -> DeviceResult<R> + Sync),
    dtype: DType,
    n_ranks: usize,
    run: impl Fn(usize, CudaDevice<R>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let world = PeerWorld::new(n_ranks, DEADLINE);
    let ends: Vec<Box<dyn Collective>> = match n_ranks {
        1 => vec![Box::new(Solo)],
        n => (in_process(n, DEADLINE).into_iter())
            .map(|end| Box::new(end) as Box<dyn Collective>)
            .collect(),
    };
    let start = |rank, end: Box<dyn Collective>, world: &Arc<PeerWorld>| {
        let device = CudaDevice::new(CudaConfig { dtype }, open()?, end)?;
        run(rank, device.meet_peers(world)?)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (ends.into_iter().enumerate())
            .map(|(rank, end)| {
                let (start, world) = (&start, &world);
                scope.spawn(move || start(rank, end, world))
            })
            .collect();
        let ended = |thread: thread::ScopedJoinHandle<'_, Result<T>>| {
            thread.join().map_err(|_| anyhow!("a rank panicked"))?
        };
        threads.into_iter().map(ended).collect()
    })
}

fn texts(shape: &ModelShape, batch: usize, length: usize) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let largest = shape.vocab_size as u32;
    let mut text = || (0..length).map(|_| rng.random_range(0..largest)).collect();
    (0..batch).map(|_| text()).collect()
}

fn mean_cosine(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    found.iter().zip(expected).map(cosine).sum::<f64>() / found.len() as f64
}
