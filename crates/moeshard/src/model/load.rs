//! From an opened model to a handle that answers.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use moeshard_batcher::{
    BatcherConfig, Engine, Handle, ModelInfo, PackedBatch, Task, TokenizerPool, pair,
};
use moeshard_cuda::driver::gpu;
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_encoder::trained_head::pooling_name;
use moeshard_engine::RankEngine;
use moeshard_engine::processes::Leadership;
use moeshard_tensor::dtype::DType;

use super::config::{ComputeConfig, Overlap};
use super::devices::{self, DeviceKind};
use super::open::Opened;
use super::processes::Processes;
use crate::cost::{Rates, best, overlap_from};
use crate::footprint::{Held, bytes_to_read};
use crate::progress::Progress;

/// Tokens of a text that a batch has many of.
const SHORT_TEXT: usize = 64;

/// A model that answers.
pub struct Loaded {
    /// Takes inputs.
    pub handle: Handle,
    /// Ends when the handle is closed and everything is answered.
    pub worker: JoinHandle<()>,
    /// What runs batches; to be stopped after the worker.
    pub engine: Arc<RankEngine>,
}

/// Loads the weights on all ranks and starts the batcher. `adjust` may change what clients are
/// told of the model.
///
/// # Errors
/// If the model has no tokenizer, or the weights are not what they should be; one sentence.
pub fn load(
    opened: Opened,
    compute: &ComputeConfig,
    batcher: BatcherConfig,
    adjust: impl FnOnce(&mut ModelInfo) -> Result<()>,
) -> Result<Loaded> {
    load_over(opened, compute, batcher, None, adjust)
}

/// As [`load`], with ranks that are `processes`, if there are any.
///
/// # Errors
/// As [`load`]; also if the processes cannot be met or differ.
pub fn load_over(
    opened: Opened,
    compute: &ComputeConfig,
    batcher: BatcherConfig,
    processes: Option<Processes>,
    adjust: impl FnOnce(&mut ModelInfo) -> Result<()>,
) -> Result<Loaded> {
    let compute = &settled(&opened.model, compute)?;
    // Of the model as it was opened, as the followers have it: below, the tokenizer is taken out.
    let leadership = processes.map(|processes| processes.lead(&opened.model, compute));
    let leadership = leadership.transpose()?;
    let Opened {
        mut model,
        name,
        place,
        revision,
        head,
    } = opened;
    let tokenizer = model.tokenizer_json.take();
    let tokenizer = tokenizer
        .with_context(|| format!("{place}: expected a file tokenizer.json, found none"))?;
    let tokenizers = TokenizerPool::from_json(&tokenizer, batcher.tokenization_workers)
        .with_context(|| format!("{place}/tokenizer.json"))?;
    drop(tokenizer);
    let model = Arc::new(model);
    let mut info = describe(&model, compute);
    (info.id, info.revision, info.head) = (name, revision, head);
    adjust(&mut info)?;
    check_room(&model, compute).with_context(|| place.clone())?;
    let engine = start(&model, compute, leadership, &place)?;
    if let Some(n_tokens) = compute.device.first_batch(batcher.max_batch_tokens) {
        // Short texts can be split where long ones cannot, and need other memory.
        let lengths = match compute.overlap {
            Overlap::From { .. } => vec![info.max_length, info.max_length.min(SHORT_TEXT)],
            Overlap::Auto | Overlap::Off => vec![info.max_length],
        };
        warm_up(&engine, n_tokens, &lengths).with_context(|| place.clone())?;
    }
    let engine = Arc::new(engine);
    let (handle, worker) = pair(Arc::clone(&engine) as _, tokenizers, info, batcher);
    let worker = worker
        .spawn()
        .context("cannot start a thread for the batcher")?;
    Ok(Loaded {
        handle,
        worker,
        engine,
    })
}

fn start(
    model: &Arc<Model>,
    compute: &ComputeConfig,
    leadership: Option<Leadership>,
    place: &str,
) -> Result<RankEngine> {
    let total = bytes_to_read(model, compute.strategy, compute.n_ranks);
    let bar = Arc::new(Progress::new(format!("loading {place}"), Some(total)));
    let told: Arc<dyn Fn(u64) + Send + Sync> = {
        let bar = Arc::clone(&bar);
        Arc::new(move |n_bytes| bar.add(n_bytes))
    };
    let engine = devices::start(model, compute, leadership, &told);
    let engine = engine.with_context(|| place.to_owned())?;
    bar.finish();
    Ok(engine)
}

/// Runs larger and larger batches up to the largest, so that memory is taken before anybody asks. If one does not
/// fit, the error names one that does.
fn warm_up(engine: &RankEngine, n_tokens: usize, lengths: &[usize]) -> Result<()> {
    let mut fits = None;
    for part in [8, 4, 2, 1] {
        let n = n_tokens.div_ceil(part);
        let run = |&length| run_blank(engine, n, length);
        lengths.iter().try_for_each(run).with_context(|| {
            let advice = fits.map_or_else(String::new, |fits| {
                format!(", though {fits} fit (--max-batch-tokens)")
            });
            format!("cannot run a batch of {n} tokens{advice}")
        })?;
        fits = Some(n);
    }
    Ok(())
}

fn run_blank(engine: &RankEngine, n_tokens: usize, length: usize) -> Result<()> {
    let mut cu_seqlens: Vec<usize> = (0..n_tokens).step_by(length.max(1)).collect();
    cu_seqlens.push(n_tokens);
    let task = Task::Embed {
        normalize: false,
        dimensions: None,
    };
    engine.run(&PackedBatch {
        ids: vec![0; n_tokens],
        type_ids: vec![0; n_tokens],
        tasks: vec![task; cu_seqlens.len() - 1],
        cu_seqlens,
    })?;
    Ok(())
}

/// The format that weights are kept in: the user's choice, or the checkpoint's own. Rounding
/// float32 weights saves memory and loses digits, which nobody should get unasked; but a GPU's tensor
/// cores take 16 bits alone, and without them it is a tenth of itself.
#[must_use]
pub fn dtype(model: &Model, compute: &ComputeConfig) -> DType {
    let own = match (model.settings.weights_dtype, compute.device) {
        (DType::F32, DeviceKind::Cuda { .. }) => DType::BF16,
        (own, _) => own,
    };
    compute.dtype.unwrap_or(own)
}

fn n_gpus(device: DeviceKind) -> usize {
    match device {
        DeviceKind::Cuda { n_gpus } => n_gpus,
        _ => 0,
    }
}

/// Of the smallest GPU that is used; `None` if there is none.
fn gpu_memory(device: DeviceKind) -> Option<u64> {
    let n_gpus = n_gpus(device);
    let gpus = (n_gpus > 0).then(gpu::list)?.ok()?;
    gpus.iter().take(n_gpus).map(|gpu| gpu.n_bytes).min()
}

/// That the weights fit into the GPUs' memory: an error that says what would.
fn check_room(model: &Model, compute: &ComputeConfig) -> Result<()> {
    let Some(memory) = gpu_memory(compute.device) else {
        return Ok(());
    };
    let held = Held {
        strategy: compute.strategy,
        n_ranks: compute.n_ranks,
        n_gpus: n_gpus(compute.device),
        dtype: dtype(model, compute),
    };
    held.check(&model.spec, memory).map_err(anyhow::Error::msg)
}

/// What to compute with, the layout of the experts and the overlap of their exchanges decided.
///
/// # Errors
/// If the rates cannot be read.
pub fn settled(model: &Model, compute: &ComputeConfig) -> Result<ComputeConfig> {
    let mut settled = compute.clone();
    let is_cuda = matches!(compute.device, DeviceKind::Cuda { .. });
    if !is_cuda || compute.n_ranks == 1 {
        return Ok(settled);
    }
    let rates = Rates::of(compute)?;
    if compute.is_auto {
        settled.strategy = cheapest(model, compute, &rates);
        tracing::info!(experts = %settled.strategy, %rates, "layout chosen by its cost");
    }
    if compute.overlap == Overlap::Auto {
        let (strategy, dtype) = (settled.strategy, dtype(model, compute));
        let from = overlap_from(&model.spec, strategy, compute.n_ranks, dtype, &rates);
        settled.overlap = from.map_or(Overlap::Off, |n_tokens| Overlap::From {
            n_tokens,
            needs_streams: true,
        });
    }
    Ok(settled)
}

/// Of the layouts that fit, the one that takes least time by the rates.
fn cheapest(model: &Model, compute: &ComputeConfig, rates: &Rates) -> Strategy {
    let (dtype, n_ranks) = (dtype(model, compute), compute.n_ranks);
    let memory = gpu_memory(compute.device);
    let fits = |strategy| {
        let held = Held {
            strategy,
            n_ranks,
            n_gpus: n_gpus(compute.device),
            dtype,
        };
        // Some room for what a batch takes.
        let bytes = held.bytes(&model.spec);
        bytes
            .zip(memory)
            .is_some_and(|(bytes, memory)| bytes <= memory / 10 * 8)
    };
    let batch = (n_ranks, BatcherConfig::default().max_batch_tokens);
    let strategy = best(&model.spec, batch, dtype, rates, fits);
    if strategy == Strategy::Sharded
        && let Some(shares) = devices::shares_of_unlike_gpus(compute, dtype)
    {
        return Strategy::Uneven(shares);
    }
    strategy
}

/// What clients are told of a model.
#[must_use]
pub fn describe(model: &Model, compute: &ComputeConfig) -> ModelInfo {
    let (spec, settings) = (&model.spec, &model.settings);
    let experts = spec.expert_layers().next().map(|(_, experts)| experts);
    ModelInfo {
        id: String::new(),
        revision: None,
        dtype: dtype(model, compute).to_string(),
        device: compute.device.to_string(),
        family: spec.family.clone(),
        world_size: compute.n_ranks,
        experts: compute.strategy.to_string(),
        d_model: spec.d_model,
        n_layers: spec.layers.len(),
        n_experts: experts.map_or(0, |experts| experts.experts.len()),
        top_k: experts.map_or(0, |experts| experts.rule.top_k),
        vocab_size: spec.embedding.vocab_size,
        max_length: settings.max_length,
        pooling: pooling_name(settings.pooling).to_owned(),
        labels: spec.head.as_ref().map(|head| head.labels.clone()),
        classifier: settings.classifier,
        head: None,
        prompts: settings.prompts.clone(),
        default_prompt_name: settings.default_prompt_name.clone(),
    }
}
