//! Records of text from a file, one after the other.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The longest record. A model reads a few thousand tokens of it; a longer one is no text but a
/// file without line ends or with an open quote, and reading it would take all memory.
const MAX_RECORD: usize = 64 << 20;

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// Form of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum InputFormat {
    /// A line a text
    Text,
    /// Comma-separated values, the text in one column
    Csv,
    /// A JSON object a line, the text in one field
    Jsonl,
}

impl fmt::Display for InputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Csv => "csv",
            Self::Jsonl => "jsonl",
        })
    }
}

/// Which column of a CSV file has the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CsvColumn {
    /// The one called `text`, or the only one.
    Obvious,
    /// This one, by name or by index.
    Named(String),
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputConfig {
    /// The file; `None` is standard input.
    pub path: Option<PathBuf>,
    /// Its form.
    pub format: InputFormat,
    /// JSONL: the field with the text.
    pub field: String,
    /// CSV: the column with the text.
    pub column: CsvColumn,
    /// CSV: what separates columns.
    pub delimiter: u8,
    /// CSV: whether the first row names the columns.
    pub has_header: bool,
}

/// A text, or why there is none.
pub type Text = Result<String, String>;

/// One text of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Line of the file on which it starts, from 1.
    pub line: u64,
    /// The text.
    pub text: Text,
}

/// The records of a file in order.
pub struct Records {
    form: Form,
    n_bytes: Arc<AtomicU64>,
    /// Size of the file, if it is one.
    total: Option<u64>,
}

enum Form {
    Lines(Lines),
    Jsonl { lines: Lines, field: String },
    Csv { rows: CsvRows, column: usize },
}

impl Records {
    /// Opens the input.
    ///
    /// # Errors
    /// If it cannot be opened, or a CSV file has no such column.
    pub fn open(config: &InputConfig) -> Result<Self> {
        let name = match &config.path {
            None => "standard input".to_owned(),
            Some(path) => path.display().to_string(),
        };
        let (file, total): (Box<dyn Read>, _) = match &config.path {
            None => (Box::new(io::stdin()), None),
            Some(path) => {
                let file = File::open(path).with_context(|| name.clone())?;
                let meta = file.metadata().with_context(|| name.clone())?;
                ensure!(!meta.is_dir(), "{name} is a folder, expected a file");
                let total = meta.is_file().then_some(meta.len());
                (Box::new(file), total)
            }
        };
        let n_bytes = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner: file,
            n_bytes: Arc::clone(&n_bytes),
            limit: None,
        };
        let form = match config.format {
            InputFormat::Text => Form::Lines(Lines::new(counted)),
            InputFormat::Jsonl => Form::Jsonl {
                lines: Lines::new(counted),
                field: config.field.clone(),
            },
            InputFormat::Csv => {
                let mut rows = CsvRows::new(counted, config);
                let column = rows.find(&config.column).with_context(|| name)?;
                Form::Csv { rows, column }
            }
        };
        Ok(Self {
            form,
            n_bytes,
            total,
        })
    }

    /// Bytes read so far.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes.load(Ordering::Relaxed)
    }

    /// Bytes there are, if that is known.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read on. A record that is no text is no such error.
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        let record = match &mut self.form {
            Form::Lines(lines) => lines.next_line()?.map(|(line, bytes)| (line, utf8(bytes))),
            Form::Jsonl { lines, field } => {
                let next = lines.next_line()?;
                let is_blank = matches!(&next, Some((_, Ok(line))) if line.trim_ascii().is_empty());
                if is_blank && lines.is_at_end()? {
                    return Ok(None);
                }
                next.map(|(line, bytes)| (line, utf8(bytes).and_then(|t| json_field(&t, field))))
            }
            Form::Csv { rows, column } => rows.next_cell(*column)?,
        };
        Ok(record.map(|(line, text)| Record {
            line,
            text: text.and_then(not_empty),
        }))
    }
}

/// A line without its end, or why it was not kept.
type Line = Result<Vec<u8>, String>;

fn not_empty(text: String) -> Text {
    if text.is_empty() {
        Err("the text is empty".to_owned())
    } else {
        Ok(text)
    }
}

fn utf8(bytes: Line) -> Text {
    String::from_utf8(bytes?).map_err(|error| {
        let byte = error.utf8_error().valid_up_to() + 1;
        format!("the text is not valid UTF-8 (at byte {byte})")
    })
}

fn json_field(line: &str, field: &str) -> Text {
    if line.trim().is_empty() {
        return Err("the line is empty".to_owned());
    }
    let mut object: Value =
        serde_json::from_str(line).map_err(|error| format!("the line is not JSON: {error}"))?;
    match object.get_mut(field).map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("field `{field}` is not a string")),
        None if object.is_object() => Err(format!("the object has no field `{field}`")),
        None => Err(format!("the line is not an object with a field `{field}`")),
    }
}

/// Lines without their ends.
struct Lines {
    reader: BufReader<Counted>,
    line: u64,
}

impl Lines {
    fn new(reader: Counted) -> Self {
        Self {
            reader: BufReader::with_capacity(BUFFER, reader),
            line: 0,
        }
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(self.reader.fill_buf()?.is_empty())
    }

    /// The next line with its number.
    fn next_line(&mut self) -> Result<Option<(u64, Line)>> {
        let mut bytes = Vec::new();
        let cannot = || format!("cannot read on after line {}", self.line);
        let limit = MAX_RECORD as u64 + 1;
        let n_read = self
            .reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut bytes);
        if n_read.with_context(cannot)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        } else if bytes.len() > MAX_RECORD {
            self.reader.skip_until(b'\n')?;
            let reason = format!("the line is longer than {MAX_RECORD} bytes");
            return Ok(Some((self.line, Err(reason))));
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        // A byte order mark is no part of the text.
        if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Ok(Some((self.line, Ok(bytes))))
    }
}

/// Rows of a CSV file.
struct CsvRows {
    reader: csv::Reader<Counted>,
    has_header: bool,
    /// The row that was read to count columns, where there is no header.
    first: Option<csv::ByteRecord>,
}

impl CsvRows {
    fn new(mut counted: Counted, config: &InputConfig) -> Self {
        counted.limit_from_here();
        let reader = csv::ReaderBuilder::new()
            .delimiter(config.delimiter)
            .has_headers(config.has_header)
            .flexible(true)
            .buffer_capacity(BUFFER)
            .from_reader(counted);
        Self {
            reader,
            has_header: config.has_header,
            first: None,
        }
    }

    /// Index of the column with the text.
    fn find(&mut self, column: &CsvColumn) -> Result<usize> {
        let names: Vec<String> = match self.has_header {
            true => {
                let header = self.reader.byte_headers().context("the CSV header")?;
                let name = |bytes| String::from_utf8_lossy(bytes).into_owned();
                header.iter().map(name).collect()
            }
            false => {
                let mut row = csv::ByteRecord::new();
                let is_there = self.reader.read_byte_record(&mut row);
                let is_there = is_there.context("the first row")?;
                self.first = is_there.then_some(row.clone());
                vec![String::new(); row.len()]
            }
        };
        let called = |wanted: &str| names.iter().position(|name| name == wanted);
        let shown = names.join(", ");
        match column {
            _ if names.is_empty() => Ok(0),
            CsvColumn::Obvious => match called("text") {
                Some(column) => Ok(column),
                None if names.len() == 1 => Ok(0),
                None => bail!(
                    "choose one of {} columns with --column: {shown}",
                    names.len()
                ),
            },
            CsvColumn::Named(wanted) => match called(wanted).or_else(|| wanted.parse().ok()) {
                Some(column) if column < names.len() => Ok(column),
                _ => bail!(
                    "the CSV file has no column `{wanted}`; it has {}: {shown}",
                    names.len()
                ),
            },
        }
    }

    /// The cell of the next row, with the line on which the row starts.
    fn next_cell(&mut self, column: usize) -> Result<Option<(u64, Text)>> {
        let row = match self.first.take() {
            Some(row) => row,
            None => {
                let mut row = csv::ByteRecord::new();
                let line = self.reader.position().line();
                self.reader.get_mut().limit_from_here();
                let is_there = self.reader.read_byte_record(&mut row);
                if !is_there.with_context(|| format!("cannot read the row at line {line}"))? {
                    return Ok(None);
                }
                row
            }
        };
        let line = row.position().map_or(0, csv::Position::line);
        let text = match row.get(column) {
            Some(cell) => utf8(Ok(cell.to_vec())),
            None => Err(format!(
                "the row has {} columns, expected {} or more",
                row.len(),
                column + 1
            )),
        };
        Ok(Some((line, text)))
    }
}

/// Counts what is read, and refuses to read more than a record may have.
struct Counted {
    inner: Box<dyn Read>,
    n_bytes: Arc<AtomicU64>,
    /// Where reading has to stop.
    limit: Option<u64>,
}

impl Counted {
    /// Another record may be read from here on.
    fn limit_from_here(&mut self) {
        self.limit = Some(self.n_bytes.load(Ordering::Relaxed) + MAX_RECORD as u64);
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let so_far = self.n_bytes.load(Ordering::Relaxed);
        if self.limit.is_some_and(|limit| so_far > limit) {
            return Err(io::Error::other(format!(
                "a row is longer than {MAX_RECORD} bytes: is a quote left open?"
            )));
        }
        let n = self.inner.read(buffer)?;
        self.n_bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
