//! Tables C, D and E: training on MNIST under label skew, topology by topology.

use std::io::Write;

use anyhow::Result;
use clap::Parser;

use super::Verdicts;
use crate::train::args::{TrainArgs, TrainConfig};
use crate::train::ranks::Ranks;
use crate::train::run::{self, Network};
use crate::train::task::{self, LoadedTask};

/// One table: the same training on several topologies.
#[derive(Debug)]
pub(super) struct Table {
    title: &'static str,
    /// Flags of all rows.
    flags: &'static str,
    /// Seeds 1 to this one are averaged.
    n_seeds: u64,
    rows: &'static [Row],
}

/// One topology.
#[derive(Debug)]
struct Row {
    flags: &'static str,
    /// Accuracy in percent, mean over nodes, after some epochs.
    reference: &'static [(u64, f64)],
    /// Most points that the last of them may differ; none where the figure is for comparison only.
    tolerance: Option<f64>,
    /// A row is better than all rows of a higher tier; `None` if that is not said.
    tier: Option<u8>,
}

/// A row that may differ by a point.
const fn row(flags: &'static str, tier: u8, reference: &'static [(u64, f64)]) -> Row {
    Row {
        flags,
        reference,
        tolerance: Some(1.0),
        tier: Some(tier),
    }
}

const C: Table = Table {
    title: "C: MNIST, linear, 100 nodes of two shards each",
    flags: "--task mnist --train-examples 50000 --nodes 100 --partition shards:k=2 --batch-size 128 \
            --learning-rate 0.1 --epochs 20 --evaluate-every 5",
    n_seeds: 3,
    rows: &[
        row(
            "--topology complete",
            0,
            &[(5, 88.66), (10, 89.86), (20, 90.73)],
        ),
        row(
            "--topology stl-fw:d=10",
            1,
            &[(5, 88.37), (10, 89.72), (20, 90.64)],
        ),
        row(
            "--topology d-cliques --clique-averaging",
            1,
            &[(5, 88.35), (10, 89.69), (20, 90.59)],
        ),
        row(
            "--topology d-cliques",
            2,
            &[(5, 87.79), (10, 89.45), (20, 90.47)],
        ),
        row(
            "--topology stl-fw:d=5",
            2,
            &[(5, 86.94), (10, 89.27), (20, 90.40)],
        ),
        row(
            "--topology random:d=10",
            3,
            &[(5, 82.20), (10, 87.38), (20, 89.32)],
        ),
        Row {
            flags: "--topology exponential",
            reference: &[(5, 81.79), (10, 86.36), (20, 88.68)],
            tolerance: Some(1.0),
            tier: None,
        },
        Row {
            flags: "--topology ring",
            reference: &[(5, 51.74), (10, 58.38), (20, 65.21)],
            tolerance: Some(5.0),
            tier: Some(4),
        },
    ],
};

const D: Table = Table {
    title: "D: MNIST, linear, 100 nodes of one class each",
    flags: "--task mnist --train-examples 50000 --nodes 100 --partition one-class --batch-size 128 \
            --learning-rate 0.1 --epochs 100 --evaluate-every 20",
    n_seeds: 3,
    rows: &[
        one_class("--topology complete", &[(100, 91.91)]),
        one_class("--topology stl-fw:d=9", &[(100, 91.90)]),
        one_class("--topology d-cliques --clique-averaging", &[(100, 91.88)]),
        one_class("--topology d-cliques", &[(100, 91.75)]),
        one_class(
            "--topology d-cliques:inter=ring --clique-averaging",
            &[(100, 91.60)],
        ),
        one_class("--topology random:d=10", &[(100, 90.24)]),
        one_class("--topology exponential", &[(100, 90.06)]),
        one_class("--topology stl-fw:d=5", &[(100, 89.29)]),
        one_class("--topology stl-fw:d=3", &[(100, 73.38)]),
        Row {
            flags: "--topology ring",
            reference: &[(100, 52.77)],
            tolerance: Some(5.0),
            tier: None,
        },
    ],
};

const E: Table = Table {
    title: "E: MNIST, linear, 1,000 nodes of two shards each",
    flags: "--task mnist --train-examples 50000 --nodes 1000 --partition shards:k=2 --batch-size 13 \
            --learning-rate 0.1 --epochs 10 --evaluate-every 5",
    n_seeds: 1,
    rows: &[
        one_class("--topology complete", &[(10, 89.83)]),
        one_class("--topology d-cliques --clique-averaging", &[(10, 89.54)]),
        one_class("--topology stl-fw:d=10", &[(10, 88.65)]),
        for_comparison(
            "--topology d-cliques:inter=ring --clique-averaging",
            &[(10, 86.43)],
        ),
        for_comparison("--topology random:d=10", &[(10, 86.35)]),
    ],
};

/// A row that may differ by a point, in a table without an order.
const fn one_class(flags: &'static str, reference: &'static [(u64, f64)]) -> Row {
    Row {
        flags,
        reference,
        tolerance: Some(1.0),
        tier: None,
    }
}

const fn for_comparison(flags: &'static str, reference: &'static [(u64, f64)]) -> Row {
    Row {
        flags,
        reference,
        tolerance: None,
        tier: None,
    }
}

/// The table of that name.
pub(super) fn table(name: &str) -> Option<&'static Table> {
    match name {
        "c" => Some(&C),
        "d" => Some(&D),
        "e" => Some(&E),
        _ => None,
    }
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    train: TrainArgs,
}

/// Trains on each topology of a table and compares.
pub(super) fn run(
    out: &mut impl Write,
    verdicts: &mut Verdicts,
    table: &Table,
    args: &TrainArgs,
) -> Result<()> {
    writeln!(out, "{}\nmoeshard train {}", table.title, table.flags)?;
    writeln!(
        out,
        "mean accuracy over nodes in %, seeds 1 to {} (reference)",
        table.n_seeds
    )?;
    let mut task = None;
    let mut tiers: Vec<(u8, f64)> = Vec::new();
    for row in table.rows {
        let mut sums = vec![0.0; row.reference.len()];
        let mut seconds = 0.0;
        for seed in 1..=table.n_seeds {
            let seed = seed.to_string();
            let config = config(&[table.flags, row.flags, "--seed", &seed], args)?;
            let task = match &mut task {
                Some(task) => task,
                none => none.insert(task::load(&config.task)?),
            };
            seconds += train(&config, task, row, &mut sums)? / table.n_seeds as f64;
        }
        let means: Vec<f64> = sums.iter().map(|sum| sum / table.n_seeds as f64).collect();
        write!(out, "{:<52}", row.flags)?;
        for (mean, (epoch, reference)) in means.iter().zip(row.reference) {
            write!(out, " e{epoch} {mean:.2} ({reference:.2})")?;
        }
        let last = means.last().copied().unwrap_or(f64::NAN);
        let reference = row
            .reference
            .last()
            .map_or(f64::NAN, |&(_, accuracy)| accuracy);
        let verdict = match row.tolerance {
            Some(tolerance) if last > reference + tolerance => "better",
            Some(tolerance) => verdicts.of(last >= reference - tolerance),
            None => "",
        };
        writeln!(out, "  {seconds:.2} s  {verdict}")?;
        tiers.extend(row.tier.map(|tier| (tier, last)));
    }
    if !tiers.is_empty() {
        let is_ordered = tiers.iter().all(|&(tier, accuracy)| {
            let lower = tiers.iter().filter(|(other, _)| *other > tier);
            lower.into_iter().all(|&(_, other)| accuracy > other)
        });
        writeln!(out, "order of topologies: {}", verdicts.of(is_ordered))?;
    }
    Ok(())
}

/// What these flags say, with the data and the threads of `args`.
pub(super) fn config(flags: &[&str], args: &TrainArgs) -> Result<TrainConfig> {
    let flags = flags.iter().flat_map(|flags| flags.split_whitespace());
    let mut parsed = Flags::try_parse_from(["train"].into_iter().chain(flags))?.train;
    parsed.task.data.clone_from(&args.task.data);
    parsed.model.compute.threads = args.model.compute.threads;
    TrainConfig::try_from(parsed)
}

/// Adds the accuracies of one run in percent to `sums`; returns its seconds of training.
fn train(config: &TrainConfig, task: &LoadedTask, row: &Row, sums: &mut [f64]) -> Result<f64> {
    let network = Network::new(config, task, &*config.topologies[0])?;
    let evaluations = run::run(config, task, &network, &Ranks::Alone, None)?.evaluations;
    for (sum, &(epoch, _)) in sums.iter_mut().zip(row.reference) {
        let found = evaluations.iter().find(|e| e.epoch == epoch as f64);
        *sum += found.map_or(f64::NAN, |e| 100.0 * e.accuracy.mean);
    }
    Ok(evaluations.last().map_or(0.0, |last| last.train_s))
}
