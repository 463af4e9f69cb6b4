//! `moeshard train`: many nodes learn one classifier together.
//!
//! [`args`] are the flags, [`config_file`] their file; [`task`] reads the data, [`texts`] embeds it
//! where it is texts; [`run`] trains on one topology and writes to a [`folder`], and [`head`] makes of
//! its models what can be served; [`repro`] prints tables next to reference figures.

pub mod args;
pub mod config_file;
pub mod folder;
pub mod head;
mod header;
pub mod ranks;
pub mod repro;
pub mod run;
pub mod task;
pub mod texts;

use std::fs;
use std::io::{self, Write};

use anyhow::{Context, Result};
use moeshard_decentralized::record::Evaluation;
use moeshard_decentralized::report::{RunReport, bytes, write_html};

pub use args::{TrainArgs, TrainConfig};
use folder::{Folder, folder_name};
use ranks::Ranks;
use run::{Network, Trained};
use task::LoadedTask;

use crate::arg_error::ArgError;

/// Trains on each of the topologies and reports on all.
///
/// # Errors
/// If flags and data do not fit one another, or training does not get through.
pub fn run(args: TrainArgs) -> Result<()> {
    let ranks = Ranks::join()?;
    let result = match &args.repro {
        Some(table) => repro::run(table, &args, &ranks),
        None => train(args, &ranks),
    };
    ranks.leave(result)
}

fn train(args: TrainArgs, ranks: &Ranks) -> Result<()> {
    let mut config = TrainConfig::try_from(args)?;
    ranks.share_cores(&mut config);
    let task = match texts::is_text(&config.task.task) {
        true => texts::load(&config)?,
        false => task::load(&config.task)?,
    };
    // Before anything is trained: whatever is wrong with the last is said now.
    let networks = config.topologies.iter();
    let networks = networks.map(|topology| Network::new(&config, &task, &**topology));
    let networks: Vec<Network> = networks.collect::<Result<_>>()?;
    let folders = folders(&config, &networks, ranks)?;
    let mut trained = Vec::new();
    for (network, folder) in networks.into_iter().zip(folders) {
        let Trained {
            evaluations,
            models,
        } = run::run(&config, &task, &network, ranks, Some(&folder))?;
        if !ranks.is_first() {
            continue;
        }
        folder.write_topology(&network)?;
        if let Some(last) = evaluations.last() {
            print(&network.topology, last)?;
            if let Some(text) = &task.text {
                let (dir, topology) = (folder.head(), &network.topology);
                let origin = head::Origin {
                    config: &config,
                    topology,
                    epochs: last.epoch,
                };
                let accuracy = head::write_mean(&dir, &origin, &task, text, &models)?;
                head::tell(&dir, &origin, accuracy, last);
            }
        }
        trained.push((network, evaluations));
        // After each, so that a long comparison can be looked at while it runs.
        report(&config, &task, &trained)?;
    }
    Ok(())
}

/// A folder for each network; those that do not go on from an earlier run forget it.
fn folders(config: &TrainConfig, networks: &[Network], ranks: &Ranks) -> Result<Vec<Folder>> {
    let mut folders = Vec::new();
    for (at, network) in networks.iter().enumerate() {
        let name = folder_name(&network.topology);
        let is_same = |other: &&Network| folder_name(&other.topology) == name;
        if let Some(other) = networks[..at].iter().find(is_same) {
            let reason = format!(
                "{} and {} would both be written to {name}",
                other.topology, network.topology
            );
            return Err(ArgError::other("--topology", reason).into());
        }
        let folder = Folder::new(config.output.out.join(name))?;
        if ranks.is_first() && !(config.output.resume && folder.has_checkpoint()) {
            folder.start()?;
        }
        folders.push(folder);
    }
    Ok(folders)
}

fn print(topology: &str, last: &Evaluation) -> io::Result<()> {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let bias = last.absence_bias.map_or_else(String::new, |bias| {
        format!(", columns of W off by {bias:.4} for absent nodes")
    });
    writeln!(
        io::stdout().lock(),
        "{topology}: {} right on average, {} on the worst node, {} on the best; {} epochs, {} sent, {:.1} s{bias}",
        percent(last.accuracy.mean),
        percent(last.accuracy.min),
        percent(last.accuracy.max),
        last.epoch,
        bytes(last.bytes_sent as f64),
        last.train_s,
    )
}

fn report(
    config: &TrainConfig,
    task: &LoadedTask,
    trained: &[(Network, Vec<Evaluation>)],
) -> Result<()> {
    let headers: Vec<_> = (trained.iter())
        .map(|(network, _)| header::header(config, task, network))
        .collect();
    let runs = headers.iter().zip(trained);
    let runs = runs.map(|(header, (network, evaluations))| RunReport {
        header,
        evaluations,
        mixing: Some(network.schedule.mixing(0)),
        cliques: &network.schedule.cliques,
        classes: Some(&network.classes),
    });
    let runs: Vec<_> = runs.collect();
    let path = config.output.out.join("report.html");
    let title = format!("{} on {} nodes", config.task.task, config.n_nodes);
    let mut page = Vec::new();
    write_html(&title, &runs, &mut page)?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!("report: {}", path.display());
    Ok(())
}
