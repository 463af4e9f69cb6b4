//! What the model's flags mean, checked before anything is downloaded or loaded.

use std::path::{Path, PathBuf};

use moeshard_cuda::driver::gpu;
use moeshard_cuda::libraries::{CUBLASLT, NCCL};
use moeshard_encoder::shard::{Shares, Strategy};
use moeshard_tensor::device::Pooling;
use moeshard_tensor::dtype::DType;

use super::args::{ComputeArgs, ModelArgs};
use super::devices::DeviceKind;
use crate::arg_error::ArgError;
use crate::hub::HubConfig;
use crate::machine;

/// The capacity factor that `--experts capacity` has if none is given.
const CAPACITY_FACTOR: f32 = 1.25;

/// How often a broken download is taken up again before giving up.
const N_RETRIES: usize = 5;

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the program.
    BuiltIn,
    /// In a folder.
    Folder(PathBuf),
    /// On the hub.
    Hub {
        /// `owner/name` or `name`.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

/// Which model to run and with what.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Where the model is.
    pub source: Source,
    /// Folder of the head to classify with, instead of the model's own.
    pub head: Option<PathBuf>,
    /// How to reach the hub, if it is there.
    pub hub: HubConfig,
    /// Instead of the model's own pooling.
    pub pooling: Option<Pooling>,
    /// Below the model's own limit.
    pub max_length: Option<usize>,
    /// What to compute with.
    pub compute: ComputeConfig,
}

/// What to compute with.
#[derive(Clone, Debug, PartialEq)]
pub struct ComputeConfig {
    /// What ranks compute on.
    pub device: DeviceKind,
    /// The GPU of this process, where every rank is a process.
    pub own_gpu: Option<usize>,
    /// What GPUs use besides.
    pub cuda_libs: CudaLibs,
    /// Ranks that share the experts.
    pub n_ranks: usize,
    /// Threads of all ranks together.
    pub n_threads: usize,
    /// Whether other programs compute on the same cores.
    pub shares_cores: bool,
    /// How weights are kept; `None` keeps the checkpoint's format.
    pub dtype: Option<DType>,
    /// How experts are laid out.
    pub strategy: Strategy,
    /// Whether the layout may be another, by what it costs.
    pub is_auto: bool,
    /// By which rates; `None` for a data sheet's.
    pub rates: Option<PathBuf>,
    /// Most tokens that an expert takes from one sequence.
    pub sequence_capacity: Option<usize>,
    /// When exchanges of one half of a batch are hidden under the other's compute.
    pub overlap: Overlap,
}

impl TryFrom<ModelArgs> for ModelConfig {
    type Error = ArgError;

    fn try_from(args: ModelArgs) -> Result<Self, ArgError> {
        Ok(Self {
            compute: ComputeConfig::try_from(args.compute)?,
            source: source(args.model, args.revision)?,
            head: None,
            pooling: args.pooling.as_deref().map(pooling).transpose()?,
            max_length: ArgError::at_least_one_if_given("--max-length", args.max_length)?,
            hub: HubConfig {
                endpoint: machine::hub_endpoint(),
                cache_dir: args.hub_cache.unwrap_or_else(machine::hub_cache_dir),
                token: args.hf_token,
                offline: machine::is_offline(),
                n_retries: N_RETRIES,
            },
        })
    }
}

impl TryFrom<ComputeArgs> for ComputeConfig {
    type Error = ArgError;

    fn try_from(args: ComputeArgs) -> Result<Self, ArgError> {
        let device = device(args.gpus, args.device.as_deref())?;
        let n_ranks = n_ranks(device, args.ranks)?;
        let n_threads = ArgError::threads("--threads", args.threads)?;
        let sequence_capacity =
            ArgError::at_least_one_if_given("--expert-capacity", args.expert_capacity)?;
        Ok(Self {
            cuda_libs: cuda_libs(device, args.cuda_libs.as_deref())?,
            device,
            own_gpu: None,
            n_ranks,
            n_threads,
            shares_cores: args.share_cores,
            dtype: args.dtype,
            is_auto: args.experts.as_deref().is_none_or(|name| name == "auto")
                && args.shares.is_empty(),
            rates: args.rates,
            strategy: match args.shares.is_empty() {
                true => strategy(args.experts.as_deref(), args.capacity_factor, n_ranks)?,
                false => uneven(args.experts.as_deref(), &args.shares, n_ranks)?,
            },
            sequence_capacity,
            overlap: overlap(args.overlap.as_deref())?,
        })
    }
}

/// When a batch is run as two halves, one of which computes while the other is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// On GPUs where it takes less time by the rates; never on cores, where ranks wait for each other in turns whatever is done.
    Auto,
    /// Never.
    Off,
    /// From so many tokens on.
    From {
        /// Tokens of a batch.
        n_tokens: usize,
        /// Only where a device has streams beside each other.
        needs_streams: bool,
    },
}

fn overlap(asked: Option<&str>) -> Result<Overlap, ArgError> {
    let flag = "--overlap";
    match asked {
        None | Some("auto") => Ok(Overlap::Auto),
        Some("off") => Ok(Overlap::Off),
        Some(found) => match found.parse() {
            Ok(n) => Ok(Overlap::From {
                n_tokens: ArgError::at_least_one(flag, n)?,
                needs_streams: false,
            }),
            Err(_) => Err(ArgError::Unknown {
                flag,
                expected: "auto, off or a number of tokens",
                found: found.to_owned(),
            }),
        },
    }
}

/// One for each GPU unless the user says otherwise; several may share one.
fn n_ranks(device: DeviceKind, asked: Option<usize>) -> Result<usize, ArgError> {
    let least = match device {
        DeviceKind::Cuda { n_gpus } => n_gpus,
        _ => 1,
    };
    match asked.unwrap_or(least) {
        found if found >= least => Ok(found),
        found => Err(ArgError::TooSmall {
            flag: "--ranks",
            least,
            found,
        }),
    }
}

/// NVIDIA's libraries that are used where they are found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaLibs {
    /// For products.
    pub cublaslt: Option<PathBuf>,
    /// For exchanges between ranks.
    pub nccl: Option<PathBuf>,
    /// Whether the user named their folder: one that does not load is an error then.
    pub is_named: bool,
}

/// Where a folder is named, one of them must be in it.
fn cuda_libs(device: DeviceKind, dir: Option<&Path>) -> Result<CudaLibs, ArgError> {
    if !matches!(device, DeviceKind::Cuda { .. }) {
        return match dir {
            None => Ok(CudaLibs::default()),
            Some(dir) => Err(ArgError::Needs {
                flag: "--cuda-libs",
                found: dir.display().to_string(),
                needs: "--gpus",
                instead: format!("--device {device}"),
            }),
        };
    }
    match (CUBLASLT.find(dir), NCCL.find(dir), dir) {
        (Err(missing), Err(_), Some(_)) => {
            let reason = format!("{missing}, and no NCCL either");
            Err(ArgError::other("--cuda-libs", reason))
        }
        (cublaslt, nccl, _) => Ok(CudaLibs {
            cublaslt: cublaslt.ok(),
            nccl: nccl.ok(),
            is_named: dir.is_some(),
        }),
    }
}

fn device(n_gpus: Option<usize>, name: Option<&str>) -> Result<DeviceKind, ArgError> {
    match name {
        None if n_gpus.is_none_or(|n| n == 0) => Ok(DeviceKind::Cpu),
        Some("cpu") => match n_gpus.unwrap_or(0) {
            0 => Ok(DeviceKind::Cpu),
            n => Err(ArgError::Needs {
                flag: "--gpus",
                found: n.to_string(),
                needs: "--device cuda",
                instead: "--device cpu".to_owned(),
            }),
        },
        None | Some("cuda") => gpus(n_gpus.unwrap_or(1)),
        #[cfg(feature = "emulated")]
        Some("emulated") => Ok(DeviceKind::Emulated),
        Some(found) => Err(ArgError::Unknown {
            flag: "--device",
            expected: "cpu or cuda",
            found: found.to_owned(),
        }),
    }
}

/// That there are as many GPUs, and kernels for them.
fn gpus(n_gpus: usize) -> Result<DeviceKind, ArgError> {
    let n_gpus = ArgError::at_least_one("--gpus", n_gpus)?;
    let no_gpu = |reason| ArgError::NoGpu { reason };
    let found = gpu::count().map_err(no_gpu)?;
    gpu::check_kernels().map_err(no_gpu)?;
    match found >= n_gpus {
        true => Ok(DeviceKind::Cuda { n_gpus }),
        false => Err(no_gpu(format!("there are {found} GPUs"))),
    }
}

/// A folder wins over a hub id of the same name.
fn source(model: Option<String>, revision: Option<String>) -> Result<Source, ArgError> {
    let on_hub_only = |instead: &str| match &revision {
        None => Ok(()),
        Some(revision) => Err(ArgError::Needs {
            flag: "--revision",
            found: revision.clone(),
            needs: "a --model on the hub",
            instead: instead.to_owned(),
        }),
    };
    let Some(model) = model else {
        on_hub_only("the built-in model")?;
        return Ok(Source::BuiltIn);
    };
    let path = PathBuf::from(&model);
    if path.is_dir() {
        on_hub_only("a folder")?;
        return Ok(Source::Folder(path));
    }
    if !is_hub_id(&model) {
        return Err(ArgError::NoSuchModel { found: model });
    }
    Ok(Source::Hub {
        id: model,
        revision: revision.unwrap_or_else(|| "main".to_owned()),
    })
}

/// `name` or `owner/name`, each of letters, digits, `-`, `_` and `.`.
fn is_hub_id(id: &str) -> bool {
    let is_part = |part: &str| {
        let starts_well = part.starts_with(|c: char| c.is_ascii_alphanumeric());
        starts_well
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    id.len() <= 200 && id.split('/').count() <= 2 && id.split('/').all(is_part)
}

fn pooling(name: &str) -> Result<Pooling, ArgError> {
    match name {
        "cls" => Ok(Pooling::Cls),
        "mean" => Ok(Pooling::Mean),
        "last-token" | "lasttoken" => Ok(Pooling::LastToken),
        _ => Err(ArgError::Unknown {
            flag: "--pooling",
            expected: "cls, mean or last-token",
            found: name.to_owned(),
        }),
    }
}

fn uneven(experts: Option<&str>, shares: &[f32], n_ranks: usize) -> Result<Strategy, ArgError> {
    if let Some(experts) = experts.filter(|name| !matches!(*name, "auto" | "sharded")) {
        let listed: Vec<_> = shares.iter().map(ToString::to_string).collect();
        return Err(ArgError::Needs {
            flag: "--shares",
            found: listed.join(","),
            needs: "--experts sharded",
            instead: format!("--experts {experts}"),
        });
    }
    if shares.len() != n_ranks {
        let reason = format!(
            "must be one for each of {n_ranks} ranks, got {}",
            shares.len()
        );
        return Err(ArgError::other("--shares", reason));
    }
    let shares = Shares::new(shares).map_err(|reason| ArgError::other("--shares", reason))?;
    Ok(Strategy::Uneven(shares))
}

fn strategy(name: Option<&str>, factor: Option<f32>, n_ranks: usize) -> Result<Strategy, ArgError> {
    let name = name.unwrap_or("auto");
    if let Some(factor) = factor {
        if name != "capacity" {
            return Err(ArgError::Needs {
                flag: "--capacity-factor",
                found: factor.to_string(),
                needs: "--experts capacity",
                instead: format!("--experts {name}"),
            });
        }
        if !(factor > 0.0 && factor.is_finite()) {
            let reason = format!("must be above 0, got {factor}");
            return Err(ArgError::other("--capacity-factor", reason));
        }
    }
    match name {
        // One rank holds everything: nothing to exchange.
        "auto" if n_ranks == 1 => Ok(Strategy::Replicated),
        "auto" | "sharded" => Ok(Strategy::Sharded),
        "parallel" => Ok(Strategy::Parallel),
        "capacity" => Ok(Strategy::Capacity {
            factor: factor.unwrap_or(CAPACITY_FACTOR),
        }),
        "replicated" => Ok(Strategy::Replicated),
        _ => Err(ArgError::Unknown {
            flag: "--experts",
            expected: "auto, sharded, parallel, capacity or replicated",
            found: name.to_owned(),
        }),
    }
}
