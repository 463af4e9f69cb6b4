//! Rows of results to a file, one after the other.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::npy::NpyWriter;
use super::resume;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// A JSON object a line
    Jsonl,
    /// A NumPy matrix of float32
    Npy,
}

/// What becomes of an output that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is an error.
    Refuse,
    /// It is replaced.
    Overwrite,
    /// It is continued.
    Resume,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputConfig {
    /// The file; `None` is standard output.
    pub path: Option<PathBuf>,
    /// Its form.
    pub format: OutputFormat,
    /// What becomes of it if it exists.
    pub existing: Existing,
}

/// What the numbers of a row are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowShape {
    /// The dimensions of an embedding.
    Embedding {
        /// How many.
        width: usize,
    },
    /// One score a label.
    Scores {
        /// In the order of the scores.
        labels: Vec<String>,
        /// How many to list besides the best.
        top_k: Option<usize>,
    },
}

impl RowShape {
    /// Numbers of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Embedding { width } => *width,
            Self::Scores { labels, .. } => labels.len(),
        }
    }
}

/// Where rows go.
pub struct Rows {
    sink: Sink,
    shape: RowShape,
    n_rows: u64,
}

enum Sink {
    Jsonl(BufWriter<Box<dyn Write>>),
    Npy(NpyWriter),
}

impl Rows {
    /// Opens the output.
    ///
    /// # Errors
    /// If it exists and must not, or cannot be continued.
    pub fn open(config: &OutputConfig, shape: RowShape) -> Result<Self> {
        let Some(path) = &config.path else {
            let sink = Sink::Jsonl(BufWriter::new(Box::new(io::stdout())));
            return Ok(Self {
                sink,
                shape,
                n_rows: 0,
            });
        };
        let name = path.display().to_string();
        let resumes = config.existing == Existing::Resume && path.exists();
        let mut file = open_file(path, config.existing).with_context(|| name.clone())?;
        let cannot_continue = || format!("{name} cannot be continued");
        let (sink, n_rows) = match config.format {
            OutputFormat::Npy => {
                let writer = if resumes {
                    NpyWriter::resume(file, shape.width()).with_context(cannot_continue)?
                } else {
                    NpyWriter::create(file, shape.width()).with_context(|| name.clone())?
                };
                let n_rows = writer.n_rows();
                (Sink::Npy(writer), n_rows)
            }
            OutputFormat::Jsonl => {
                let n_rows = if resumes {
                    resume::resume(&mut file, &shape).with_context(cannot_continue)?
                } else {
                    0
                };
                (Sink::Jsonl(BufWriter::new(Box::new(file))), n_rows)
            }
        };
        Ok(Self {
            sink,
            shape,
            n_rows,
        })
    }

    /// Appends the row of the next input.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, row: Result<&[f32], &str>) -> io::Result<()> {
        let index = self.n_rows;
        self.n_rows += 1;
        let out = match &mut self.sink {
            Sink::Npy(writer) => {
                return match row {
                    Ok(row) => writer.write_row(row),
                    Err(_) => writer.write_nan(),
                };
            }
            Sink::Jsonl(out) => out,
        };
        match &self.shape {
            RowShape::Embedding { .. } => {
                let (embedding, error) = (row.ok(), row.err());
                let line = EmbeddingLine {
                    index,
                    embedding,
                    error,
                };
                serde_json::to_writer(&mut *out, &line)?;
            }
            RowShape::Scores { labels, top_k } => {
                serde_json::to_writer(&mut *out, &scores_line(index, row, labels, *top_k))?;
            }
        }
        out.write_all(b"\n")
    }

    /// Rows written, those of an earlier run included.
    #[must_use]
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Hands everything to the system: what is flushed survives the end of this process.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Jsonl(out) => out.flush(),
            Sink::Npy(writer) => writer.flush(),
        }
    }
}

#[derive(Serialize)]
struct EmbeddingLine<'a> {
    index: u64,
    embedding: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct ScoresLine<'a> {
    index: u64,
    label: Option<&'a str>,
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Vec<Score<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Score<'a> {
    label: &'a str,
    score: f32,
}

fn scores_line<'a>(
    index: u64,
    row: Result<&[f32], &'a str>,
    labels: &'a [String],
    top_k: Option<usize>,
) -> ScoresLine<'a> {
    let scores = match row {
        Ok(scores) => scores,
        Err(error) => {
            return ScoresLine {
                index,
                error: Some(error),
                ..ScoresLine::default()
            };
        }
    };
    let mut order: Vec<usize> = (0..scores.len().min(labels.len())).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let score = |&i: &usize| Score {
        label: &labels[i],
        score: scores[i],
    };
    ScoresLine {
        index,
        label: order.first().map(|&i| labels[i].as_str()),
        score: order.first().map(|&i| scores[i]),
        scores: top_k.map(|k| order.iter().take(k).map(score).collect()),
        error: None,
    }
}

fn open_file(path: &Path, existing: Existing) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match existing {
        Existing::Refuse => options.create_new(true),
        Existing::Overwrite => options.create(true).truncate(true),
        Existing::Resume => options.create(true).truncate(false),
    };
    options.open(path)
}
