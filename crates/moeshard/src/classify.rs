//! `moeshard classify`: the texts of a file get labels.

use anyhow::{Context, Result};
use moeshard_batcher::{ModelInfo, Options, Task};

use crate::arg_error::ArgError;
use crate::bulk::{self, BulkArgs, BulkConfig, RowShape};
use crate::model::HeadArgs;

/// Flags of `moeshard classify`.
#[derive(Clone, Debug, clap::Args)]
pub struct ClassifyArgs {
    /// What to read and what to write
    #[command(flatten)]
    pub bulk: BulkArgs,

    /// Which head to classify with
    #[command(flatten)]
    pub head: HeadArgs,

    /// List the best K labels with their scores as well
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// Give logits instead of probabilities
    #[arg(long)]
    pub raw_scores: bool,
}

/// A run of `moeshard classify`, checked.
#[derive(Clone, Debug)]
pub struct ClassifyConfig {
    /// What to read and what to write.
    pub bulk: BulkConfig,
    /// Labels listed besides the best.
    pub top_k: Option<usize>,
    /// Logits instead of probabilities.
    pub raw_scores: bool,
}

impl TryFrom<ClassifyArgs> for ClassifyConfig {
    type Error = ArgError;

    fn try_from(args: ClassifyArgs) -> Result<Self, ArgError> {
        let mut bulk = BulkConfig::try_from(args.bulk)?;
        bulk.model.head = args.head.head;
        Ok(Self {
            bulk,
            top_k: ArgError::at_least_one_if_given("--top-k", args.top_k)?,
            raw_scores: args.raw_scores,
        })
    }
}

/// Classifies a file.
///
/// # Errors
/// If an argument is impossible, the model cannot be loaded or has no head, or the run stops
/// early.
pub fn run(args: ClassifyArgs) -> Result<()> {
    let ClassifyConfig {
        bulk,
        top_k,
        raw_scores,
    } = ClassifyConfig::try_from(args)?;
    let options = Options::new(Task::Classify { raw_scores });
    bulk::run(bulk, options, |info: &ModelInfo| {
        let labels = info.labels.clone();
        let labels = labels.with_context(|| format!("{} has no classification head", info.id))?;
        Ok(RowShape::Scores { labels, top_k })
    })
}
