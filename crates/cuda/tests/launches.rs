//! What a layer of experts asks of the driver: how many launches, graphs, allocations and waits.

mod support;

use std::time::Duration;

use moeshard_cuda::driver::emulated::{Counts, Emulated};
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::{Collective, Solo, in_process};
use moeshard_tensor::device::{Activation, Device, EmbeddingRows, Norm, NormKind, RouterRule};
use moeshard_tensor::dtype::DType;

use support::{experts, matrix, numbers, vector};

const D_MODEL: usize = 16;
const HIDDEN: usize = 24;

type Gpu = CudaDevice<Emulated>;

/// A layer of experts after an embedding.
struct Layer {
    device: Gpu,
    table: <Gpu as Device>::Table,
    router: <Gpu as Device>::Matrix,
    experts: <Gpu as Device>::Experts,
    norm: Norm<<Gpu as Device>::Vector>,
    top_k: usize,
}

impl Layer {
    fn new(end: Box<dyn Collective>, n_experts: usize, top_k: usize) -> Self {
        let config = CudaConfig { dtype: DType::F32 };
        let device = Gpu::new(config, Emulated::new(), end).expect("a device");
        let slices = experts(n_experts, D_MODEL, HIDDEN);
        let experts = device.load_experts(n_experts, slices, Activation::Gelu);
        let table = device.load_table(&HostTensor::from_f32(
            [9, D_MODEL],
            &numbers(9 * D_MODEL, 3),
        ));
        let router = device.load_exact_matrix(&matrix(n_experts, D_MODEL, 5));
        let norm = Norm {
            kind: NormKind::Layer,
            eps: 1e-5,
            weight: device.load_vector(&[vector(D_MODEL, 1)]).expect("a norm"),
            bias: None,
        };
        Self {
            table: table.expect("a table"),
            router: router.expect("a router"),
            experts: experts.expect("experts"),
            norm,
            top_k,
            device,
        }
    }

    /// Runs the layer; its result, and what the layer without the embedding asked for.
    fn run(&self, ids: &[u32], n_rows: &[usize]) -> (Vec<f32>, Counts) {
        let device = &self.device;
        let rows = EmbeddingRows {
            table: &self.table,
            row_idx: ids,
            scale: 1.0,
        };
        let x = device.embed(&[rows], None).expect("an embedding");
        // What the embedding costs is not the layer's.
        device.to_host(&x).expect("rows");
        let before = device.driver().counts();
        let y = self.ask_after(&x, n_rows);
        let asked = device.driver().counts();
        let out = device.to_host(&y).expect("rows");
        let after = device.driver().counts();
        assert!(
            n_rows.len() > 1 || asked == before,
            "something ran before it was wanted"
        );
        let counts = Counts {
            n_launches: after.n_launches - before.n_launches,
            n_library: after.n_library - before.n_library,
            n_replays: after.n_replays - before.n_replays,
            n_captures: after.n_captures - before.n_captures,
            n_allocations: after.n_allocations - before.n_allocations,
            n_waits: after.n_waits - before.n_waits,
        };
        (out, counts)
    }

    /// Asks for the layer after an embedding.
    fn ask(&self, ids: &[u32], n_rows: &[usize]) -> <Gpu as Device>::Tensor {
        let rows = EmbeddingRows {
            table: &self.table,
            row_idx: ids,
            scale: 1.0,
        };
        let x = self.device.embed(&[rows], None).expect("an embedding");
        self.ask_after(&x, n_rows)
    }

    fn ask_after(&self, x: &<Gpu as Device>::Tensor, n_rows: &[usize]) -> <Gpu as Device>::Tensor {
        let device = &self.device;
        let rule = RouterRule {
            top_k: self.top_k,
            normalize: true,
        };
        let routing = device.route(x, &self.router, rule).expect("a routing");
        let y = match n_rows.len() {
            1 => device.expert_ffn(x, &routing, &self.experts),
            _ => {
                let all = device.all_gather(x, n_rows).expect("rows");
                let routing = device
                    .all_gather_routing(&routing, n_rows)
                    .expect("routing");
                let partial = device.expert_ffn(&all, &routing, &self.experts);
                device.reduce_scatter(&partial.expect("a sum"), n_rows)
            }
        };
        let mut y = device.scale(&y.expect("a sum"), 0.5).expect("a product");
        device
            .add(&mut y, x, None, Some(&self.norm))
            .expect("a norm");
        y
    }
}

/// Ids below nine, of which `seed` chooses: other ids are routed otherwise.
fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 5 + seed) % 9) as u32).collect()
}

#[test]
fn a_layer_is_six_launches_whatever_the_experts_and_the_routing() {
    for (n_experts, top_k, n_tokens) in [(1, 1, 1), (2, 2, 40), (40, 1, 7), (65, 3, 700)] {
        let layer = Layer::new(Box::new(Solo), n_experts, top_k);
        for seed in [0, 1, 4] {
            // With residual and norm.
            let (_, counts) = layer.run(&ids(n_tokens, seed), &[n_tokens]);
            assert_eq!(
                counts.n_launches, 6,
                "{n_experts} experts, {n_tokens} tokens"
            );
            // For the result alone.
            assert_eq!(counts.n_waits, 1);
        }
    }
}

#[test]
fn ranks_have_one_launch_more_for_what_is_added_to_their_sum() {
    for n_ranks in [2, 3] {
        let ends = in_process(n_ranks, Duration::from_secs(60));
        let n_rows = vec![5; n_ranks];
        std::thread::scope(|scope| {
            for end in ends {
                let n_rows = &n_rows;
                scope.spawn(move || {
                    let layer = Layer::new(Box::new(end), 4, 2);
                    let (_, counts) = layer.run(&ids(5, 2), n_rows);
                    // Scaled and added to are two more here, where the sum comes from other ranks.
                    assert_eq!(counts.n_launches, 6 + 2);
                });
            }
        });
    }
}

#[test]
fn ranks_that_reach_each_other_launch_the_same_whatever_their_number() {
    let mut of_worlds = Vec::new();
    for n_ranks in [2, 3, 5] {
        let ends = in_process(n_ranks, Duration::from_secs(60));
        let world = PeerWorld::new(n_ranks, Duration::from_secs(60));
        let n_rows = vec![5; n_ranks];
        let counts: Vec<Counts> = std::thread::scope(|scope| {
            let threads: Vec<_> = ends
                .into_iter()
                .map(|end| {
                    let (n_rows, world) = (&n_rows, &world);
                    scope.spawn(move || {
                        let mut layer = Layer::new(Box::new(end), 4, 2);
                        layer.device = layer.device.meet_peers(world).expect("peers");
                        // The first makes room piece by piece, the second is new, the third captured.
                        let passes = [1, 2, 3, 4].map(|seed| layer.run(&ids(5, seed), n_rows).1);
                        passes[3]
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("a rank"))
                .collect()
        });
        for counts in &counts {
            assert_eq!(*counts, counts_of(counts.n_launches));
        }
        of_worlds.extend(counts.iter().map(|counts| counts.n_launches));
    }
    // Six of the layer, two for what is added, and an exchange each of rows, routings and sums.
    assert!(of_worlds.iter().all(|&n| n == 6 + 2 + 3), "{of_worlds:?}");
}

/// One graph, and two waits: for the result, and for whether the others had come.
fn counts_of(n_launches: u64) -> Counts {
    Counts {
        n_launches,
        n_replays: 1,
        n_waits: 2,
        ..Counts::default()
    }
}

#[test]
fn passes_of_about_a_size_share_a_graph_and_allocate_nothing() {
    let layer = Layer::new(Box::new(Solo), 6, 2);
    let lone = |seed: usize, n| Layer::new(Box::new(Solo), 6, 2).run(&ids(n, seed), &[n]).0;
    for (i, (n_tokens, seed)) in [(20, 0), (32, 1), (17, 2), (32, 3)].into_iter().enumerate() {
        let (out, counts) = layer.run(&ids(n_tokens, seed), &[n_tokens]);
        // Launch by launch when it is new, then captured, then only replayed.
        assert_eq!(counts.n_captures, u64::from(i == 1), "pass {i}");
        assert_eq!(counts.n_replays, u64::from(i > 0), "pass {i}");
        assert_eq!(counts.n_allocations > 0, i == 0, "pass {i}");
        assert_eq!(out, lone(seed, n_tokens), "pass {i}");
    }
    // A larger batch needs more memory, which moves; graphs that know the old place are not used.
    for (n_tokens, seed) in [(300, 4), (20, 5), (300, 6), (20, 7), (300, 8)] {
        let (out, _) = layer.run(&ids(n_tokens, seed), &[n_tokens]);
        assert_eq!(out, lone(seed, n_tokens), "{n_tokens} tokens");
    }
}

#[test]
fn graphs_that_are_not_used_make_room() {
    let config = CudaConfig { dtype: DType::F32 };
    let device = Gpu::new(config, Emulated::new(), Box::new(Solo)).expect("a device");
    let table = |width| device.load_table(&HostTensor::from_f32([1, width], &numbers(width, 1)));
    let tables: Vec<_> = (1..80)
        .map(|width| table(width).expect("a table"))
        .collect();
    // How often a graph ran in one pass: another list for each table.
    let run = |table| {
        let before = device.driver().counts();
        let rows = EmbeddingRows {
            table,
            row_idx: &[0],
            scale: 1.0,
        };
        let x = device.embed(&[rows], None).expect("an embedding");
        device.to_host(&x).expect("rows");
        device.driver().counts().n_replays - before.n_replays
    };
    // Once the largest was run, memory does not move any more.
    tables.iter().rev().for_each(|table| {
        run(table);
    });
    // The first are the last that ran; what ran long before them is forgotten.
    assert_eq!(run(&tables[0]), 1);
    assert_eq!(run(&tables[40]), 1);
    assert_eq!(run(&tables[78]), 0);
    assert_eq!(run(&tables[78]), 1);
    assert_eq!(run(&tables[0]), 1);
}

#[test]
fn a_batch_that_does_not_fit_is_an_error_and_the_next_one_runs() {
    let layer = Layer::new(Box::new(Solo), 3, 1);
    let run = |n_tokens: usize| {
        let ids = ids(n_tokens, 1);
        let rows = EmbeddingRows {
            table: &layer.table,
            row_idx: &ids,
            scale: 1.0,
        };
        let x = layer.device.embed(&[rows], None)?;
        layer.device.to_host(&x)
    };
    let expected = run(16).expect("it fits");
    let driver = layer.device.driver();
    driver.limit_memory(driver.n_taken() + 4096);
    let error = run(4096).expect_err("it does not fit").to_string();
    assert!(
        error.starts_with("allocate failed on the device"),
        "{error}"
    );
    assert_eq!(run(16), Ok(expected));
}

#[test]
fn streams_run_beside_each_other_and_are_waited_for_once() {
    let (n_ranks, n_tokens) = (2, 300);
    let ends = in_process(n_ranks, Duration::from_secs(60));
    let world = PeerWorld::new(n_ranks, Duration::from_secs(60));
    let counts = vec![n_tokens; n_ranks];
    std::thread::scope(|scope| {
        for end in ends {
            let (counts, world) = (&counts, &world);
            scope.spawn(move || {
                let mut layer = Layer::new(Box::new(end), 4, 2);
                layer.device = layer.device.meet_peers(world).expect("peers");
                let device = &layer.device;
                assert_eq!(device.n_streams(), 2);
                let ids = [0, 5].map(|seed| ids(n_tokens, seed));
                let alone = ids.each_ref().map(|ids| layer.run(ids, counts).0);
                // The first two rounds grow what there is and capture a graph.
                for round in 0..4 {
                    let before = device.driver().counts();
                    let asked = [0, 1].map(|stream| {
                        device.enter_stream(stream);
                        layer.ask(&ids[stream], counts)
                    });
                    let found = asked.each_ref().map(|y| device.to_host(y).expect("rows"));
                    let after = device.driver().counts();
                    assert_eq!(found, alone, "round {round}");
                    if round > 1 {
                        assert_eq!(after.n_replays - before.n_replays, 1);
                        // Rows of each stream, and whether its meetings went well.
                        assert_eq!(after.n_waits - before.n_waits, 2 + 2);
                    }
                }
                device.enter_stream(0);
            });
        }
    });
}
