//! What nodes hold: a data set divided by a rule, equal classes divided by a rule, or what a file says.

use std::path::PathBuf;

use anyhow::Result;
use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::data::{ImageSet, read_class_counts};
use moeshard_decentralized::partition::{self, Labels, Partitioner};
use moeshard_decentralized::seed;

use crate::arg_error::ArgError;
use crate::train::args::TaskArgs;
use crate::train::run::PARTITION_STREAM;
use crate::train::task::training_labels;
use crate::train::texts::is_text;

/// How many nodes there are if nothing says so.
pub(super) const DEFAULT_NODES: usize = 100;

/// A ring of as many takes a minute to measure.
const MAX_NODES: usize = 100_000;

/// Examples of a node where there is no data set: only their proportions count.
const EXAMPLES_PER_NODE: usize = 100;

/// Class counts of all nodes together take 4 bytes each, and proportions 8.
const MAX_COUNTS: usize = 1 << 26;

const DEFAULT_PARTITION: &str = "shards:k=2";
const DEFAULT_CLASSES: usize = 10;

/// How many nodes there are, and what each holds.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Nodes")]
pub struct NodeArgs {
    /// Number of nodes [default: that of a file given, else 100]
    #[arg(long, value_name = "N")]
    pub nodes: Option<usize>,

    /// How examples are dealt out: iid, shards:k=2, one-class, dirichlet:alpha=0.1 or file:PATH
    /// [default: shards:k=2]
    #[arg(long, value_name = "RULE")]
    pub partition: Option<String>,

    /// Whose examples: none (equally many of each class), mnist, fashion-mnist, cifar10, banking77, or
    /// a CSV or JSONL file of texts and labels
    #[arg(long, value_name = "NAME|FILE", default_value = "none")]
    pub task: String,

    /// Folder of the task's files
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Use only the first N training examples of the task [default: all]
    #[arg(long, value_name = "N")]
    pub train_examples: Option<usize>,

    /// The file that `moeshard train` would measure on: without one it keeps a fifth of the texts apart
    #[arg(long, value_name = "FILE")]
    pub test_data: Option<PathBuf>,

    /// Number of classes without a task [default: 10]
    #[arg(long, value_name = "K")]
    pub n_classes: Option<usize>,

    /// CSV of what each node holds, instead: a line of class names, then a line of counts a node
    #[arg(long, value_name = "FILE")]
    pub classes: Option<PathBuf>,

    /// Everything random follows from it, as for `moeshard train`
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// How many nodes there are and what each holds, checked.
#[derive(Debug)]
pub struct NodesConfig {
    /// How many, if that was said.
    n_nodes: Option<usize>,
    source: Source,
    /// Whether what nodes hold was said, and is no default.
    pub is_said: bool,
    /// Everything random follows from it.
    pub seed: u64,
}

/// Where classes come from.
#[derive(Debug)]
enum Source {
    Counts(ClassCounts),
    Task {
        task: TaskArgs,
        rule: Box<dyn Partitioner>,
    },
    Equal {
        n_classes: usize,
        rule: Box<dyn Partitioner>,
    },
}

impl TryFrom<NodeArgs> for NodesConfig {
    type Error = anyhow::Error;

    /// Reads the file of class counts, which is small; data sets are read when they are needed.
    fn try_from(args: NodeArgs) -> Result<Self> {
        let n_nodes = args.nodes.map(check_n_nodes).transpose()?;
        let has_rule = args.partition.is_some() || args.task != "none" || args.n_classes.is_some();
        let is_said = has_rule || args.classes.is_some();
        let seed = args.seed;
        let source = match &args.classes {
            Some(_) if has_rule => {
                let reason = "says what nodes hold, so that no --partition, --task or --n-classes \
                              can be given";
                return Err(ArgError::other("--classes", reason).into());
            }
            Some(path) => {
                let counts = read_class_counts(path)?;
                check_n_counts(counts.n_nodes(), counts.n_classes())?;
                if let Some(n_nodes) = n_nodes.filter(|&n_nodes| n_nodes != counts.n_nodes()) {
                    let reason = format!(
                        "must be {}, the nodes of {}, got {n_nodes}",
                        counts.n_nodes(),
                        path.display()
                    );
                    return Err(ArgError::other("--nodes", reason).into());
                }
                Source::Counts(counts)
            }
            None => by_rule(args)?,
        };
        Ok(Self {
            n_nodes,
            source,
            is_said,
            seed,
        })
    }
}

fn by_rule(args: NodeArgs) -> Result<Source> {
    let rule = partition::parse(args.partition.as_deref().unwrap_or(DEFAULT_PARTITION))?;
    if args.task == "none" {
        let n_classes = args.n_classes.unwrap_or(DEFAULT_CLASSES);
        let n_classes = ArgError::at_least_one("--n-classes", n_classes)?;
        return Ok(Source::Equal { n_classes, rule });
    }
    if !is_text(&args.task) && args.task.parse::<ImageSet>().is_err() {
        return Err(ArgError::Unknown {
            flag: "--task",
            expected: "none, mnist, fashion-mnist, cifar10, banking77 or a .csv, .tsv or .jsonl file",
            found: args.task,
        }
        .into());
    }
    if args.n_classes.is_some() {
        let reason = format!("has no effect with --task {}", args.task);
        return Err(ArgError::other("--n-classes", reason).into());
    }
    let task = TaskArgs {
        task: args.task,
        data: args.data,
        train_examples: args.train_examples,
        test_data: args.test_data,
        classifier: None,
    };
    Ok(Source::Task { task, rule })
}

impl NodesConfig {
    /// How many nodes there are: as was said, or as `other` says.
    ///
    /// # Errors
    /// If there are more than can be measured.
    pub fn n_nodes(&self, other: Option<usize>) -> Result<usize, ArgError> {
        let of_counts = match &self.source {
            Source::Counts(counts) => Some(counts.n_nodes()),
            _ => None,
        };
        let said = self.n_nodes.or(of_counts).or(other);
        check_n_nodes(said.unwrap_or(DEFAULT_NODES))
    }

    /// Examples of each class on each node, as `moeshard train` deals them out for the same seed.
    ///
    /// # Errors
    /// If the data cannot be read, or the rule does not fit it.
    pub fn classes(&self, n_nodes: usize) -> Result<ClassCounts> {
        match &self.source {
            Source::Counts(counts) => Ok(counts.clone()),
            Source::Task { task, rule } => {
                let (labels, n_classes) = training_labels(task, self.seed)?;
                self.deal_out(&**rule, &labels, n_classes, n_nodes)
            }
            Source::Equal { n_classes, rule } => {
                check_n_counts(n_nodes, *n_classes)?;
                let examples = 0..(EXAMPLES_PER_NODE * n_nodes).max(*n_classes);
                let labels: Vec<u32> = examples.map(|i| (i % n_classes) as u32).collect();
                self.deal_out(&**rule, &labels, *n_classes, n_nodes)
            }
        }
    }

    fn deal_out(
        &self,
        rule: &dyn Partitioner,
        labels: &[u32],
        n_classes: usize,
        n_nodes: usize,
    ) -> Result<ClassCounts> {
        let data = Labels { labels, n_classes };
        let mut rng = seed::rng(self.seed, PARTITION_STREAM);
        let partition = rule.partition(&data, n_nodes, &mut rng)?;
        Ok(partition.class_counts(labels, n_classes))
    }

    /// What nodes hold, in words.
    #[must_use]
    pub fn description(&self) -> String {
        match &self.source {
            Source::Counts(counts) => format!("{} classes, from a file", counts.n_classes()),
            Source::Task { task, rule } => format!("{}, {}", task.task, rule.name()),
            Source::Equal { n_classes, rule } => {
                format!("{n_classes} equal classes, {}", rule.name())
            }
        }
    }
}

/// That there are nodes, and not more than can be measured.
pub(super) fn check_n_nodes(n_nodes: usize) -> Result<usize, ArgError> {
    if n_nodes > MAX_NODES {
        return Err(ArgError::TooLarge {
            flag: "--nodes",
            most: MAX_NODES,
            found: n_nodes,
        });
    }
    ArgError::at_least_one("--nodes", n_nodes)
}

fn check_n_counts(n_nodes: usize, n_classes: usize) -> Result<(), ArgError> {
    match n_nodes.checked_mul(n_classes) {
        Some(0..=MAX_COUNTS) => Ok(()),
        _ => Err(ArgError::TooLarge {
            flag: "the number of classes",
            most: MAX_COUNTS / n_nodes.max(1),
            found: n_classes,
        }),
    }
}
