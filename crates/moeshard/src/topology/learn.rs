//! `moeshard topology learn`: STL-FW, with its trace.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moeshard_decentralized::seed;
use moeshard_decentralized::topology::file::SavedSchedule;
use moeshard_decentralized::topology::stl_fw::{
    DEFAULT_LAMBDA, Iteration, Lambda, Learned, Oracle, StlFw,
};
use moeshard_decentralized::topology::{Nodes, Schedule, Topology};
use serde::Serialize;

use super::nodes::{NodeArgs, NodesConfig};
use super::table::short;
use super::write_topology;
use crate::arg_error::ArgError;
use crate::display::Table;
use crate::progress::{Progress, Unit};
use crate::train::run::TOPOLOGY_STREAM;

/// An iteration of the dense oracle takes some 15 s of two busy cores at this size (classes by
/// Dirichlet 0.3), and its time grows by n³.
const MAX_DENSE_NODES: usize = 4_000;

/// Flags of `moeshard topology learn`.
#[derive(Clone, Debug, clap::Args)]
pub struct LearnArgs {
    /// Most neighbours that a node sends to, or receives from
    #[arg(long, value_name = "N")]
    pub d_max: usize,

    /// Weight of the variance in H [default: 0.1]
    #[arg(long, value_name = "X")]
    pub lambda: Option<f64>,

    /// B, bound on the squared distance of two classes' gradients: lambda becomes noise / (classes · B)
    #[arg(long, value_name = "B")]
    pub class_distance: Option<f64>,

    /// σ², bound on the variance of a node's stochastic gradient
    #[arg(long, value_name = "S2")]
    pub noise: Option<f64>,

    /// Make the mixing matrix symmetric
    #[arg(long)]
    pub undirected: bool,

    /// Solve each assignment problem on the stored matrix of all pairs of nodes: slow, a reference
    #[arg(long)]
    pub dense: bool,

    /// File for the topology, as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// File for the trace, a line of JSON an iteration
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// How many nodes there are, and what each holds
    #[command(flatten)]
    pub nodes: NodeArgs,
}

/// What is learned, checked.
#[derive(Debug)]
pub struct LearnConfig {
    /// The rule.
    pub rule: StlFw,
    /// Number of nodes.
    pub n_nodes: usize,
    /// What they hold.
    pub nodes: NodesConfig,
    /// File for the topology.
    pub out: Option<PathBuf>,
    /// File for the trace.
    pub trace: Option<PathBuf>,
}

impl TryFrom<LearnArgs> for LearnConfig {
    type Error = anyhow::Error;

    fn try_from(args: LearnArgs) -> Result<Self> {
        let lambda = lambda(&args)?;
        let nodes = NodesConfig::try_from(args.nodes)?;
        let n_nodes = nodes.n_nodes(None)?;
        let d_max = ArgError::at_least_one("--d-max", args.d_max)?;
        if d_max >= n_nodes {
            let reason = format!("must be less than the {n_nodes} nodes, got {d_max}");
            return Err(ArgError::other("--d-max", reason).into());
        }
        if args.dense && n_nodes > MAX_DENSE_NODES {
            let reason = format!("is for at most {MAX_DENSE_NODES} nodes, got {n_nodes}");
            return Err(ArgError::other("--dense", reason).into());
        }
        Ok(Self {
            rule: StlFw {
                d_max,
                lambda,
                is_undirected: args.undirected,
                oracle: match args.dense {
                    true => Oracle::Dense,
                    false => Oracle::Implicit,
                },
            },
            n_nodes,
            nodes,
            out: args.out,
            trace: args.trace,
        })
    }
}

fn lambda(args: &LearnArgs) -> Result<Lambda, ArgError> {
    let other = |flag, reason: &str| Err(ArgError::other(flag, reason));
    match (args.lambda, args.class_distance, args.noise) {
        (lambda, None, None) => Ok(Lambda::Given(lambda.unwrap_or(DEFAULT_LAMBDA))),
        (None, Some(class_distance), Some(noise)) => Ok(Lambda::Derived {
            class_distance,
            noise,
        }),
        (Some(_), ..) => other(
            "--lambda",
            "follows from --class-distance and --noise if they are given",
        ),
        (None, Some(_), None) => other("--class-distance", "has no effect without --noise"),
        (None, None, Some(_)) => other("--noise", "has no effect without --class-distance"),
    }
}

/// Learns a topology, shows how, and writes it.
///
/// # Errors
/// If an argument is impossible, or a file cannot be read or written.
pub fn run(args: LearnArgs) -> Result<()> {
    let config = LearnConfig::try_from(args)?;
    // Before the work: nobody wants to learn afterwards that a folder does not exist.
    let trace = config.trace.as_deref().map(create).transpose()?;
    let classes = config.nodes.classes(config.n_nodes)?;
    let nodes = Nodes {
        n_nodes: config.n_nodes,
        classes: Some(&classes),
    };
    let learned = learn(&config, &nodes)?;
    show(&learned, &mut io::stdout().lock())?;
    if let (Some(file), Some(path)) = (trace, &config.trace) {
        write_trace(&learned.trace, file)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &config.out {
        let saved = SavedSchedule {
            topology: config.rule.name(),
            schedule: Schedule::fixed(learned.mixing),
            classes: Some(classes),
        };
        write_topology(path, &saved)?;
    }
    Ok(())
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn learn(config: &LearnConfig, nodes: &Nodes<'_>) -> Result<Learned> {
    let rule = &config.rule;
    let progress = Progress::of(Unit::Neighbours, rule.name(), Some(rule.d_max as u64));
    let rng = &mut seed::rng(config.nodes.seed, TOPOLOGY_STREAM);
    let learned = rule.learn_watched(nodes, rng, |iteration| {
        let note = format!("g = {}", short(iteration.objective));
        progress.set(iteration.max_degree as u64, &note);
    })?;
    progress.finish();
    Ok(learned)
}

fn show(learned: &Learned, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(["iteration", "gamma", "g", "bias", "variance", "degree"]);
    for (idx, iteration) in learned.trace.iter().enumerate() {
        table.row([
            idx.to_string(),
            short(iteration.gamma),
            short(iteration.objective),
            short(iteration.heterogeneity.bias),
            short(iteration.heterogeneity.variance),
            iteration.max_degree.to_string(),
        ]);
    }
    writeln!(out, "g = bias + {} · variance", learned.lambda)?;
    table.write(out)
}

/// A line of the trace.
#[derive(Serialize)]
struct TraceLine<'a> {
    iteration: usize,
    #[serde(flatten)]
    state: &'a Iteration,
}

fn write_trace(trace: &[Iteration], file: File) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    for (iteration, state) in trace.iter().enumerate() {
        serde_json::to_writer(&mut out, &TraceLine { iteration, state })?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
