//! `moeshard verify`: a model on this machine against the plain reference, layer by layer.

mod compare;
mod device;
mod sequences;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use moeshard_encoder::model::Model;
use moeshard_encoder::reference::Reference;
use moeshard_encoder::shard::Strategy;
use moeshard_tensor::dtype::DType;

use crate::arg_error::ArgError;
use crate::display::Table;
use crate::model::{ComputeConfig, ModelArgs, ModelConfig, dtype, open, settled};
use compare::{Agreement, Comparison, Worst};
use device::Trace;

/// Relative error allowed in f32.
const EXACT: f64 = 1e-4;

/// Relative error allowed if the device rounds weights or activations. One token whose experts were
/// nearly equal and change places moves its largest numbers by some tenths.
const ROUNDED: f64 = 0.3;

/// Flags of `moeshard verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    /// Which model to verify, and what on; in f32 unless --dtype says otherwise
    #[command(flatten)]
    pub model: ModelArgs,

    /// File with one text a line [default: a few built-in texts; random tokens for a model without
    /// tokenizer]
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,

    /// Largest relative error allowed [default: 1e-4; 0.3 if --dtype rounds]
    #[arg(long, value_name = "E")]
    pub tolerance: Option<f64>,
}

/// Verifies a model.
///
/// # Errors
/// If an argument is impossible, the model cannot be run, or an error is above the tolerance.
pub fn run(args: VerifyArgs) -> Result<()> {
    let VerifyArgs {
        model,
        texts,
        tolerance,
    } = args;
    if let Some(wrong) = tolerance.filter(|t| t.is_nan() || *t <= 0.0) {
        let reason = format!("must be above 0, got {wrong}");
        return Err(ArgError::other("--tolerance", reason).into());
    }
    let mut config = ModelConfig::try_from(model)?;
    // Exact arithmetic shows a mistake; whoever wants to see what rounding does says so.
    let dtype = *config.compute.dtype.get_or_insert(DType::F32);
    let default = if dtype == DType::F32 { EXACT } else { ROUNDED };
    let tolerance = tolerance.unwrap_or(default);
    let opened = open(&config)?;
    let model = &opened.model;
    config.compute = settled(model, &config.compute)?;
    let sequences = sequences::sequences(model, texts.as_deref())?;
    let traces = device::run(model, &config.compute, &sequences)?;
    let comparison = compare_all(model, &config.compute, &sequences, &traces)?;
    let mut out = io::stdout().lock();
    print_header(&mut out, &opened.name, model, &config.compute, &sequences)?;
    print_table(&mut out, &comparison)?;
    let worst = comparison.worst();
    ensure!(
        worst <= tolerance,
        "the largest relative error is {worst:.1e}, above the tolerance of {tolerance:.1e}{}",
        drops(&config.compute)
    );
    writeln!(out, "every error is within {tolerance:.1e}")?;
    Ok(())
}

fn compare_all(
    model: &Model,
    compute: &ComputeConfig,
    sequences: &[Vec<u32>],
    traces: &[Trace],
) -> Result<Comparison> {
    let reference = Reference::new(&model.spec, &model.checkpoint, compute.sequence_capacity);
    let pooling = model.settings.pooling;
    let mut comparison = Comparison::new(&model.spec);
    for (seq, (ids, trace)) in sequences.iter().zip(traces).enumerate() {
        let want = reference.forward(ids, &vec![0; ids.len()])?;
        for (step, (found, want)) in trace.layers.iter().zip(&want.layers).enumerate() {
            comparison.step(step, seq, found, want);
        }
        for (layer_idx, want) in &want.routing {
            if let Some((_, found)) = trace.routing.iter().find(|(idx, _)| idx == layer_idx) {
                comparison.routing(*layer_idx, found, want);
            }
        }
        let d_model = model.spec.d_model;
        comparison.last("final norm", seq, d_model, &trace.hidden, &want.hidden);
        let pooled = reference.pool(&want.hidden, pooling)?;
        comparison.last("pooled", seq, d_model, &trace.pooled, &pooled);
        if let Some(found) = &trace.logits {
            let want = reference.logits(&want.hidden, pooling)?;
            comparison.last("logits", seq, want.len().max(1), found, &want);
        }
    }
    Ok(comparison)
}

fn print_header(
    out: &mut dyn Write,
    name: &str,
    model: &Model,
    compute: &ComputeConfig,
    sequences: &[Vec<u32>],
) -> io::Result<()> {
    let n_tokens: usize = sequences.iter().map(Vec::len).sum();
    writeln!(
        out,
        "{name}: {} sequences of {n_tokens} tokens as {} on {} of {} kernels, experts {}\n",
        sequences.len(),
        dtype(model, compute),
        ranks(compute.n_ranks),
        compute.device.kernels(),
        compute.strategy,
    )
}

/// Why `capacity` is no match for the reference.
fn drops(compute: &ComputeConfig) -> &'static str {
    match compute.strategy {
        Strategy::Capacity { .. } => " (--experts capacity drops tokens that the reference keeps)",
        _ => "",
    }
}

fn ranks(n: usize) -> String {
    if n == 1 {
        "1 rank".to_owned()
    } else {
        format!("{n} ranks")
    }
}

fn print_table(out: &mut dyn Write, comparison: &Comparison) -> io::Result<()> {
    let mut table = Table::new([
        "after",
        "relative error",
        "sequence, token, dimension",
        "same experts",
    ]);
    for step in comparison.steps() {
        let Worst {
            relative,
            seq,
            token,
            dim,
        } = step.worst;
        let agreement = step
            .agreement
            .as_ref()
            .map(Agreement::to_string)
            .unwrap_or_default();
        let at = format!("{seq}, {token}, {dim}");
        table.row([step.name.clone(), format!("{relative:.2e}"), at, agreement]);
    }
    table.write(out)?;
    writeln!(out)
}
