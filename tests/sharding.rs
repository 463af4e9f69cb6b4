//! Sharding is real: what a rank holds, what it multiplies, and that every part counts.

use std::time::Duration;

use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Shares, Strategy, TILE};
use moeshard_encoder::spec::{
    DenseFfnSpec, EncoderSpec, ExpertSpec, ExpertsSpec, FfnSpec, MatrixRef, TensorRef,
};
use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::collective::{Collective, CollectiveError, InProcess, in_process};
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::device::RouterRule;
use moeshard_tests::compare::{Random, assert_close, max_abs_error, unit};
use moeshard_tests::golden;
use moeshard_tests::weights::{self, Tensors};
use moeshard_tests::world::{Layout, run, run_over};

fn nomic() -> (Model, Vec<Vec<u32>>) {
    let model = Model::open(&golden::folder("nomic_moe")).expect("nomic_moe");
    let golden = golden::read("nomic_moe", "golden.json");
    (model, golden.sequences.into_iter().map(|s| s.ids).collect())
}

/// Every kernel path on 1 to 4 ranks.
fn isas_and_world_sizes() -> Vec<(Isa, usize)> {
    let sizes = |isa| (1..=4).map(move |n_ranks| (isa, n_ranks));
    Isa::available().into_iter().flat_map(sizes).collect()
}

#[test]
fn each_rank_holds_and_multiplies_its_share_of_every_expert() {
    let (model, sequences) = nomic();
    let n_tokens: usize = sequences.iter().map(Vec::len).sum();
    let (mut per_unit, mut n_layers) = (0, 0);
    for (_, experts) in model.spec.expert_layers() {
        per_unit = 2 * model.spec.d_model * experts.rule.top_k * n_tokens;
        n_layers += 1;
        assert_eq!(experts.d_ff, 40);
    }
    for (isa, n_ranks) in isas_and_world_sizes() {
        let layout = Layout {
            n_ranks,
            isa,
            ..Layout::default()
        };
        let (_, stats) = run(&model.spec, &model.checkpoint, layout, &sequences);
        let total: u64 = stats.iter().map(|s| s.expert_multiply_adds).sum();
        assert_eq!(
            total,
            (n_layers * per_unit * 40) as u64,
            "all work is done once"
        );
        for (rank, stat) in stats.iter().enumerate() {
            let plan = ShardPlan {
                strategy: Strategy::Sharded,
                rank,
                world_size: n_ranks,
            };
            let units = plan.hidden_units(0, 5, 40).len();
            assert!(
                units.abs_diff(40 / n_ranks) <= TILE,
                "rank {rank} of {n_ranks}: {units}"
            );
            assert_eq!(
                stat.expert_multiply_adds,
                (n_layers * per_unit * units) as u64
            );
            // Panels of sixteen outputs are padded; W_out's inputs are not.
            let bytes = 5 * 4 * 48 * (units.next_multiple_of(TILE) + units) * n_layers;
            assert_eq!(stat.expert_bytes, bytes as u64, "rank {rank} of {n_ranks}");
        }
    }
}

#[test]
fn a_rank_reads_only_its_slices() {
    let bytes_read = |n_ranks| {
        let (model, sequences) = nomic();
        let before = model.checkpoint.n_bytes_read();
        let layout = Layout {
            n_ranks,
            ..Layout::default()
        };
        run(&model.spec, &model.checkpoint, layout, &sequences);
        model.checkpoint.n_bytes_read() - before
    };
    let (model, _) = nomic();
    let expert_bytes = 2 * 5 * 2 * 40 * 48 * 4_u64;
    let other_bytes = bytes_read(1) - expert_bytes;
    assert!(bytes_read(1) <= model.checkpoint.n_bytes());
    for n_ranks in 2..=4 {
        assert_eq!(
            bytes_read(n_ranks),
            expert_bytes + n_ranks as u64 * other_bytes
        );
    }
}

#[test]
fn parallel_work_follows_the_routing_and_sharded_work_does_not() {
    let (model, sequences) = nomic();
    let work = |strategy| {
        let layout = Layout {
            n_ranks: 2,
            strategy,
            ..Layout::default()
        };
        let (runs, stats) = run(&model.spec, &model.checkpoint, layout, &sequences);
        (
            runs,
            stats
                .iter()
                .map(|s| s.expert_multiply_adds)
                .collect::<Vec<_>>(),
        )
    };
    let (runs, parallel) = work(Strategy::Parallel);
    let n_of_first_rank = runs
        .iter()
        .flat_map(|run| &run.routing)
        .flat_map(|(_, routing)| &routing.expert_idx)
        .filter(|&&e| {
            let plan = ShardPlan {
                strategy: Strategy::Parallel,
                rank: 0,
                world_size: 2,
            };
            !plan.hidden_units(e as usize, 5, 40).is_empty()
        })
        .count();
    assert_eq!(parallel[0], (n_of_first_rank * 2 * 40 * 48) as u64);
    assert_ne!(
        parallel[0], parallel[1],
        "5 experts over 2 ranks cannot be even"
    );
    // 40 units are 2½ tiles: 16 and 24.
    let (_, sharded) = work(Strategy::Sharded);
    assert_eq!(sharded[0] * 24, sharded[1] * 16);
}

#[test]
fn unequal_shares_give_the_same_and_the_work_that_they_say() {
    let (model, sequences) = nomic();
    let on = |n_ranks, strategy| {
        let layout = Layout {
            n_ranks,
            strategy,
            ..Layout::default()
        };
        run(&model.spec, &model.checkpoint, layout, &sequences)
    };
    let (expected, _) = on(1, Strategy::Sharded);
    let shares = Shares::new(&[4.0, 1.0]).expect("shares");
    let (found, stats) = on(2, Strategy::Uneven(shares));
    for (found, expected) in found.iter().zip(&expected) {
        assert_close("hidden", &found.hidden, &expected.hidden, 1e-4);
    }
    // Of 40 units, 32 and 8: in tiles of 16, the last of which is a half.
    assert_eq!(
        stats[0].expert_multiply_adds,
        4 * stats[1].expert_multiply_adds
    );
}

#[test]
fn a_batch_capacity_drops_the_overflow_and_counts_it_once() {
    let (model, sequences) = nomic();
    let n_tokens: usize = sequences.iter().map(Vec::len).sum();
    let dropless = run(
        &model.spec,
        &model.checkpoint,
        Layout::default(),
        &sequences,
    )
    .0;
    for factor in [0.5, 1.0] {
        let strategy = Strategy::Capacity { factor };
        let capacity = strategy.batch_capacity(n_tokens, 2, 5).expect("a capacity") as u64;
        let mut seen = None;
        for (isa, n_ranks) in isas_and_world_sizes() {
            let layout = Layout {
                n_ranks,
                strategy,
                isa,
                ..Layout::default()
            };
            let (runs, stats) = run(&model.spec, &model.checkpoint, layout, &sequences);
            let n_dropped: u64 = stats.iter().map(|s| s.n_dropped).sum();
            let n_run: u64 = stats.iter().map(|s| s.expert_multiply_adds).sum();
            let n_slots = 2 * 2 * n_tokens as u64;
            assert_eq!(n_run / (2 * 40 * 48) + n_dropped, n_slots, "run or dropped");
            assert!(
                n_run / (2 * 40 * 48) <= 2 * 5 * capacity,
                "no expert over its capacity"
            );
            // The first layer routes as without a capacity: its overflow is known.
            let mut load = [0_u64; 5];
            for run in &dropless {
                run.routing[0]
                    .1
                    .expert_idx
                    .iter()
                    .for_each(|&e| load[e as usize] += 1);
            }
            let first: u64 = load.iter().map(|n| n.saturating_sub(capacity)).sum();
            assert!(
                n_dropped >= first && first > 0,
                "{n_dropped} of at least {first}"
            );
            // Which tokens overflow depends on the placement, so only one rank count can agree
            // with itself.
            let again = run_counts(&model, layout, &sequences);
            assert_eq!(again, n_dropped);
            assert!(runs.iter().all(|r| r.hidden.iter().all(|x| x.is_finite())));
            seen.get_or_insert(n_dropped);
        }
        assert!(seen > Some(0));
    }
}

fn run_counts(model: &Model, layout: Layout, sequences: &[Vec<u32>]) -> u64 {
    let (_, stats) = run(&model.spec, &model.checkpoint, layout, sequences);
    stats.iter().map(|s| s.n_dropped).sum()
}

/// Forgets one rank's part of every reduction.
struct Forgetful {
    end: InProcess,
    forgotten: usize,
}

impl Collective for Forgetful {
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
        self.end.all_gather(send, counts, recv)
    }
    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let nothing = vec![0.0; send.len()];
        let send = if self.rank() == self.forgotten {
            &nothing
        } else {
            send
        };
        self.end.reduce_scatter(send, counts, recv)
    }
    fn all_reduce(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.end.all_reduce(data)
    }
    fn broadcast(&self, data: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        self.end.broadcast(data, root)
    }
}

#[test]
fn leaving_out_one_ranks_contribution_changes_the_answer() {
    let (model, sequences) = nomic();
    let whole = run(
        &model.spec,
        &model.checkpoint,
        Layout::default(),
        &sequences,
    )
    .0;
    for (isa, n_ranks) in isas_and_world_sizes() {
        for forgotten in (0..n_ranks).filter(|_| n_ranks > 1) {
            let ends = in_process(n_ranks, Duration::from_secs(60))
                .into_iter()
                .map(|end| Box::new(Forgetful { end, forgotten }) as Box<dyn Collective>)
                .collect();
            let layout = Layout {
                n_ranks,
                isa,
                ..Layout::default()
            };
            let (runs, _) = run_over(&model.spec, &model.checkpoint, layout, &sequences, ends);
            for (run, whole) in runs.iter().zip(&whole) {
                let (error, _) = max_abs_error(&unit(&run.pooled[1]), &unit(&whole.pooled[1]));
                assert!(
                    error > 1e-2,
                    "rank {forgotten} of {n_ranks} made no difference: {error}"
                );
            }
        }
    }
}

/// `model` with every FFN replaced by eight copies of itself, their hidden units permuted, behind
/// a random router whose gates sum to one: the same function, if every slice is right.
fn sparse(model: &Model, file: &std::path::Path) -> (EncoderSpec, Checkpoint) {
    let mut tensors = Tensors::new();
    for name in model.checkpoint.names() {
        // Integer tensors (position ids) stay behind.
        if let Ok(host) = model.checkpoint.read(name, &[]) {
            tensors.insert(name.to_owned(), (host.shape.clone(), host.to_f32()));
        }
    }
    let mut random = Random(7);
    let mut spec = model.spec.clone();
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        let FfnSpec::Dense(dense) = &layer.ffn else {
            continue;
        };
        let prefix = format!("sparse.{i}");
        layer.ffn = FfnSpec::Experts(copies(dense, &prefix, &mut tensors, &mut random));
    }
    weights::write(&tensors, file);
    let checkpoint = Checkpoint::open(file.parent().expect("folder")).expect("open");
    (spec, checkpoint)
}

fn copies(
    dense: &DenseFfnSpec,
    prefix: &str,
    tensors: &mut Tensors,
    random: &mut Random,
) -> ExpertsSpec {
    const N_EXPERTS: usize = 8;
    let (d_ff, d_model) = (dense.up.n_out, dense.up.n_in);
    let data = |name: &str| tensors[name].1.clone();
    let (w_in, w_out) = (
        data(&dense.up.weights[0].tensor.name),
        data(&dense.down.weights[0].tensor.name),
    );
    let (b_in, b_out) = (
        data(&dense.up.biases[0].name),
        data(&dense.down.biases[0].name),
    );
    let mut experts = Vec::new();
    for e in 0..N_EXPERTS {
        let order = random.permutation(d_ff);
        let mut put = |part: &str, shape: Vec<usize>, data: Vec<f32>| {
            let name = format!("{prefix}.{e}.{part}");
            tensors.insert(name.clone(), (shape, data));
            TensorRef::new(name)
        };
        let rows = order
            .iter()
            .flat_map(|&u| &w_in[u * d_model..(u + 1) * d_model])
            .copied();
        let columns = (0..d_model)
            .flat_map(|o| order.iter().map(move |&u| (o, u)))
            .map(|(o, u)| w_out[o * d_ff + u]);
        experts.push(ExpertSpec {
            w_in: MatrixRef::out_in(put("w_in", vec![d_ff, d_model], rows.collect())),
            b_in: Some(put(
                "b_in",
                vec![d_ff],
                order.iter().map(|&u| b_in[u]).collect(),
            )),
            w_out: MatrixRef::out_in(put("w_out", vec![d_model, d_ff], columns.collect())),
            b_out: Some(put("b_out", vec![d_model], b_out.clone())),
        });
    }
    let router = format!("{prefix}.router");
    let weights = (0..N_EXPERTS * d_model).map(|_| random.signed()).collect();
    tensors.insert(router.clone(), (vec![N_EXPERTS, d_model], weights));
    ExpertsSpec {
        d_ff,
        router: MatrixRef::out_in(TensorRef::new(router)),
        rule: RouterRule {
            top_k: 2,
            normalize: true,
        },
        activation: dense.activation,
        experts,
        output_scale: 1.0,
        shared_bias: None,
    }
}

#[test]
fn minilm_made_sparse_gives_minilms_embeddings() {
    let Some(folder) = moeshard_tests::minilm_folder() else {
        return;
    };
    let model = Model::open(&folder).expect("MiniLM");
    check_sparse(&model, &golden::read("minilm", "golden.json"), 1e-4);
}

#[test]
fn a_small_bert_made_sparse_gives_its_embeddings() {
    let model = Model::open(&golden::folder("bert_cls")).expect("bert_cls");
    check_sparse(&model, &golden::read("bert_cls", "golden.json"), 1e-4);
}

fn check_sparse(model: &Model, golden: &golden::Golden, tolerance: f32) {
    let folder = tempfile::tempdir().expect("folder");
    let (spec, checkpoint) = sparse(model, &folder.path().join("model.safetensors"));
    let sequences: Vec<_> = golden.sequences.iter().map(|s| s.ids.clone()).collect();
    for layout in sparse_layouts() {
        let (runs, stats) = run(&spec, &checkpoint, layout, &sequences);
        let busy = stats.iter().filter(|s| s.expert_multiply_adds > 0).count();
        assert_eq!(busy, layout.n_ranks, "every rank works");
        for (run, sequence) in runs.iter().zip(&golden.sequences) {
            let expected = sequence.mean_embedding.as_ref().expect("mean");
            let found = unit(&run.pooled[1]);
            assert_close(&format!("{layout:?}"), &found, expected, tolerance);
        }
    }
}

/// All strategies on 1 to 4 ranks, on every kernel path; on the plain one, which is slow, on 3
/// ranks, and only the strategy that splits matrices.
fn sparse_layouts() -> Vec<Layout> {
    let mut layouts = Vec::new();
    for (isa, n_ranks) in isas_and_world_sizes() {
        for strategy in [Strategy::Sharded, Strategy::Parallel, Strategy::Replicated] {
            let splits = n_ranks == 3 && strategy == Strategy::Sharded;
            if isa != Isa::Portable || splits {
                layouts.push(Layout {
                    n_ranks,
                    strategy,
                    isa,
                    n_threads: 2,
                    ..Layout::default()
                });
            }
        }
    }
    layouts
}
