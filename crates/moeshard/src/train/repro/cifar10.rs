//! CIFAR-10 with GN-LeNet under label skew: D-Cliques against every model exchanged with everybody and
//! against a random graph of as many neighbours. There are no reference figures, as accuracies depend on
//! how the images came to be; the three are compared with one another, after the same epochs.

use std::io::Write;

use anyhow::Result;

use super::Verdicts;
use super::training::config;
use crate::train::args::TrainArgs;
use crate::train::ranks::Ranks;
use crate::train::run::{self, Network};
use crate::train::task;

/// The setup of the D-Cliques paper (arXiv 2104.07365, section 6) for n = 100.
const FLAGS: &str = "--task cifar10 --nodes 100 --partition shards:k=2 --classifier gn-lenet \
                     --batch-size 20 --learning-rate 0.002 --momentum 0.9 --evaluate-every 0";
/// As many as all three take half an hour for on two cores.
const N_EPOCHS: u64 = 40;

const COMPLETE: &str = "--topology complete";
const CLIQUES: &str = "--topology d-cliques --clique-averaging";
const RANDOM: &str = "--topology random:d=10";

/// Most points of accuracy that D-Cliques may be below the complete graph.
const TOLERANCE: f64 = 2.0;
/// Points of accuracy by which D-Cliques are clearly above the random graph.
const MARGIN: f64 = 2.0;

/// Trains on the three topologies and compares.
pub(super) fn run(out: &mut impl Write, verdicts: &mut Verdicts, args: &TrainArgs) -> Result<()> {
    let epochs = args.method.epochs.unwrap_or(N_EPOCHS);
    writeln!(
        out,
        "CIFAR-10, GN-LeNet, 100 nodes of two shards each, {epochs} epochs\nmoeshard train {FLAGS}"
    )?;
    writeln!(out, "accuracy of nodes in %: worst, mean, best")?;
    let epochs = epochs.to_string();
    let mut task = None;
    let mut mean_of = |topology| -> Result<f64> {
        let config = config(&[FLAGS, topology, "--epochs", &epochs], args)?;
        let task = match &mut task {
            Some(task) => task,
            none => none.insert(task::load(&config.task)?),
        };
        let network = Network::new(&config, task, &*config.topologies[0])?;
        let trained = run::run(&config, task, &network, &Ranks::Alone, None)?;
        let Some(last) = trained.evaluations.last() else {
            return Ok(f64::NAN);
        };
        let [worst, mean, best] =
            [last.accuracy.min, last.accuracy.mean, last.accuracy.max].map(|a| 100.0 * a);
        writeln!(
            out,
            "{topology:<52} {worst:.2} {mean:.2} {best:.2}  training {:.0} s, evaluation {:.0} s",
            last.train_s, last.eval_s
        )?;
        Ok(mean)
    };
    let [complete, cliques, random] = [mean_of(COMPLETE)?, mean_of(CLIQUES)?, mean_of(RANDOM)?];
    writeln!(
        out,
        "D-Cliques are within {TOLERANCE} points of complete: {:+.2}  {}",
        cliques - complete,
        verdicts.of(cliques >= complete - TOLERANCE)
    )?;
    writeln!(
        out,
        "D-Cliques are more than {MARGIN} points above random: {:+.2}  {}",
        cliques - random,
        verdicts.of(cliques > random + MARGIN)
    )?;
    Ok(())
}
