//! The flags of batching.

use moeshard_batcher::BatcherConfig;

use crate::arg_error::ArgError;

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
        Ok(Self {
            max_batch_tokens: ArgError::at_least_one(
                "--max-batch-tokens",
                args.max_batch_tokens.unwrap_or(default.max_batch_tokens),
            )?,
            max_batch_requests: ArgError::at_least_one_if_given(
                "--max-batch-requests",
                args.max_batch_requests,
            )?,
            tokenization_workers: ArgError::threads(
                "--tokenization-workers",
                args.tokenization_workers,
            )?,
            ..default
        })
    }
}
