//! Keeps the batcher busy with a few chunks of records, and writes their answers in order.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use moeshard_batcher::{Handle, Input, Options, SubmitError};
use tokio::task::JoinHandle;

use super::input::{Record, Records, Text};
use super::output::Rows;
use crate::display::count;
use crate::progress::Progress;

/// Chunks under way: one runs, one waits, the others are tokenized or written.
const DEPTH: usize = 4;

/// Most records of a chunk.
const CHUNK_RECORDS: usize = 512;

/// Most bytes of a chunk, the last record apart.
const CHUNK_BYTES: usize = 1 << 20;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows written by this run.
    pub n_rows: u64,
    /// Those of them that are empty because the text could not be run.
    pub n_skipped: u64,
    /// Tokens run.
    pub n_tokens: u64,
}

/// One text of a chunk: the values and the tokens, or what went wrong.
type Outcome = Result<(Vec<f32>, usize), Fault>;

/// What went wrong with a text.
#[derive(Debug)]
enum Fault {
    /// It cannot be run.
    Text(String),
    /// Nothing can be run any more.
    Engine(String),
}

/// Records that are being run.
struct Flight {
    lines: Vec<u64>,
    outcomes: JoinHandle<Vec<Outcome>>,
}

/// Runs the records after the first `n_done` and appends a row for each.
///
/// # Errors
/// If a file cannot be read or written, the engine breaks, the user interrupts, or a text cannot
/// be run and `skip_errors` is not set. What was written before is whole.
pub async fn run(
    handle: &Handle,
    records: &mut Records,
    rows: &mut Rows,
    options: &Options,
    skip_errors: bool,
) -> Result<Summary> {
    leave_out(records, rows.n_rows())?;
    let progress = Progress::new("running", records.total());
    let mut reader = ChunkReader {
        records,
        skip_errors,
        failure: None,
    };
    let mut flights = VecDeque::new();
    let mut summary = Summary::default();
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let started = Instant::now();
    loop {
        while flights.len() < DEPTH
            && let Some(chunk) = reader.next_chunk()?
        {
            flights.push_back(launch(handle.clone(), chunk, options.clone()));
        }
        let Some(flight) = flights.pop_front() else {
            break;
        };
        let outcomes = tokio::select! {
            outcomes = flight.outcomes => outcomes?,
            _ = &mut interrupt => {
                bail!("interrupted after {} rows; continue with --resume", count(rows.n_rows()));
            }
        };
        let landed = land(rows, &flight.lines, outcomes, skip_errors, &mut summary);
        rows.flush()?;
        landed?;
        let rate = summary.n_rows as f64 / started.elapsed().as_secs_f64();
        let note = format!("{} rows, {rate:.0}/s", count(rows.n_rows()));
        progress.set(reader.records.n_bytes(), &note);
    }
    rows.flush()?;
    if let Some(failure) = reader.failure {
        bail!(failure);
    }
    Ok(summary)
}

/// Passes over the records that an earlier run has answered.
fn leave_out(records: &mut Records, n_done: u64) -> Result<()> {
    for n in 0..n_done {
        let is_there = records.next_record()?.is_some();
        ensure!(
            is_there,
            "the output has {n_done} rows but the input only {n}: is it another one?"
        );
    }
    Ok(())
}

/// Cuts the records into chunks.
struct ChunkReader<'a> {
    records: &'a mut Records,
    skip_errors: bool,
    /// The record that cannot be run; nothing is read after it.
    failure: Option<String>,
}

impl ChunkReader<'_> {
    /// The next records; `None` after the last, or after one that cannot be run.
    fn next_chunk(&mut self) -> Result<Option<Vec<Record>>> {
        let (mut chunk, mut n_bytes) = (Vec::new(), 0);
        while self.failure.is_none() && chunk.len() < CHUNK_RECORDS && n_bytes < CHUNK_BYTES {
            let Some(record) = self.records.next_record()? else {
                break;
            };
            match &record.text {
                Err(reason) if !self.skip_errors => {
                    self.failure = Some(failure(record.line, reason));
                    break;
                }
                text => n_bytes += text.as_ref().map_or(0, String::len),
            }
            chunk.push(record);
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

fn failure(line: u64, reason: &str) -> String {
    format!("line {line}: {reason} (--skip-errors writes an empty row instead)")
}

/// Starts a chunk on its way through the batcher.
fn launch(handle: Handle, chunk: Vec<Record>, options: Options) -> Flight {
    let lines = chunk.iter().map(|record| record.line).collect();
    let texts = chunk.into_iter().map(|record| record.text).collect();
    let outcomes = tokio::spawn(answer(handle, texts, options));
    Flight { lines, outcomes }
}

/// Runs the texts of a chunk together; if one of them is refused, each for itself, because the
/// texts before it are to be answered all the same.
async fn answer(handle: Handle, texts: Vec<Text>, options: Options) -> Vec<Outcome> {
    let inputs: Vec<Input> = texts.iter().flatten().cloned().map(Input::Text).collect();
    let outcomes = match handle.submit_all(inputs, &options).await {
        Ok(answers) => answers
            .into_iter()
            .map(|a| Ok((a.values, a.n_tokens)))
            .collect(),
        Err(_) => one_by_one(&handle, &texts, &options).await,
    };
    let mut outcomes = outcomes.into_iter();
    let mut next = || {
        let lost = || Err(Fault::Engine("an answer was lost".to_owned()));
        outcomes.next().unwrap_or_else(lost)
    };
    texts
        .into_iter()
        .map(|text| text.map_err(Fault::Text).and_then(|_| next()))
        .collect()
}

async fn one_by_one(handle: &Handle, texts: &[Text], options: &Options) -> Vec<Outcome> {
    let alone = |text: &String| {
        let (handle, options, input) = (handle.clone(), options.clone(), Input::Text(text.clone()));
        tokio::spawn(async move { handle.submit(input, &options).await })
    };
    let running: Vec<_> = texts.iter().flatten().map(alone).collect();
    let mut outcomes = Vec::with_capacity(running.len());
    for answer in running {
        outcomes.push(match answer.await {
            Ok(Ok(answer)) => Ok((answer.values, answer.n_tokens)),
            Ok(Err(error)) if is_final(&error) => Err(Fault::Engine(error.to_string())),
            Ok(Err(error)) => Err(Fault::Text(error.to_string())),
            Err(error) => Err(Fault::Engine(error.to_string())),
        });
    }
    outcomes
}

fn is_final(error: &SubmitError) -> bool {
    matches!(
        error,
        SubmitError::Unhealthy(_) | SubmitError::Closed | SubmitError::Starting
    )
}

/// Writes the rows of a chunk; stops at the first text that failed, unless those are skipped.
fn land(
    rows: &mut Rows,
    lines: &[u64],
    outcomes: Vec<Outcome>,
    skip_errors: bool,
    summary: &mut Summary,
) -> Result<()> {
    for (&line, outcome) in lines.iter().zip(outcomes) {
        match outcome {
            Ok((values, n_tokens)) => {
                rows.write(Ok(&values))?;
                summary.n_tokens += n_tokens as u64;
            }
            Err(Fault::Engine(reason)) => bail!(reason),
            Err(Fault::Text(reason)) if skip_errors => {
                rows.write(Err(&reason))?;
                summary.n_skipped += 1;
            }
            Err(Fault::Text(reason)) => bail!(failure(line, &reason)),
        }
        summary.n_rows += 1;
    }
    Ok(())
}
