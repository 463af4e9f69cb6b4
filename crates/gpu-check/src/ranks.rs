//! Several ranks: whether they give what one gives, how long they take together, and how fast they
//! exchange rows.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use moeshard_cuda::driver::Driver;
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_tensor::collective::{Collective, Solo, in_process};
use moeshard_tensor::device::{Device, Pooling, Result as DeviceResult, Routing as HostRouting};
use moeshard_tensor::dtype::DType;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::models::ModelShape;
use crate::report::{Failure, Report, Row, Suite};
use crate::scale::Scale;
use crate::timing::median;

/// Layouts, and in how many micro-batches a pass is run.
const CASES: [(Strategy, usize); 4] = [
    (Strategy::Sharded, 1),
    (Strategy::Sharded, 2),
    (Strategy::Parallel, 1),
    (Strategy::Replicated, 1),
];
/// The longest that a rank waits for the others.
const DEADLINE: Duration = Duration::from_secs(60);
const N_WARM_UP: usize = 3;
/// Of the vectors of a text on some ranks and on one.
const LEAST_COSINE: f64 = 0.999;
/// Exchanges that are timed together.
const N_EXCHANGES: u32 = 50;

/// How rows travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Peers,
    Nccl,
}

/// Several ranks, and where they are.
pub(crate) struct Place<'a> {
    pub(crate) n_ranks: usize,
    pub(crate) via: Via,
    /// For people.
    pub(crate) name: &'a str,
    /// Whether ranks are on GPUs of their own, so that rates are those of links.
    pub(crate) is_apart: bool,
}

/// Checks and measures a model that is there already, on one rank and at each place.
pub(crate) fn run<R: Driver>(
    open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
    dtype: DType,
    (shape, model): (&ModelShape, &Model),
    places: &[Place<'_>],
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
    let row = |name: &str, time| {
        let name = format!("{}, {batch} × {length} tokens, {name}", shape.name);
        Row::new(name, time).tokens((batch * length) as f64)
    };
    let (expected, alone) = work.run(open, (1, Via::Peers), CASES[0])?;
    report.row(row("1 rank", alone));
    for place in places {
        let (suite, times) = work.check(open, shape.name, place, &expected);
        let is_passed = suite.failures.is_empty();
        report.suites.push(suite);
        let [whole, halves] = times;
        if let Some(time) = whole {
            report.row(row(place.name, time));
        }
        if place.n_ranks > 1 && is_passed {
            let exchanges = work.exchanges(open, place, scale)?;
            report.row(row(
                &format!("{}, its exchanges alone", place.name),
                exchanges,
            ));
            if let (Some(whole), Some(time)) = (whole, halves) {
                let halves = row(&format!("{}, in two halves", place.name), time);
                report.row(halves.hides(whole, exchanges));
            }
            measure_exchange(open, dtype, place, scale, report)?;
        }
    }
    Ok(())
}

/// How fast rows travel at a place.
fn measure_exchange<R: Driver>(
    open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
    dtype: DType,
    place: &Place<'_>,
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let &Place {
        n_ranks, via, name, ..
    } = place;
    let (few, all) = exchange(open, dtype, (n_ranks, via), scale)?;
    let n_rows = (n_ranks - 1) * scale.n_tokens.div_ceil(n_ranks);
    let n_bytes = (n_rows * scale.d_model * dtype.size()) as f64;
    report.row(Row::new(format!("gathering, {name}, a row each"), few));
    report.row(Row::new(format!("gathering, {name}"), all).bytes(n_bytes));
    // What `serve` would use where it can.
    if place.is_apart && via == Via::Peers && all > few {
        report.meet_seconds = Some(few.as_secs_f64());
        report.exchanged_bytes = Some(n_bytes / (all - few).as_secs_f64());
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
    /// Whether the ranks of a place give what one rank gives, by every strategy; and the times of a pass of
    /// sharded ones, whole and in two halves, if there were any.
    fn check<R: Driver>(
        &self,
        open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
        model: &str,
        place: &Place<'_>,
        expected: &[Vec<f32>],
    ) -> (Suite, [Option<Duration>; 2]) {
        let mut suite = Suite::new(&format!(
            "{}, {}, cosines to one rank",
            self.dtype, place.name
        ));
        let mut sharded = [None; 2];
        let cases = match place.n_ranks {
            1 => &CASES[..1],
            _ => &CASES,
        };
        for &(strategy, n_micro) in cases {
            suite.n_cases += 1;
            let failure = match self.run(open, (place.n_ranks, place.via), (strategy, n_micro)) {
                Ok((found, time)) => {
                    if strategy == Strategy::Sharded {
                        sharded[n_micro - 1] = Some(time);
                    }
                    let cosine = mean_cosine(&found, expected);
                    let is_alike = cosine >= LEAST_COSINE;
                    (!is_alike).then(|| format!("expected at least {LEAST_COSINE}, found {cosine}"))
                }
                Err(error) => Some(format!("{error:#}")),
            };
            suite.failures.extend(failure.map(|reason| Failure {
                case: format!("{model}, {strategy}, micro-batches: {n_micro}"),
                reason,
            }));
        }
        (suite, sharded)
    }

    /// The vector of each text, and the median time of a pass.
    fn run<R: Driver>(
        &self,
        open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
        (n_ranks, via): (usize, Via),
        (strategy, n_micro): (Strategy, usize),
    ) -> Result<(Vec<Vec<f32>>, Duration)> {
        let share = self.texts.len().div_ceil(n_ranks);
        let counts = self.counts(n_ranks, n_micro);
        let of_ranks = on_ranks(open, self.dtype, (n_ranks, via), |rank, device| {
            let plan = ShardPlan {
                strategy,
                rank,
                world_size: n_ranks,
            };
            let (spec, checkpoint) = (&self.model.spec, &self.model.checkpoint);
            let encoder = Encoder::load(device, spec, checkpoint, plan, None, &|_| {});
            let micro = split(self.of_rank(rank, share), n_micro);
            self.pass_by_pass(&encoder?, &micro, &counts)
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

    /// Tokens of each rank in each micro-batch.
    fn counts(&self, n_ranks: usize, n_micro: usize) -> Vec<Vec<usize>> {
        let share = self.texts.len().div_ceil(n_ranks);
        let of_rank = |rank, i: usize| split(self.of_rank(rank, share), n_micro)[i].len();
        let of_micro = |i| (0..n_ranks).map(move |rank| of_rank(rank, i) * self.length);
        (0..n_micro).map(|i| of_micro(i).collect()).collect()
    }

    fn pass_by_pass<R: Driver>(
        &self,
        encoder: &Encoder<CudaDevice<R>>,
        micro: &[&[Vec<u32>]],
        counts: &[Vec<usize>],
    ) -> Result<(Vec<Vec<f32>>, Vec<Duration>)> {
        let ids: Vec<_> = micro.iter().map(|texts| texts.concat()).collect();
        let starts = |texts: &&[Vec<u32>]| (0..=texts.len()).map(|i| i * self.length).collect();
        let cu_seqlens: Vec<Vec<usize>> = micro.iter().map(starts).collect();
        let type_ids = vec![0; self.texts.len() * self.length];
        let batches: Vec<_> = (0..micro.len())
            .map(|i| RankBatch {
                ids: &ids[i],
                type_ids: &type_ids[..ids[i].len()],
                cu_seqlens: &cu_seqlens[i],
                n_tokens_per_rank: &counts[i],
            })
            .collect();
        let device = encoder.device();
        let (mut rows, mut times) = (Vec::new(), Vec::new());
        for pass in 0..self.n_passes {
            let start = Instant::now();
            let hidden = encoder.forward_in_turns(&batches)?;
            let mut pooled = Vec::new();
            for (i, hidden) in hidden.iter().enumerate() {
                device.enter_stream(i);
                pooled.push(device.pool(hidden, &cu_seqlens[i], Pooling::Mean)?);
            }
            rows.clear();
            for pooled in &pooled {
                rows.extend(device.to_host(pooled)?);
            }
            if pass >= N_WARM_UP {
                times.push(start.elapsed());
            }
        }
        let width = encoder.spec().d_model;
        Ok((rows.chunks(width).map(<[f32]>::to_vec).collect(), times))
    }

    /// Time of what ranks exchange in a pass without all else: rows and routings before each layer of experts, sums after
    /// it.
    fn exchanges<R: Driver>(
        &self,
        open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
        place: &Place<'_>,
        scale: &Scale,
    ) -> Result<Duration> {
        let spec = &self.model.spec;
        let (n_ranks, n_layers) = (place.n_ranks, spec.expert_layers().count());
        let (_, experts) = spec.expert_layers().next().context("no layer of experts")?;
        let (top_k, n_experts) = (experts.rule.top_k, experts.experts.len());
        let counts = &self.counts(n_ranks, 1)[0];
        let of_ranks = on_ranks(open, self.dtype, (n_ranks, place.via), |rank, device| {
            let n = counts[rank] * spec.d_model;
            let x = device.rows_from_host(&vec![1.0; n], spec.d_model)?;
            let choices = counts[rank] * top_k;
            let routing = HostRouting {
                top_k,
                expert_idx: vec![0; choices],
                gate_weight: vec![1.0; choices],
            };
            let routing = device.routing_from_host(&routing, n_experts)?;
            let mut times = Vec::new();
            for round in 0..N_WARM_UP + scale.n_rounds {
                device.wait()?;
                let start = Instant::now();
                for _ in 0..n_layers {
                    let all = device.all_gather(&x, counts)?;
                    device.all_gather_routing(&routing, counts)?;
                    device.reduce_scatter(&all, counts)?;
                }
                device.start()?;
                device.wait()?;
                if round >= N_WARM_UP {
                    times.push(start.elapsed());
                }
            }
            Ok(median(times))
        })?;
        Ok(of_ranks.into_iter().max().unwrap_or_default())
    }
}

/// Parts of about as many texts.
fn split(texts: &[Vec<u32>], n_micro: usize) -> Vec<&[Vec<u32>]> {
    let share = texts.len().div_ceil(n_micro);
    let n = texts.len();
    (0..n_micro)
        .map(|i| &texts[(i * share).min(n)..((i + 1) * share).min(n)])
        .collect()
}

/// Time of gathering one row of each rank, and of gathering a large batch.
fn exchange<R: Driver>(
    open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
    dtype: DType,
    (n_ranks, via): (usize, Via),
    scale: &Scale,
) -> Result<(Duration, Duration)> {
    let share = scale.n_tokens.div_ceil(n_ranks);
    let of_ranks = on_ranks(open, dtype, (n_ranks, via), |_, device| {
        let timed = |n_rows: usize| -> Result<Duration> {
            let counts = vec![n_rows; n_ranks];
            let x = device.rows_from_host(&vec![1.0; n_rows * scale.d_model], scale.d_model)?;
            let mut best = Duration::MAX;
            for _ in 0..N_WARM_UP + scale.n_rounds {
                device.wait()?;
                let start = Instant::now();
                for _ in 0..N_EXCHANGES {
                    device.all_gather(&x, &counts)?;
                }
                device.start()?;
                device.wait()?;
                best = best.min(start.elapsed() / N_EXCHANGES);
            }
            Ok(best)
        };
        Ok((timed(1)?, timed(share)?))
    })?;
    let few = of_ranks.iter().map(|&(few, _)| few).max();
    let all = of_ranks.iter().map(|&(_, all)| all).max();
    Ok((few.unwrap_or_default(), all.unwrap_or_default()))
}

/// What each rank gives, all at once, each with a device of its own.
fn on_ranks<R: Driver, T: Send>(
    open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
    dtype: DType,
    (n_ranks, via): (usize, Via),
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
        let device = CudaDevice::new(CudaConfig { dtype }, open(rank)?, end)?;
        let device = match via {
            Via::Peers => device.meet_peers(world)?,
            Via::Nccl => device.join_nccl(DEADLINE)?,
        };
        let expected = match via {
            Via::Peers => "peers",
            Via::Nccl => "nccl",
        };
        let found = device.exchange();
        ensure!(
            n_ranks == 1 || found == expected,
            "ranks cannot exchange by {expected} here, and would by {found}"
        );
        run(rank, device)
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
