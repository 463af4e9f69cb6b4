//! Ranks that fail, batches that do not fit, and devices of every rank.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use moeshard_tensor::cpu::CpuDevice;
use moeshard_tensor::dtype::DType;
use moeshard_tensor::timed::Timed;

use super::*;
use crate::testing::{cpu, layout, model, told};

/// How a rank ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Error,
    Panic,
}

/// A rank's end of a world that works so many times; then the rank ends.
struct Breaking {
    end: Box<dyn Collective>,
    n_left: Cell<usize>,
    how: End,
}

impl Breaking {
    fn next(&self, op: &'static str) -> Result<(), CollectiveError> {
        match (self.n_left.get(), self.how) {
            (0, End::Panic) => panic!("a rank panics on purpose"),
            (0, End::Error) => Err(CollectiveError::Deadline {
                op,
                rank: self.rank(),
                world_size: self.world_size(),
                waited: Duration::from_secs(1),
            }),
            (n, _) => {
                self.n_left.set(n - 1);
                Ok(())
            }
        }
    }
}

impl Collective for Breaking {
    fn rank(&self) -> usize {
        self.end.rank()
    }
    fn world_size(&self) -> usize {
        self.end.world_size()
    }
    fn all_gather(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.next("all_gather")?;
        self.end.all_gather(send, counts, recv)
    }
    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.next("reduce_scatter")?;
        self.end.reduce_scatter(send, counts, recv)
    }
    fn all_reduce(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.next("all_reduce")?;
        self.end.all_reduce(data)
    }
    fn broadcast(&self, data: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        self.next("broadcast")?;
        self.end.broadcast(data, root)
    }
}

/// An engine of which rank `broken` ends after so many collectives.
fn breaking(n_ranks: usize, broken: usize, n_left: usize, how: End) -> RankEngine {
    let ends = collectives(n_ranks).into_iter().enumerate();
    let ends = ends.map(|(rank, end)| match rank == broken {
        true => Box::new(Breaking {
            end,
            n_left: Cell::new(n_left),
            how,
        }),
        false => end,
    });
    let engine = RankEngine::start_over(&model(), layout(n_ranks), cpu(), ends.collect(), &told());
    engine.expect("it loads")
}

fn batch() -> PackedBatch {
    let task = Task::Embed {
        normalize: true,
        dimensions: None,
    };
    PackedBatch {
        ids: vec![1, 2, 3, 4, 5],
        type_ids: vec![0; 5],
        cu_seqlens: vec![0, 2, 5],
        tasks: vec![task; 2],
    }
}

#[test]
fn a_rank_that_fails_or_panics_ends_the_pass_with_its_own_reason() {
    for (how, reason) in [
        (End::Error, "rank 1: all_gather"),
        (End::Panic, "rank 1 has stopped"),
    ] {
        let engine = breaking(3, 1, 0, how);
        // The second time nobody is left to ask; the reason stays.
        for _ in 0..2 {
            let error = engine.run(&batch()).expect_err("a rank is broken");
            let EngineError::Failed(message) = error else {
                panic!("{error:?}")
            };
            assert!(message.starts_with(reason), "{message}");
        }
    }
}

#[test]
fn whenever_a_rank_ends_nobody_waits_for_it() {
    let mut state = 1_usize;
    let mut draw = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for _ in 0..100 {
        let n_ranks = 2 + draw(3);
        let (broken, n_left) = (draw(n_ranks), draw(40));
        let how = [End::Error, End::Panic][draw(2)];
        let engine = breaking(n_ranks, broken, n_left, how);
        let what = format!("rank {broken} of {n_ranks} after {n_left}, {how:?}");
        let mut n_passes = 0;
        loop {
            let started = Instant::now();
            let answer = engine.run(&batch());
            assert!(started.elapsed() < Duration::from_secs(1), "{what}");
            match answer {
                Ok(rows) => assert_eq!(rows.len(), 2),
                Err(EngineError::Failed(reason)) => {
                    assert!(
                        reason.starts_with(&format!("rank {broken}")),
                        "{what}: {reason}"
                    );
                    break;
                }
                Err(error) => panic!("{what}: {error:?}"),
            }
            n_passes += 1;
            assert!(n_passes <= 40, "{what}");
        }
        let started = Instant::now();
        drop(engine);
        assert!(started.elapsed() < Duration::from_secs(1), "{what}");
    }
}

#[test]
fn a_batch_that_does_not_fit_is_an_input_error_and_the_engine_goes_on() {
    let engine = RankEngine::start(&model(), layout(2), cpu(), &told()).expect("engine");
    let whole = batch();
    let classify = Task::Classify { raw_scores: false };
    let bad = [
        PackedBatch {
            ids: vec![1, 2, 3, 4, 9999],
            ..whole.clone()
        },
        PackedBatch {
            type_ids: vec![],
            ..whole.clone()
        },
        PackedBatch {
            tasks: vec![],
            ..whole.clone()
        },
        PackedBatch {
            cu_seqlens: vec![0, 5, 2],
            ..whole.clone()
        },
        PackedBatch {
            cu_seqlens: vec![0, 2, 4],
            ..whole.clone()
        },
        PackedBatch {
            tasks: vec![classify; 2],
            ..whole.clone()
        },
    ];
    for batch in bad {
        let error = engine.run(&batch).expect_err("not a batch");
        assert!(matches!(error, EngineError::Input(_)), "{error:?}");
    }
    assert_eq!(engine.run(&whole).expect("a batch").len(), 2);
    assert_eq!(engine.stats().n_tokens, 5);
    let empty = PackedBatch {
        cu_seqlens: vec![0],
        ..PackedBatch::default()
    };
    assert_eq!(engine.run(&empty).expect("nothing"), Vec::<Vec<f32>>::new());
}

/// Timed devices. Notes who asks for them, and has none for one rank.
struct Noted {
    calls: Arc<Mutex<Vec<(&'static str, String)>>>,
    without: Option<usize>,
}

impl Noted {
    fn note(&self, call: &'static str) {
        let name = thread::current().name().unwrap_or_default().to_owned();
        self.calls.lock().expect("calls").push((call, name));
    }
}

impl DeviceMaker for Noted {
    type Device = Timed<CpuDevice>;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        self.note("make");
        let rank = collective.rank();
        if self.without == Some(rank) {
            return Err(DeviceError::SetUp(format!("none for rank {rank}")));
        }
        Ok(Timed::new(cpu().make(collective)?, DType::F32, rank))
    }

    fn loaded(&self, _: &Self::Device) {
        self.note("loaded");
    }
}

#[test]
fn each_rank_has_its_device_on_a_thread_of_its_own() {
    let calls = Arc::default();
    let devices = Noted {
        calls: Arc::clone(&calls),
        without: None,
    };
    let engine = RankEngine::start(&model(), layout(2), devices, &told()).expect("engine");
    let mut of_threads = calls.lock().expect("calls").clone();
    // In order on each thread.
    of_threads.sort_by(|(_, a), (_, b)| a.cmp(b));
    let expected = ["rank-0", "rank-1"].map(|name| ["make", "loaded"].map(|c| (c, name.into())));
    assert_eq!(of_threads, expected.concat());
    let same = RankEngine::start(&model(), layout(2), cpu(), &told()).expect("engine");
    let rows = |engine: &RankEngine| engine.run(&batch()).expect("rows");
    assert_eq!(rows(&engine), rows(&same));
    assert_eq!(engine.stats(), same.stats());
}

#[test]
fn a_rank_without_a_device_is_an_error() {
    let devices = Noted {
        calls: Arc::default(),
        without: Some(1),
    };
    let error = RankEngine::start(&model(), layout(3), devices, &told()).err();
    assert_eq!(
        error.expect("a device is missing").to_string(),
        "cannot set up the device: none for rank 1"
    );
}

#[test]
fn stats_are_those_of_every_rank_after_its_last_answer() {
    let engine = RankEngine::start(&model(), layout(2), cpu(), &told()).expect("engine");
    let loaded = engine.stats();
    assert!(loaded.expert_bytes.iter().all(|&n| n > 0), "{loaded:?}");
    assert_eq!(
        (&loaded.expert_multiply_adds[..], loaded.n_tokens),
        (&[0, 0][..], 0)
    );
    engine.run(&batch()).expect("rows");
    let first = engine.stats();
    assert!(
        first.expert_multiply_adds.iter().all(|&n| n > 0),
        "{first:?}"
    );
    engine.run(&batch()).expect("rows");
    let twice: Vec<_> = first.expert_multiply_adds.iter().map(|n| 2 * n).collect();
    assert_eq!(engine.stats().expert_multiply_adds, twice);
    assert_eq!(engine.stats().expert_bytes, loaded.expert_bytes);
}

#[test]
fn impossible_layouts_are_refused_before_loading() {
    let has_read = Arc::new(AtomicBool::new(false));
    let told: Arc<dyn Fn(u64) + Send + Sync> = {
        let has_read = Arc::clone(&has_read);
        Arc::new(move |_| has_read.store(true, Ordering::Relaxed))
    };
    let refused = |layout| match RankEngine::start(&model(), layout, cpu(), &told) {
        Ok(_) => panic!("{layout:?} was accepted"),
        Err(error) => error.to_string(),
    };
    assert_eq!(
        refused(layout(41)),
        "layer 1: d_ff 40 cannot be split over 41 ranks"
    );
    assert!(refused(layout(0)).contains("at least 1"));
    let replicated = Layout {
        strategy: Strategy::Replicated,
        ..layout(65)
    };
    assert_eq!(
        refused(replicated),
        "65 ranks in one process, expected at most 64"
    );
    assert!(!has_read.load(Ordering::Relaxed));
}

fn overlap(n_tokens: usize) -> Overlap {
    Overlap {
        n_tokens,
        needs_streams: false,
    }
}

#[test]
fn micro_batches_have_the_bits_of_the_whole_batch() {
    let lengths = [7, 1, 12, 3, 5, 2, 9, 4, 6];
    let mut batch = PackedBatch {
        cu_seqlens: vec![0],
        ..PackedBatch::default()
    };
    for n in lengths {
        batch.ids.extend((0..n).map(|i| (i * n) as u32 % 11));
        batch.cu_seqlens.push(batch.ids.len());
        batch.tasks.push(Task::Embed {
            normalize: false,
            dimensions: Some(n),
        });
    }
    batch.type_ids = vec![0; batch.ids.len()];
    for n_ranks in 1..=4 {
        for strategy in [Strategy::Sharded, Strategy::Parallel] {
            let rows = |n_tokens: Option<usize>| {
                let layout = Layout {
                    strategy,
                    overlap: n_tokens.map(overlap),
                    ..layout(n_ranks)
                };
                assert_eq!(
                    layout.splits(batch.ids.len(), 1),
                    n_ranks > 1 && n_tokens == Some(batch.ids.len())
                );
                let engine = RankEngine::start(&model(), layout, cpu(), &told());
                engine.expect("it loads").run(&batch).expect("rows")
            };
            let n = batch.ids.len();
            let whole = rows(None);
            let widths: Vec<_> = whole.iter().map(Vec::len).collect();
            assert_eq!(widths, lengths);
            assert_eq!(rows(Some(n)), whole, "{n_ranks} ranks");
            assert_eq!(rows(Some(n + 1)), whole, "{n_ranks} ranks");
        }
    }
    let limited = Layout {
        strategy: Strategy::Capacity { factor: 1.5 },
        overlap: Some(overlap(1)),
        ..layout(2)
    };
    assert!(!limited.splits(100, 2));
    let needs_streams = Layout {
        overlap: Some(Overlap {
            needs_streams: true,
            ..overlap(1)
        }),
        ..layout(2)
    };
    assert!(needs_streams.splits(100, 2) && !needs_streams.splits(100, 1));
}
