//! Files of texts in, files of vectors or labels out, in bounded memory.
//!
//! 1. [`input`] reads records: a line of text, a CSV column or a JSONL field each.
//! 2. [`pipeline`] keeps a few chunks of records in the batcher and takes their answers in order.
//! 3. [`output`] writes a row a record; [`npy`] is one of its formats.
//!
//! The row of a record stands where the record stands, so a run that was interrupted is resumed by
//! counting the rows that are there and leaving out as many records.

pub mod args;
pub mod input;
pub mod npy;
pub mod output;
pub mod pipeline;
mod resume;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use moeshard_batcher::{ModelInfo, Options};

pub use args::{BulkArgs, BulkConfig};
use input::Records;
pub use output::RowShape;
use output::Rows;
use pipeline::Summary;

use crate::arg_error::ArgError;
use crate::display::count;
use crate::model;

/// Runs a file through the model. `shape` says what a row of this model is.
///
/// # Errors
/// If the model cannot be loaded, a file cannot be read or written, or the run stops early; what
/// was written until then is whole and can be resumed.
pub fn run(
    config: BulkConfig,
    mut options: Options,
    shape: impl FnOnce(&ModelInfo) -> Result<RowShape>,
) -> Result<()> {
    (options.truncate, options.prompt_name) = (config.truncate, config.prompt_name);
    let mut records = Records::open(&config.input)?;
    let opened = model::open(&config.model)?;
    let loaded = model::load(opened, &config.model.compute, config.batcher, |_| Ok(()))?;
    let info = loaded.handle.info();
    if let Some(name) = &options.prompt_name {
        ArgError::known_prompt("--prompt-name", name, info)?;
    }
    let mut rows = Rows::open(&config.output, shape(info)?)?;
    if rows.n_rows() > 0 {
        tracing::info!("continuing after {} rows", count(rows.n_rows()));
    }
    let started = Instant::now();
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let job = pipeline::run(
        &loaded.handle,
        &mut records,
        &mut rows,
        &options,
        config.skip_errors,
    );
    let summary = runtime.block_on(job)?;
    loaded.handle.close();
    report(&summary, started, config.output.path.as_deref());
    Ok(())
}

fn report(summary: &Summary, started: Instant, output: Option<&Path>) {
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    let rate = |n: u64| count((n as f64 / seconds) as u64);
    tracing::info!(
        "{} rows to {} in {seconds:.1} s ({} rows/s, {} tokens/s), {} without result",
        count(summary.n_rows),
        output.map_or("standard output".into(), Path::to_string_lossy),
        rate(summary.n_rows),
        rate(summary.n_tokens),
        count(summary.n_skipped),
    );
}
