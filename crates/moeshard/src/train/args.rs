//! The flags of `moeshard train`, and what they mean.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use moeshard_decentralized::partition::{self, Partitioner};
use moeshard_decentralized::topology::{self, Topology};
use moeshard_decentralized::train::absence::Absences;
use moeshard_decentralized::train::{Method, MixOrder, Settings, TrainError};

use super::texts::is_text;
use crate::arg_error::ArgError;
use crate::model::{ModelArgs, ModelConfig};

/// Flags of `moeshard train`. Each can also be a key of the file that `--config` names.
#[derive(Clone, Debug, clap::Args)]
pub struct TrainArgs {
    /// A TOML file with flags as keys (learning-rate = 0.1); flags on the command line win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Reproduce a table of the reference figures instead: a, b, c, d, e or cifar10. Of the other flags
    /// only --data and --threads count, and for cifar10 --epochs
    #[arg(long, value_name = "TABLE")]
    pub repro: Option<String>,

    /// What to learn
    #[command(flatten)]
    pub task: TaskArgs,

    /// How nodes are connected, and what each knows
    #[command(flatten)]
    pub nodes: NodeArgs,

    /// How they learn
    #[command(flatten)]
    pub method: MethodArgs,

    /// What becomes of it
    #[command(flatten)]
    pub output: OutputArgs,

    /// The encoder of a task of texts
    #[command(flatten)]
    pub model: ModelArgs,
}

/// What to learn.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Task")]
pub struct TaskArgs {
    /// mnist, fashion-mnist, cifar10, banking77, or a CSV or JSONL file with `text` and `label`
    #[arg(long, value_name = "NAME|FILE", default_value = "mnist")]
    pub task: String,

    /// Folder of the data: MNIST's IDX files, plain or gzipped, CIFAR-10's binary files, or Banking77's
    /// train.csv and test.csv
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Use only the first N training examples [default: all]
    #[arg(long, value_name = "N")]
    pub train_examples: Option<usize>,

    /// File of texts and labels to measure on [default: a fifth of the examples, kept apart]
    #[arg(long, value_name = "FILE")]
    pub test_data: Option<PathBuf>,

    /// linear, mlp (or mlp:hidden=128) or gn-lenet [default: gn-lenet for cifar10, else linear]
    #[arg(long, value_name = "NAME")]
    pub classifier: Option<String>,
}

/// How nodes are connected, and what each knows.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Nodes")]
pub struct NodeArgs {
    /// Number of nodes
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub nodes: usize,

    /// How examples are dealt out: iid, shards:k=2, one-class, dirichlet:alpha=0.1 or file:PATH
    #[arg(long, value_name = "RULE", default_value = "shards:k=2")]
    pub partition: String,

    /// Who exchanges with whom, such as ring, random:d=10, d-cliques or stl-fw:d=10; several are
    /// compared. `moeshard topology list` shows all
    #[arg(long, value_name = "RULE", default_value = "d-cliques")]
    pub topology: Vec<String>,

    /// Train although some nodes can never reach others
    #[arg(long)]
    pub allow_disconnected: bool,

    /// Probability that a node is too late for a round's exchange
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub straggle: f64,

    /// Probability that a node leaves in a round
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub leave: f64,

    /// Probability that a node that has left comes back in a round
    #[arg(long, value_name = "P", default_value_t = 0.1)]
    pub come_back: f64,
}

/// How they learn.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Learning")]
pub struct MethodArgs {
    /// d-sgd, gradient-tracking or d2
    #[arg(long, value_name = "NAME", default_value = "d-sgd")]
    pub method: String,

    /// Models are averaged after or before the step
    #[arg(long, value_name = "WHEN", default_value = "after")]
    pub mix: String,

    /// Average gradients over the clique first
    #[arg(long)]
    pub clique_averaging: bool,

    /// Share of the velocity that a step keeps
    #[arg(long, value_name = "M", default_value_t = 0.0)]
    pub momentum: f32,

    /// Step size [default: 0.1, but 0.3 for texts]
    #[arg(long, value_name = "ETA")]
    pub learning_rate: Option<f32>,

    /// Examples of a node's step [default: 128, but 16 for texts]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<NonZeroUsize>,

    /// Passes over the data of the average node [default: 20, but 100 for texts]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,

    /// Start from the same parameters everywhere, or from different ones: alike or apart
    /// [default: alike, but apart for linear]
    #[arg(long, value_name = "HOW")]
    pub start: Option<String>,

    /// Everything random follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// What becomes of it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Folder for metrics, checkpoints, the classifier and the report
    #[arg(long, value_name = "DIR", default_value = "runs/latest")]
    pub out: PathBuf,

    /// Measure all models every N epochs; 0: only after the last
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub evaluate_every: u64,

    /// Save the state of all nodes every N epochs; 0: only after the last
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub checkpoint_every: u64,

    /// Go on from the checkpoints in the output folder
    #[arg(long)]
    pub resume: bool,
}

/// What is trained how, once for each topology.
#[derive(Debug)]
pub struct TrainConfig {
    /// What to learn.
    pub task: TaskArgs,
    /// Number of nodes.
    pub n_nodes: usize,
    /// How examples are dealt out, and its name.
    pub partition: (String, Box<dyn Partitioner>),
    /// Who exchanges with whom.
    pub topologies: Vec<Box<dyn Topology>>,
    /// Train on graphs that fall apart.
    pub allow_disconnected: bool,
    /// How nodes learn.
    pub settings: Settings,
    /// Passes over the data.
    pub epochs: u64,
    /// Where results go.
    pub output: OutputArgs,
    /// The encoder of texts.
    pub model: ModelArgs,
}

/// How nodes learn a task unless told otherwise.
struct Defaults {
    learning_rate: f32,
    batch_size: NonZeroUsize,
    epochs: u64,
}

impl Defaults {
    /// Those of images are the D-Cliques paper's for MNIST. Texts have fewer examples a node and
    /// more classes, so they need longer steps and more rounds: measured in
    /// benches/results/decentralized.md.
    fn of(task: &str) -> Self {
        let (learning_rate, batch_size, epochs) = match is_text(task) {
            true => (0.3, 16, 100),
            false => (0.1, 128, 20),
        };
        Self {
            learning_rate,
            batch_size: NonZeroUsize::new(batch_size).unwrap_or(NonZeroUsize::MIN),
            epochs,
        }
    }
}

impl TryFrom<TrainArgs> for TrainConfig {
    type Error = anyhow::Error;

    fn try_from(args: TrainArgs) -> anyhow::Result<Self> {
        let n_nodes = ArgError::at_least_one("--nodes", args.nodes.nodes)?;
        let topologies = args.nodes.topology.iter().map(|text| topology::parse(text));
        let settings = settings(&args)?;
        settings.check().map_err(flag_error)?;
        check_model(&args)?;
        Ok(Self {
            n_nodes,
            partition: (
                args.nodes.partition.clone(),
                partition::parse(&args.nodes.partition)?,
            ),
            topologies: topologies.collect::<Result<_, _>>()?,
            allow_disconnected: args.nodes.allow_disconnected,
            settings,
            epochs: (args.method.epochs).unwrap_or(Defaults::of(&args.task.task).epochs),
            task: args.task,
            output: args.output,
            model: args.model,
        })
    }
}

/// A setting by the name of its flag.
fn flag_error(error: TrainError) -> anyhow::Error {
    match error {
        TrainError::Setting {
            setting,
            expected,
            got,
        } => anyhow::anyhow!(
            "--{} must be {expected}, got {got}",
            setting.replace(' ', "-")
        ),
        other => other.into(),
    }
}

/// That the encoder can be run as asked, and that there is something for it to do.
fn check_model(args: &TrainArgs) -> Result<(), ArgError> {
    ModelConfig::try_from(args.model.clone())?;
    match &args.model.model {
        Some(model) if !is_text(&args.task.task) => Err(ArgError::Needs {
            flag: "--model",
            found: model.clone(),
            needs: "a task of texts",
            instead: format!("--task {}", args.task.task),
        }),
        _ => Ok(()),
    }
}

fn settings(args: &TrainArgs) -> Result<Settings, ArgError> {
    let defaults = Defaults::of(&args.task.task);
    let MethodArgs {
        clique_averaging,
        momentum,
        ..
    } = args.method;
    let order = match args.method.mix.as_str() {
        "after" => MixOrder::AfterStep,
        "before" => MixOrder::BeforeStep,
        other => return Err(unknown("--mix", "after or before", other)),
    };
    let method = match args.method.method.as_str() {
        "d-sgd" => Method::DSgd {
            order,
            momentum,
            clique_averaging,
        },
        "gradient-tracking" => Method::GradientTracking,
        "d2" => Method::D2,
        other => {
            let expected = "d-sgd, gradient-tracking or d2";
            return Err(unknown("--method", expected, other));
        }
    };
    if !matches!(method, Method::DSgd { .. })
        && (clique_averaging || momentum != 0.0 || order != MixOrder::default())
    {
        let reason = "has neither momentum nor clique averaging, and averages after the step";
        return Err(ArgError::other(
            "--method",
            format!("{} {reason}", method.name()),
        ));
    }
    let start_alike = match args.method.start.as_deref() {
        None => None,
        Some("alike") => Some(true),
        Some("apart") => Some(false),
        Some(other) => return Err(unknown("--start", "alike or apart", other)),
    };
    Ok(Settings {
        method,
        learning_rate: args.method.learning_rate.unwrap_or(defaults.learning_rate),
        batch_size: args.method.batch_size.unwrap_or(defaults.batch_size),
        seed: args.method.seed,
        start_alike,
        absences: Absences {
            straggle: args.nodes.straggle,
            leave: args.nodes.leave,
            come_back: args.nodes.come_back,
        },
        n_threads: ArgError::threads("--threads", args.model.compute.threads)?,
    })
}

fn unknown(flag: &'static str, expected: &'static str, found: &str) -> ArgError {
    ArgError::Unknown {
        flag,
        expected,
        found: found.to_owned(),
    }
}
