//! The flags that every command with a model has.

use std::path::PathBuf;

use moeshard_tensor::dtype::DType;

use crate::secret::Secret;

/// Which model to run and with what.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Folder of a model, or its id on the Hugging Face hub [default: the built-in model]
    #[arg(long, alias = "model-id", value_name = "DIR|HUB_ID")]
    pub model: Option<String>,

    /// Branch, tag or commit on the hub
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,

    /// Where models of the hub are kept [default: $HF_HOME/hub or ~/.cache/huggingface/hub]
    #[arg(long, alias = "huggingface-hub-cache", value_name = "DIR")]
    pub hub_cache: Option<PathBuf>,

    /// Token for private and gated models
    #[arg(
        long,
        alias = "hf-api-token",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub hf_token: Option<Secret>,

    /// How token vectors become one: cls, mean or last-token [default: what the model says]
    #[arg(long, value_name = "RULE")]
    pub pooling: Option<String>,

    /// Longest sequence in tokens, up to the positions of the model [default: what the model says]
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,

    /// What to compute with
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Which head to classify with.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct HeadArgs {
    /// Folder of a head that `moeshard train` has written, to classify with in place of the model's
    /// own
    #[arg(long, value_name = "DIR")]
    pub head: Option<PathBuf>,
}

/// What to compute with.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Computing")]
pub struct ComputeArgs {
    /// What to compute on: cpu or cuda [default: cuda with --gpus, else cpu]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// Number of GPUs
    #[arg(long, value_name = "N")]
    pub gpus: Option<usize>,

    /// Folder of NVIDIA's libraries: where they are found, cuBLASLt computes dense layers on GPUs,
    /// and NCCL carries rows between GPUs that do not reach each other's memory [default: wherever
    /// libraries and Python's packages are]
    #[arg(long, value_name = "DIR")]
    pub cuda_libs: Option<PathBuf>,

    /// Ranks that share every expert; several may share a GPU [default: one a GPU, else 1]
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,

    /// Threads of all ranks together [default: one a core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Leave it to the system where threads run, for machines on which other programs compute as
    /// well [default: threads that take every core are bound to one each]
    #[arg(long)]
    pub share_cores: bool,

    /// How weights are kept: f32, bf16 or f16 (float32, bfloat16 and float16 as well); sums are
    /// always f32. Where the machine multiplies bf16, activations are rounded to it as well
    /// [default: as the checkpoint stores them; on a GPU bf16 for float32]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<DType>,

    /// How experts are laid out over ranks: auto, sharded, parallel, capacity or replicated
    /// [default: auto, which is sharded over several ranks; on GPUs replicated where that is
    /// faster and fits, see `moeshard inspect --explain`]
    #[arg(long, value_name = "LAYOUT")]
    pub experts: Option<String>,

    /// A gpu-check.json, by whose rates `--experts auto` chooses on GPUs [default: a data sheet's]
    #[arg(long, value_name = "FILE")]
    pub rates: Option<PathBuf>,

    /// With --experts sharded: what each rank gets of every expert, as to each other, such as 3,1
    /// [default: even; by measured speed where GPUs are of different kinds]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub shares: Vec<f32>,

    /// With --experts capacity: room of an expert over its even share of a batch; what exceeds it
    /// is dropped [default: 1.25]
    #[arg(long, value_name = "F")]
    pub capacity_factor: Option<f32>,

    /// Most tokens that an expert takes from one sequence, as transformers does for Switch and
    /// NLLB; what exceeds it is dropped [default: no limit]
    #[arg(long, value_name = "N")]
    pub expert_capacity: Option<usize>,

    /// Batches of so many tokens or more run as two halves on ranks that share experts, one of which
    /// computes while the other is exchanged; off; or auto: on GPUs, where it takes less time by the
    /// rates [default: auto]
    #[arg(long, value_name = "TOKENS")]
    pub overlap: Option<String>,
}
