//! Rows of named columns, from CSV or from lines of JSON.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::DataError;

/// Of a line of JSON: parsed, it may take thirty times as much memory.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// One row: the values of the columns asked for.
pub(crate) struct Row<const N: usize> {
    /// Of the file, from 1.
    pub(crate) line: u64,
    /// In the order asked for.
    pub(crate) values: [String; N],
}

/// The names that a column may have; the first that the file has is read.
pub(crate) type Names<'a> = &'a [&'a str];

/// Reads the columns `names` of every row. The name of the file says what it is: `.jsonl`, `.ndjson` and
/// `.json` an object a line, `.tsv` columns between tabs, any other CSV with a line of headers.
pub(crate) fn read<const N: usize>(
    file: &Path,
    names: [Names<'_>; N],
) -> Result<Vec<Row<N>>, DataError> {
    let extension = file.extension().and_then(|extension| extension.to_str());
    let rows = match extension {
        Some("jsonl" | "ndjson" | "json") => read_json_lines(file, names),
        Some("tsv") => read_csv(file, b'\t', names),
        _ => read_csv(file, b',', names),
    }?;
    match rows.is_empty() {
        true => Err(DataError::Empty { file: file.into() }),
        false => Ok(rows),
    }
}

/// What is wrong with one row.
pub(crate) fn row_error(file: &Path, line: u64, expected: &str, found: &str) -> DataError {
    DataError::Row {
        file: file.into(),
        line,
        expected: expected.into(),
        found: found.into(),
    }
}

/// A value as messages quote it: not whole pages of it.
pub(crate) fn quoted(value: &str) -> String {
    const MAX_CHARS: usize = 40;
    match value.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    }
}

pub(crate) fn open(file: &Path) -> Result<File, DataError> {
    File::open(file).map_err(|source| DataError::Io {
        file: file.into(),
        source,
    })
}

fn read_csv<const N: usize>(
    file: &Path,
    delimiter: u8,
    names: [Names<'_>; N],
) -> Result<Vec<Row<N>>, DataError> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(open(file)?);
    let headers = reader.headers().map_err(|error| csv_error(file, error))?;
    let headers: Vec<&str> = headers.iter().map(str::trim).collect();
    if headers.is_empty() {
        return Err(DataError::Empty { file: file.into() });
    }
    let mut columns = [0; N];
    for (column, names) in columns.iter_mut().zip(names) {
        let mut found = names
            .iter()
            .filter_map(|name| headers.iter().position(|header| header == name));
        *column = found.next().ok_or_else(|| DataError::Column {
            file: file.into(),
            expected: names.join(" or "),
            found: quoted(&headers.join(",")),
        })?;
    }
    let rows = reader.records().map(|record| {
        let record = record.map_err(|error| csv_error(file, error))?;
        // The reader has compared the number of fields with that of the headers.
        let values = columns.map(|column| record.get(column).unwrap_or_default().to_owned());
        let line = record.position().map_or(0, csv::Position::line);
        Ok(Row { line, values })
    });
    rows.collect()
}

pub(crate) fn csv_error(file: &Path, error: csv::Error) -> DataError {
    let line = error.position().map_or(1, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => DataError::Io {
            file: file.into(),
            source,
        },
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => row_error(
            file,
            line,
            &format!("{expected_len} fields"),
            &len.to_string(),
        ),
        csv::ErrorKind::Utf8 { .. } => row_error(file, line, "UTF-8", "other bytes"),
        _ => row_error(file, line, "CSV", "something else"),
    }
}

fn read_json_lines<const N: usize>(
    file: &Path,
    names: [Names<'_>; N],
) -> Result<Vec<Row<N>>, DataError> {
    let mut rows = Vec::new();
    let mut reader = BufReader::new(open(file)?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut line_reader = reader.by_ref().take(MAX_LINE_BYTES + 1);
        let read = line_reader.read_until(b'\n', &mut bytes);
        let n_bytes = read.map_err(|source| DataError::Io {
            file: file.into(),
            source,
        })?;
        if n_bytes == 0 {
            break;
        }
        rows.extend(parse_line(file, line, &bytes, names)?);
    }
    Ok(rows)
}

/// The row of a line of JSON; none if it is blank.
fn parse_line<const N: usize>(
    file: &Path,
    line: u64,
    bytes: &[u8],
    names: [Names<'_>; N],
) -> Result<Option<Row<N>>, DataError> {
    if bytes.len() as u64 > MAX_LINE_BYTES {
        let expected = format!("at most {MAX_LINE_BYTES} bytes");
        return Err(row_error(file, line, &expected, "more"));
    }
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| row_error(file, line, "UTF-8", "other bytes"))?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(None);
    }
    let object: Value = serde_json::from_str(text)
        .map_err(|error| row_error(file, line, "an object of JSON", &error.to_string()))?;
    let mut values = [const { String::new() }; N];
    for (value, names) in values.iter_mut().zip(names) {
        *value = field(&object, names).map_err(|found| {
            let names = names.join(" or ");
            let expected = format!("a field {names} that is a text or a whole number");
            row_error(file, line, &expected, &found)
        })?;
    }
    Ok(Some(Row { line, values }))
}

/// A text, or a whole number as text; else what was found instead.
fn field(object: &Value, names: Names<'_>) -> Result<String, String> {
    let value = names.iter().find_map(|name| object.get(name));
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        Some(other) => Err(quoted(&other.to_string())),
        None => Err(format!("none in {}", quoted(&object.to_string()))),
    }
}
