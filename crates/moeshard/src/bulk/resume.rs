//! What an earlier run left in a JSONL output, looked at before anything of it is changed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::output::RowShape;

/// The longest row. A longer one was not written by this program.
const MAX_ROW: usize = 64 << 20;

/// The rows of a file.
#[derive(Default)]
struct Found {
    n_rows: u64,
    /// Where the last whole row ends.
    end: u64,
    /// The last whole row.
    last: Vec<u8>,
    /// The last row that is no error.
    result: Vec<u8>,
    /// What follows the last whole row.
    torn: Vec<u8>,
}

/// Makes sure that the rows are those of such a run, cuts off a torn one and counts the others.
pub(super) fn resume(file: &mut File, shape: &RowShape) -> Result<u64> {
    let found = scan(file)?;
    check_torn(&found)?;
    if found.n_rows > 0 {
        check_last(&found, shape)?;
    }
    file.set_len(found.end)?;
    file.seek(SeekFrom::End(0))?;
    Ok(found.n_rows)
}

fn scan(file: &mut File) -> Result<Found> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut found = Found::default();
    loop {
        found.torn.clear();
        let n = read_row(&mut reader, &mut found.torn)?;
        ensure!(
            n <= MAX_ROW,
            "its line {} is longer than {MAX_ROW} bytes",
            found.n_rows + 1
        );
        if found.torn.pop_if(|byte| *byte == b'\n').is_none() {
            return Ok(found);
        }
        (found.n_rows, found.end) = (found.n_rows + 1, found.end + n as u64);
        std::mem::swap(&mut found.last, &mut found.torn);
        if has_result(&found.last) {
            found.result.clone_from(&found.last);
        }
    }
}

fn read_row(reader: &mut impl BufRead, row: &mut Vec<u8>) -> io::Result<usize> {
    let mut limited = reader.take(MAX_ROW as u64 + 1);
    limited.read_until(b'\n', row)
}

/// Whether the second value of the row is not `null`.
fn has_result(row: &[u8]) -> bool {
    let second = row.splitn(3, |byte| *byte == b':').nth(2);
    second.is_some_and(|value| !value.starts_with(b"null"))
}

/// What this program leaves unfinished is the beginning of the next row.
fn check_torn(found: &Found) -> Result<()> {
    let begin = format!("{{\"index\":{},", found.n_rows);
    let n = begin.len().min(found.torn.len());
    ensure!(
        begin.as_bytes()[..n] == found.torn[..n],
        "its line {} is no row that this program wrote",
        found.n_rows + 1
    );
    Ok(())
}

fn check_last(found: &Found, shape: &RowShape) -> Result<()> {
    let (n_rows, last) = (found.n_rows, parse(&found.last));
    let index = last.get("index").and_then(Value::as_u64);
    ensure!(
        index == Some(n_rows - 1),
        "its line {n_rows} should have index {}, it has {}",
        n_rows - 1,
        index.map_or("none".to_owned(), |index| index.to_string()),
    );
    let found_kind = match (last.get("embedding"), last.get("label")) {
        (Some(_), None) => "embeddings",
        (None, Some(_)) => "labels",
        _ => bail!("its line {n_rows} has neither an embedding nor a label"),
    };
    let (kind, width) = match shape {
        RowShape::Embedding { width } => ("embeddings", Some(*width)),
        RowShape::Scores { .. } => ("labels", None),
    };
    ensure!(
        found_kind == kind,
        "its rows are {found_kind}, this run's are {kind}"
    );
    if let (RowShape::Scores { labels, .. }, Some(found)) = (shape, label_of(&found.result)) {
        ensure!(
            labels.contains(&found),
            "its rows have the label {found:?}, which is none of this run's"
        );
    }
    width.map_or(Ok(()), |width| check_width(&found.result, width))
}

fn label_of(row: &[u8]) -> Option<String> {
    Some(parse(row).get("label")?.as_str()?.to_owned())
}

/// Where every row is an error, any width will do.
fn check_width(row: &[u8], width: usize) -> Result<()> {
    if row.is_empty() {
        return Ok(());
    }
    let row = parse(row);
    let embedding = row.get("embedding").and_then(Value::as_array);
    let found = embedding
        .context("its rows are no embeddings of numbers")?
        .len();
    ensure!(
        found == width,
        "its rows have {found} numbers, this run's have {width}"
    );
    Ok(())
}

/// `null` for what is no JSON: it has no field.
fn parse(row: &[u8]) -> Value {
    serde_json::from_slice(row).unwrap_or_default()
}
