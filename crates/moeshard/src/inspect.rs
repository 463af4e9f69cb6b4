//! `moeshard inspect`: what a model is made of, and the memory it takes per rank.

use std::io::{self, Write};

use anyhow::Result;
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_tensor::dtype::DType;

use crate::arg_error::ArgError;
use crate::cost::{Cost, Rates, Spread, best, overlap_from, seconds_in_halves};
use crate::display::{Table, count, listed, size};
use crate::footprint::{Parameters, largest_rank};
use crate::model::{ComputeConfig, ModelArgs, ModelConfig, Opened, describe, open};

/// Ranks whose costs are shown unless another number is asked for.
const EXPLAINED_RANKS: usize = 4;

/// Flags of `moeshard inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// Which model to show
    #[command(flatten)]
    pub model: ModelArgs,

    /// Show what each layout of the experts costs the busiest of --ranks ranks (4 if not given)
    /// instead: work, bytes, time by the rates of --rates
    #[arg(long)]
    pub explain: bool,

    /// Tokens of a batch, for --explain
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub batch_tokens: usize,

    /// Show the memory for 1 to N ranks
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub max_ranks: usize,
}

/// Shows a model.
///
/// # Errors
/// If an argument is impossible or the model cannot be opened.
pub fn run(args: InspectArgs) -> Result<()> {
    let max_ranks = ArgError::at_least_one("--max-ranks", args.max_ranks)?;
    let batch_tokens = ArgError::at_least_one("--batch-tokens", args.batch_tokens)?;
    let n_ranks = args.model.compute.ranks.unwrap_or(EXPLAINED_RANKS);
    let config = ModelConfig::try_from(args.model)?;
    let opened = open(&config)?;
    let mut out = io::stdout().lock();
    if args.explain {
        return explain(
            &opened.model,
            &config.compute,
            (n_ranks, batch_tokens),
            &mut out,
        );
    }
    show(&opened, &config.compute, &mut out)?;
    show_parameters(&opened.model, &mut out)?;
    show_memory(&opened.model, &config.compute, max_ranks, &mut out)?;
    Ok(())
}

fn show(opened: &Opened, compute: &ComputeConfig, out: &mut dyn Write) -> io::Result<()> {
    let Opened {
        model,
        name,
        revision,
        ..
    } = opened;
    let info = describe(model, compute);
    let n_expert_layers = model.spec.expert_layers().count();
    let mut line = |key: &str, value: String| writeln!(out, "{key:<12} {value}");
    line("model", name.clone())?;
    if let Some(revision) = revision {
        line("revision", revision.clone())?;
    }
    line("family", info.family)?;
    line(
        "layers",
        format!("{}, {n_expert_layers} of them with experts", info.n_layers),
    )?;
    line("d_model", info.d_model.to_string())?;
    if let Some((_, layer)) = model.spec.expert_layers().next() {
        line(
            "experts",
            format!("{}, d_ff {}", layer.experts.len(), layer.d_ff),
        )?;
        line("top_k", layer.rule.top_k.to_string())?;
    }
    line("stored as", model.settings.weights_dtype.to_string())?;
    line("on disk", size(model.checkpoint.n_bytes()))?;
    line("tokenizer", tokenizer(model))?;
    line("vocabulary", count(info.vocab_size as u64))?;
    line("pooling", info.pooling)?;
    line("max length", info.max_length.to_string())?;
    line("prompts", listed(info.prompts.keys()))?;
    line("labels", labels(info.labels.as_deref()))?;
    writeln!(out)
}

fn tokenizer(model: &Model) -> String {
    match &model.tokenizer_json {
        Some(json) => format!("tokenizer.json, {}", size(json.len() as u64)),
        None => "none (no tokenizer.json), so it cannot be served".to_owned(),
    }
}

fn labels(labels: Option<&[String]>) -> String {
    const SHOWN: usize = 6;
    match labels {
        None => "none (no classification head)".to_owned(),
        Some(labels) if labels.len() <= SHOWN => {
            format!("{}: {}", labels.len(), labels.join(", "))
        }
        Some(labels) => format!("{}: {}, …", labels.len(), labels[..SHOWN].join(", ")),
    }
}

fn show_parameters(model: &Model, out: &mut dyn Write) -> io::Result<()> {
    let parameters = Parameters::of(&model.spec);
    let total = parameters.total().max(1);
    let mut table = Table::new(["parameters", "count", "share"]);
    for (kind, n) in parameters.rows().into_iter().filter(|(_, n)| *n > 0) {
        let share = 100.0 * n as f64 / total as f64;
        table.row([kind.to_owned(), count(n), format!("{share:.1} %")]);
    }
    table.row(["all".to_owned(), count(total), "100.0 %".to_owned()]);
    table.write(out)?;
    writeln!(out)
}

/// In the format that was asked for, or in each that there is: bfloat16 and float16 take the same.
fn show_memory(
    model: &Model,
    compute: &ComputeConfig,
    max_ranks: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let dtypes = match compute.dtype {
        Some(dtype) => vec![dtype],
        None => vec![DType::F32, DType::BF16],
    };
    for (i, dtype) in dtypes.into_iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        show_memory_in(model, dtype, max_ranks, out)?;
    }
    Ok(())
}

/// Capacity lays experts out as `parallel` does.
fn show_memory_in(
    model: &Model,
    dtype: DType,
    max_ranks: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let name = match dtype {
        DType::F32 => "float32",
        DType::BF16 | DType::F16 => "bfloat16 or float16",
    };
    writeln!(
        out,
        "weights of the largest rank as {name}, by layout of the experts"
    )?;
    let mut table = Table::new(["ranks", "sharded", "parallel", "replicated"]);
    for n_ranks in 1..=max_ranks {
        let strategies = [Strategy::Sharded, Strategy::Parallel, Strategy::Replicated];
        let cells = strategies.map(|strategy| {
            largest_rank(&model.spec, strategy, n_ranks, dtype).map_or("impossible".into(), size)
        });
        table.row([n_ranks.to_string()].into_iter().chain(cells));
    }
    table.write(out)
}

/// A row for each layout, and for those that depend on the routing one for the worst.
fn explain(
    model: &Model,
    compute: &ComputeConfig,
    batch: (usize, usize),
    out: &mut dyn Write,
) -> Result<()> {
    let (spec, dtype) = (&model.spec, compute.dtype.unwrap_or(DType::BF16));
    let (rates, (n_ranks, n_tokens)) = (Rates::of(compute)?, batch);
    let capacity = Strategy::Capacity { factor: 1.25 };
    let rows = [
        ("sharded", Strategy::Sharded, Spread::Even),
        ("parallel, even routing", Strategy::Parallel, Spread::Even),
        (
            "parallel, all to one rank",
            Strategy::Parallel,
            Spread::OneRank,
        ),
        ("capacity 1.25, all to one rank", capacity, Spread::OneRank),
        ("replicated", Strategy::Replicated, Spread::Even),
    ];
    let tokens = count(n_tokens as u64);
    writeln!(
        out,
        "experts of the busiest of {n_ranks} ranks for {tokens} tokens in {dtype}, all layers"
    )?;
    writeln!(out, "rates: {rates}")?;
    let mut table = Table::new([
        "layout",
        "weights",
        "multiply-adds",
        "memory",
        "exchanged",
        "time",
        "in halves",
    ]);
    for (name, strategy, spread) in rows {
        let weights = largest_rank(spec, strategy, n_ranks, dtype);
        let Ok(weights) = weights else {
            table.row([name.to_owned(), "impossible".to_owned()]);
            continue;
        };
        let cost = Cost::of(spec, strategy, spread, batch, dtype);
        let ms = |seconds: f64| format!("{:.3} ms", 1e3 * seconds);
        let halves = seconds_in_halves(spec, strategy, spread, batch, dtype, &rates);
        table.row([
            name.to_owned(),
            size(weights),
            count(cost.multiply_adds),
            size(cost.memory_bytes),
            size(cost.exchanged_bytes),
            ms(cost.seconds(&rates)),
            halves.map_or_else(|| "-".to_owned(), ms),
        ]);
    }
    table.write(out)?;
    let sharded = overlap_from(spec, Strategy::Sharded, n_ranks, dtype, &rates);
    let from = sharded.map_or("never".to_owned(), |n| {
        format!("from {} tokens on", count(n as u64))
    });
    writeln!(out, "two halves of a batch take less time, sharded: {from}")?;
    let best = best(spec, batch, dtype, &rates, |_| true);
    writeln!(out, "auto on GPUs with room for everything: {best}")?;
    Ok(())
}
