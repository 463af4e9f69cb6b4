//! Table A: STL-FW where every step is known exactly: nodes of one class each.

use std::io::Write;

use anyhow::Result;
use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::seed;
use moeshard_decentralized::topology::Nodes;
use moeshard_decentralized::topology::stl_fw::{Lambda, StlFw};

use super::Verdicts;

const N_NODES: usize = 100;
const N_CLASSES: usize = 10;
/// Largest difference from the exact value.
const TOLERANCE: f64 = 1e-9;

/// Bias `1/(l+1) − 1/K` and variance `1/(l+1) − 1/n` after `l` iterations, whatever λ is.
pub(super) fn run(out: &mut impl Write, verdicts: &mut Verdicts) -> Result<()> {
    let counts = (0..N_NODES)
        .flat_map(|node| (0..N_CLASSES).map(move |class| u32::from(class == node % N_CLASSES)));
    let classes = ClassCounts::new(N_CLASSES, counts.collect());
    let nodes = Nodes {
        n_nodes: N_NODES,
        classes: Some(&classes),
    };
    writeln!(
        out,
        "STL-FW, {N_NODES} nodes of one of {N_CLASSES} classes each"
    )?;
    writeln!(
        out,
        "lambda   l  degree  bias        variance    worst error"
    )?;
    for lambda in [0.0, 0.01, 0.1, 0.5, 1.0] {
        let rule = StlFw {
            lambda: Lambda::Given(lambda),
            ..StlFw::new(9)
        };
        let learned = rule.learn(&nodes, &mut seed::rng(1, 0))?;
        for (l, iteration) in learned.trace.iter().enumerate().take(10) {
            let share = 1.0 / (l as f64 + 1.0);
            let bias = share - 1.0 / N_CLASSES as f64;
            let variance = share - 1.0 / N_NODES as f64;
            let found = iteration.heterogeneity;
            let off = (found.bias - bias)
                .abs()
                .max((found.variance - variance).abs());
            let is_close = off <= TOLERANCE && iteration.max_degree == l;
            writeln!(
                out,
                "{lambda:<6} {l:3}  {:6}  {:.8}  {:.8}  {off:.1e}  {}",
                iteration.max_degree,
                found.bias,
                found.variance,
                verdicts.of(is_close),
            )?;
        }
    }
    Ok(())
}
