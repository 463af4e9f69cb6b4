//! Ranks that read each other's memory, or exchange by a library, against sums and lists on the host.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_tensor::collective::{Collective, CollectiveError, in_process};
use moeshard_tensor::device::{Device, DeviceError, Routing};
use moeshard_tensor::dtype::DType;

type Gpu = CudaDevice<Emulated>;

const LINKS: [&str; 2] = ["peers", "nccl"];
const PATIENCE: Duration = Duration::from_secs(60);

/// What each rank's device gives, all at once.
fn on_ranks<T: Send>(
    link: &str,
    n_ranks: usize,
    dtype: DType,
    deadline: Duration,
    run: impl Fn(usize, Gpu) -> T + Sync,
) -> Vec<T> {
    let world = PeerWorld::new(n_ranks, deadline);
    let ends = in_process(n_ranks, PATIENCE);
    let start = |rank: usize, end: Box<dyn Collective>, world: &Arc<PeerWorld>| {
        let driver = match link {
            "nccl" => Emulated::with_nccl().expect("a library"),
            _ => Emulated::new(),
        };
        let device = CudaDevice::new(CudaConfig { dtype }, driver, end).expect("a device");
        let device = match link {
            "nccl" => device.join_nccl(deadline).expect("a world"),
            _ => device.meet_peers(world).expect("peers"),
        };
        let is_alone = n_ranks == 1 && link == "peers";
        assert_eq!(device.exchange(), if is_alone { "host" } else { link });
        run(rank, device)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (ends.into_iter().enumerate())
            .map(|(rank, end)| {
                let (start, world) = (&start, &world);
                scope.spawn(move || start(rank, Box::new(end), world))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank that ends"))
            .collect()
    })
}

/// Multiples of an eighth, which every dtype holds, and sums of a few of them too.
fn number(rank: usize, round: usize, row: usize, col: usize) -> f32 {
    ((rank * 7 + round * 5 + row * 3 + col) % 31) as f32 / 8.0
}

fn rows(rank: usize, round: usize, n_rows: usize, n_cols: usize) -> Vec<f32> {
    (0..n_rows * n_cols)
        .map(|i| number(rank, round, i / n_cols, i % n_cols))
        .collect()
}

/// Rows of each rank, over and over and each time more or fewer.
const COUNTS: [&[&[usize]]; 4] = [
    &[&[5]],
    &[&[3, 8], &[0, 1], &[40, 17], &[3, 8], &[3, 8]],
    &[&[1, 0, 2], &[0, 0, 0], &[33, 1, 20], &[1, 0, 2]],
    &[&[9, 8, 9, 8], &[0, 0, 70, 0], &[9, 8, 9, 8]],
];

fn check_rows(link: &str, dtype: DType, n_cols: usize) {
    for rounds in COUNTS {
        let n_ranks = rounds[0].len();
        on_ranks(link, n_ranks, dtype, PATIENCE, |rank, device| {
            for (round, counts) in rounds.iter().enumerate() {
                let what = format!("{dtype}, {counts:?}, rank {rank}");
                let mine = rows(rank, round, counts[rank], n_cols);
                let x = device.rows_from_host(&mine, n_cols).expect("rows");
                let all = device.all_gather(&x, counts).expect("rows of all");
                let expected: Vec<f32> = (counts.iter().enumerate())
                    .flat_map(|(rank, n)| rows(rank, round, *n, n_cols))
                    .collect();
                assert_eq!(device.to_host(&all).expect("rows"), expected, "{what}");

                // Every rank has something to say about every row.
                let n_all = counts.iter().sum::<usize>();
                let partial = rows(rank, round, n_all, n_cols);
                let partial = device.rows_from_host(&partial, n_cols).expect("rows");
                let sum = device.reduce_scatter(&partial, counts).expect("sums");
                let first: usize = counts[..rank].iter().sum();
                let expected: Vec<f32> = (0..counts[rank] * n_cols)
                    .map(|i| {
                        let (row, col) = (first + i / n_cols, i % n_cols);
                        (0..n_ranks).map(|r| number(r, round, row, col)).sum()
                    })
                    .collect();
                assert_eq!(device.to_host(&sum).expect("sums"), expected, "{what}");
            }
        });
    }
}

#[test]
fn rows_are_gathered_and_summed_whatever_their_numbers() {
    for link in LINKS {
        check_rows(link, DType::F32, 5);
        check_rows(link, DType::F32, 8);
        check_rows(link, DType::BF16, 24);
        check_rows(link, DType::F16, 8);
        // Too many bytes for one block.
        check_rows(link, DType::F32, 516);
        check_rows(link, DType::BF16, 1032);
    }
}

#[test]
fn routings_are_gathered_and_nobody_is_sent_where_there_is_no_token() {
    LINKS.iter().for_each(|link| check_routings(link));
}

fn check_routings(link: &str) {
    const MANY: &[&[usize]] = &[&[5000, 4001], &[7, 9000]];
    let all = COUNTS.into_iter().chain([MANY]);
    for (rounds, top_k) in all.zip([1, 2, 3, 1, 1]) {
        let n_ranks = rounds[0].len();
        on_ranks(link, n_ranks, DType::F32, PATIENCE, |rank, device| {
            for counts in rounds {
                let routing = |rank: usize| Routing {
                    top_k,
                    expert_idx: (0..counts[rank] * top_k)
                        .map(|i| match i % 5 {
                            4 => Routing::DROPPED,
                            _ => ((i + rank) % 7) as u32,
                        })
                        .collect(),
                    gate_weight: rows(rank, 0, counts[rank], top_k),
                };
                let mine = device.routing_from_host(&routing(rank), 7).expect("mine");
                let all = device.all_gather_routing(&mine, counts).expect("all");
                let found = device.routing_to_host(&all).expect("all");
                let all_of = |rank: usize| routing(rank);
                let idx: Vec<_> = (0..n_ranks).flat_map(|r| all_of(r).expert_idx).collect();
                let gate: Vec<_> = (0..n_ranks).flat_map(|r| all_of(r).gate_weight).collect();
                assert_eq!(
                    (found.expert_idx, found.gate_weight),
                    (idx, gate),
                    "{counts:?}"
                );
            }
        });
    }
}

/// Gathers a row of each rank, and says how that went.
fn gather(device: &Gpu, n_ranks: usize) -> Result<Vec<f32>, DeviceError> {
    let x = device.rows_from_host(&[1.0; 4], 4)?;
    let all = device.all_gather(&x, &vec![1; n_ranks])?;
    device.to_host(&all)
}

#[test]
fn a_rank_that_leaves_is_noticed_at_once() {
    let start = Instant::now();
    on_ranks("peers", 3, DType::F32, PATIENCE, |rank, device| {
        assert_eq!(gather(&device, 3).expect("all are here"), [1.0; 12]);
        if rank == 1 {
            return;
        }
        let error = gather(&device, 3).expect_err("rank 1 is gone");
        let DeviceError::Collective(CollectiveError::Poisoned { rank: at, .. }) = error else {
            panic!("{error}")
        };
        assert_eq!(at, rank);
    });
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
}

#[test]
fn a_rank_that_does_not_come_is_waited_for_until_the_deadline() {
    let deadline = Duration::from_millis(300);
    on_ranks("peers", 2, DType::F32, deadline, |rank, device| {
        assert!(gather(&device, 2).is_ok());
        if rank == 1 {
            thread::sleep(3 * deadline);
            // What the other had brought is there, but it comes no more.
            assert!(gather(&device, 2).is_ok());
            assert!(gather(&device, 2).is_err());
            return;
        }
        let start = Instant::now();
        let error = gather(&device, 2).expect_err("rank 1 sleeps");
        let waited = start.elapsed();
        assert!(
            matches!(
                error,
                DeviceError::Collective(CollectiveError::Deadline { .. })
            ),
            "{error}"
        );
        assert!(waited >= deadline && waited < 3 * deadline, "{waited:?}");
        // It waits for nobody any more.
        assert!(gather(&device, 2).is_err());
        assert!(start.elapsed() < 3 * deadline);
    });
}

#[test]
fn a_rank_that_leaves_is_noticed_by_the_library() {
    on_ranks("nccl", 3, DType::F32, PATIENCE, |rank, device| {
        assert_eq!(gather(&device, 3).expect("all are here"), [1.0; 12]);
        if rank == 1 {
            return;
        }
        let error = gather(&device, 3).expect_err("rank 1 is gone").to_string();
        assert!(
            error.starts_with("nccl_all_gather failed on the device: remote"),
            "{error}"
        );
    });
}

#[test]
fn ranks_without_the_library_use_the_host() {
    let ends = in_process(2, PATIENCE);
    thread::scope(|scope| {
        for (rank, end) in ends.into_iter().enumerate() {
            scope.spawn(move || {
                let driver = match rank {
                    0 => Emulated::with_nccl().expect("a library"),
                    _ => Emulated::new(),
                };
                let config = CudaConfig { dtype: DType::F32 };
                let device = CudaDevice::new(config, driver, Box::new(end)).expect("a device");
                let device = device.join_nccl(PATIENCE).expect("nobody joins");
                assert_eq!(device.exchange(), "host");
                assert_eq!(gather(&device, 2).expect("rows"), [1.0; 8]);
            });
        }
    });
}
