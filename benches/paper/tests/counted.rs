//! The work that ranks count is that of the closed form.

use clap::Parser;
use moeshard_encoder::shard::{Strategy, TILE};
use moeshard_paper::args::{Args, Choice};
use moeshard_paper::report::Row;
use moeshard_paper::run;
use moeshard_paper::skew::SkewRouter;
use moeshard_paper::work::Pass;

const D_MODEL: usize = 16;
const N_LAYERS: usize = 2;
const POPULAR: f64 = 0.1;
const STRATEGIES: &str = "sharded,parallel,capacity,capacity:1.25,replicated";

/// Every strategy at every skew with 8, 16 and 64 experts on 2 to 4 ranks.
fn rows(d_ff: usize) -> Vec<Row> {
    let flags = format!(
        "moeshard-paper --experts 8,16,64 --ranks 2,3,4 --batch 32 --length 32 --skew 0,0.2,0.4,0.6,0.8 \
         --strategies {STRATEGIES} --rounds 0 --d-model {D_MODEL} --heads 2 --layers 4 --vocab 50 \
         --popular {POPULAR} --share-cores --d-ff {d_ff}"
    );
    let args = Args::try_parse_from(flags.split(' ')).expect("flags");
    args.check().expect("sensible flags");
    run(&args).expect("rows").rows
}

fn strategy(row: &Row) -> Strategy {
    let choice = row.strategy.replace(' ', ":");
    let choice: Choice = choice.parse().expect("a strategy");
    choice.of(row.n_experts)
}

fn pass(row: &Row, d_ff: usize) -> Pass {
    Pass {
        strategy: strategy(row),
        n_layers: N_LAYERS,
        d_model: D_MODEL,
        d_ff,
        element_bytes: 4,
        n_tokens: vec![row.batch * row.length; row.n_ranks],
    }
}

/// Against the tokens that were dealt out exactly, against the probabilities of the router within a percent.
fn check_closed_forms(row: &Row, d_ff: usize) {
    let pass = pass(row, d_ff);
    let router = SkewRouter::new(row.n_experts, row.skew, POPULAR);
    let dealt = router.counts(pass.all_tokens());
    let dealt: Vec<f64> = dealt.into_iter().map(|n| n as f64).collect();
    let found: Vec<f64> = row.work.multiply_adds.iter().map(|&n| n as f64).collect();
    assert_eq!(found, pass.multiply_adds(&dealt), "{row:?}");
    assert_eq!(row.work.n_dropped as f64, pass.n_dropped(&dealt), "{row:?}");
    assert!(row.work.off < 0.01, "{row:?}");
    let all = (2 * D_MODEL * d_ff * N_LAYERS * pass.all_tokens()) as f64;
    let dropped = row.work.n_dropped as f64 * (2 * D_MODEL * d_ff) as f64;
    let sum: f64 = found.iter().sum();
    assert_eq!(sum + dropped, all, "done or dropped: {row:?}");
    if !matches!(pass.strategy, Strategy::Capacity { .. }) {
        assert_eq!(row.work.n_dropped, 0);
    }
}

/// What the paper's figure says, written down once more without any code of the engine's.
fn check_balance(row: &Row) {
    let max_over_mean = row.work.max_over_mean.expect("work");
    let (n_experts, n_ranks) = (row.n_experts, row.n_ranks);
    if row.strategy == "replicated" {
        assert_eq!(max_over_mean, 1.0);
    }
    let held = n_experts / n_ranks;
    if row.strategy == "parallel" && n_experts.is_multiple_of(n_ranks) && row.n_popular <= held {
        // The first rank has all popular experts.
        let (k, even) = (row.n_popular as f64, held as f64 / n_experts as f64);
        let share = (even + k * row.skew) / (1.0 + k * row.skew);
        let expected = share * n_ranks as f64;
        assert!(
            (max_over_mean / expected - 1.0).abs() < 0.01,
            "{expected}: {row:?}"
        );
    }
}

#[test]
fn where_tiles_divide_sharded_work_is_even_whatever_the_skew() {
    // 12 tiles over 2, 3 and 4 ranks.
    let d_ff = 12 * TILE;
    let rows = rows(d_ff);
    assert_eq!(rows.len(), 3 * 3 * 5 * 5);
    for row in &rows {
        check_closed_forms(row, d_ff);
        check_balance(row);
        if row.strategy == "sharded" {
            assert_eq!(row.work.max_over_mean, Some(1.0), "{row:?}");
        }
    }
    let skewed = |strategy: &str| {
        let mut rows = rows.iter();
        let row = rows.find(|row| {
            row.strategy == strategy && row.n_ranks == 4 && row.n_experts == 64 && row.skew == 0.8
        });
        row.expect("a row").clone()
    };
    // Six popular experts of 64 have nearly nine tenths of the tokens.
    assert!(skewed("parallel").work.max_over_mean > Some(3.4));
    assert_eq!(skewed("capacity 50").work.n_dropped, 0);
    let tight = skewed("capacity 1.25").work;
    assert!(tight.n_dropped > tight.n_assignments / 2, "{tight:?}");
}

#[test]
fn elsewhere_sharded_ranks_are_at_most_one_tile_apart() {
    // 12 tiles and a half.
    let d_ff = 12 * TILE + TILE / 2;
    for row in &rows(d_ff) {
        check_closed_forms(row, d_ff);
        check_balance(row);
        if row.strategy != "sharded" {
            continue;
        }
        let work = &row.work.multiply_adds;
        let (most, least) = (work.iter().max(), work.iter().min());
        let apart = most.expect("a rank") - least.expect("a rank");
        let n_tokens = row.n_ranks * row.batch * row.length;
        let tile = 2 * D_MODEL * TILE * N_LAYERS * n_tokens;
        assert!(apart <= tile as u64, "{row:?}");
    }
}
