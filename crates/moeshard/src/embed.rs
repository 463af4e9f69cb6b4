//! `moeshard embed`: the texts of a file become vectors.

use anyhow::{Result, ensure};
use moeshard_batcher::{ModelInfo, Options, Task};

use crate::arg_error::ArgError;
use crate::bulk::{self, BulkArgs, BulkConfig, RowShape};

/// Flags of `moeshard embed`.
#[derive(Clone, Debug, clap::Args)]
pub struct EmbedArgs {
    /// What to read and what to write
    #[command(flatten)]
    pub bulk: BulkArgs,

    /// Keep only the first N dimensions of each embedding
    #[arg(long, value_name = "N")]
    pub dimensions: Option<usize>,

    /// Do not scale embeddings to unit norm
    #[arg(long)]
    pub no_normalize: bool,
}

/// A run of `moeshard embed`, checked.
#[derive(Clone, Debug)]
pub struct EmbedConfig {
    /// What to read and what to write.
    pub bulk: BulkConfig,
    /// Keep only so many dimensions.
    pub dimensions: Option<usize>,
    /// Scale to unit norm.
    pub normalize: bool,
}

impl TryFrom<EmbedArgs> for EmbedConfig {
    type Error = ArgError;

    fn try_from(args: EmbedArgs) -> Result<Self, ArgError> {
        Ok(Self {
            bulk: BulkConfig::try_from(args.bulk)?,
            dimensions: ArgError::at_least_one_if_given("--dimensions", args.dimensions)?,
            normalize: !args.no_normalize,
        })
    }
}

/// Embeds a file.
///
/// # Errors
/// If an argument is impossible, the model cannot be loaded, or the run stops early.
pub fn run(args: EmbedArgs) -> Result<()> {
    let EmbedConfig {
        bulk,
        dimensions,
        normalize,
    } = EmbedConfig::try_from(args)?;
    let options = Options::new(Task::Embed {
        normalize,
        dimensions,
    });
    bulk::run(bulk, options, |info: &ModelInfo| {
        let d_model = info.d_model;
        let width = dimensions.unwrap_or(d_model);
        ensure!(
            width <= d_model,
            "--dimensions {width} is above the model's {d_model}"
        );
        Ok(RowShape::Embedding { width })
    })
}
