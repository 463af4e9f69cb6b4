//! Table B: decentralized estimation of a mean, learned against random topologies.

use std::io::Write;

use anyhow::Result;
use moeshard_decentralized::mean_estimation::MeanEstimation;
use moeshard_decentralized::seed;
use moeshard_decentralized::topology::stl_fw::{Lambda, StlFw};
use moeshard_decentralized::topology::{Nodes, RandomRegular, Topology};

use super::Verdicts;

const N_NODES: usize = 100;
const N_CLASSES: usize = 10;
const N_ROUNDS: usize = 50;
const N_RUNS: u64 = 100;
const STEP_SIZES: [f64; 9] = [0.001, 0.005, 0.007, 0.01, 0.03, 0.05, 0.07, 0.1, 0.5];
/// Variance of the gradient's noise: `2(θ − x)` with unit noise of `x`.
const NOISE: f64 = 4.0;
/// By which a figure may differ from the reference, which is the mean of ten runs.
const FACTOR: f64 = 1.7;

/// `(m, degree, error with STL-FW, error with a random graph)`
const REFERENCE: [(f64, usize, f64, f64); 10] = [
    (5.0, 3, 0.148, 0.316),
    (10.0, 3, 0.46, 0.79),
    (25.0, 3, 1.90, 4.55),
    (50.0, 3, 5.6, 17.0),
    (100.0, 3, 17.3, 24.4),
    (5.0, 9, 0.0027, 0.027),
    (10.0, 9, 0.0047, 0.106),
    (25.0, 9, 0.0145, 0.43),
    (50.0, 9, 0.028, 1.09),
    (100.0, 9, 0.117, 3.67),
];

pub(super) fn run(out: &mut impl Write, verdicts: &mut Verdicts) -> Result<()> {
    writeln!(
        out,
        "mean estimation, {N_NODES} nodes, error after {N_ROUNDS} rounds, best step size, mean of {N_RUNS} runs"
    )?;
    writeln!(
        out,
        "    m  d  STL-FW (reference)      random (reference)      ratio"
    )?;
    for (m, degree, learned_reference, random_reference) in REFERENCE {
        let [learned, random] = errors(m, degree)?;
        let is_close =
            |error: f64, reference: f64| (reference / FACTOR..=reference * FACTOR).contains(&error);
        let is_ok = is_close(learned, learned_reference)
            && is_close(random, random_reference)
            && (degree < 9 || m < 10.0 || random / learned > 10.0);
        writeln!(
            out,
            "{m:5} {degree:2}  {learned:<8.4} ({learned_reference:<8})   {random:<8.4} ({random_reference:<8})   {:5.1}  {}",
            random / learned,
            verdicts.of(is_ok),
        )?;
    }
    Ok(())
}

/// Errors with the best step size: with the learned topology, and with a random one.
fn errors(m: f64, degree: usize) -> Result<[f64; 2]> {
    let mut sums = [[0.0; STEP_SIZES.len()]; 2];
    for run in 0..N_RUNS {
        let mut rng = seed::rng(run, degree as u64);
        let problem = MeanEstimation::new(N_NODES, N_CLASSES, m, &mut rng);
        let classes = problem.classes();
        let nodes = Nodes {
            n_nodes: N_NODES,
            classes: Some(&classes),
        };
        let learned = StlFw {
            lambda: Lambda::Derived {
                class_distance: problem.class_distance(),
                noise: NOISE,
            },
            ..StlFw::new(degree)
        };
        let random = RandomRegular { degree };
        for (topology, sums) in [&learned as &dyn Topology, &random]
            .into_iter()
            .zip(&mut sums)
        {
            let schedule = topology.connect(&nodes, &mut rng)?;
            let errors = problem.errors(schedule.mixing(0), &STEP_SIZES, N_ROUNDS, &mut rng);
            sums.iter_mut()
                .zip(errors)
                .for_each(|(sum, error)| *sum += error);
        }
    }
    let best = |sums: [f64; STEP_SIZES.len()]| sums.into_iter().fold(f64::INFINITY, f64::min);
    Ok(sums.map(|sums| best(sums) / N_RUNS as f64))
}
