//! The flags of batching.

use moeshard_batcher::BatcherConfig;

use crate::model::config::ArgError;

/// How texts are batched.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Batching")]
pub struct BatchArgs {
    /// Most tokens of one forward pass; a longer sequence runs alone [default: 16384]
    #[arg(long, value_name = "N")]
    pub max_batch_tokens: Option<usize>,

    /// Most sequences of one forward pass [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_batch_requests: Option<usize>,

    /// Threads that tokenize [default: one a core]
    #[arg(long, value_name = "N")]
    pub tokenization_workers: Option<usize>,
}

impl TryFrom<BatchArgs> for BatcherConfig {
    type Error = ArgError;

    fn try_from(args: BatchArgs) -> Result<Self, ArgError> {
        let default = Self::default();
        let or = |flag, given: Option<usize>, default| {
            ArgError::at_least_one(flag, given.unwrap_or(default))
        };
        let requests = args.max_batch_requests;
        Ok(Self {
            max_batch_tokens: or(
                "--max-batch-tokens",
                args.max_batch_tokens,
                default.max_batch_tokens,
            )?,
            max_batch_requests: requests
                .map(|n| ArgError::at_least_one("--max-batch-requests", n))
                .transpose()?,
            tokenization_workers: ArgError::threads(
                "--tokenization-workers",
                args.tokenization_workers,
            )?,
            ..default
        })
    }
}
