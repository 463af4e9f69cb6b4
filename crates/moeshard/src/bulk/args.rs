//! The flags of `embed` and `classify`.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use moeshard_batcher::BatcherConfig;

use super::input::{CsvColumn, InputConfig, InputFormat};
use super::output::{Existing, OutputConfig, OutputFormat};
use crate::arg_error::ArgError;
use crate::batch_args::BatchArgs;
use crate::model::{ModelArgs, ModelConfig};

/// What to read and what to write.
#[derive(Clone, Debug, clap::Args)]
pub struct BulkArgs {
    /// File with the texts, - for standard input
    #[arg(long, short, value_name = "FILE|-")]
    pub input: PathBuf,

    /// File for the results, - for standard output (JSONL only)
    #[arg(long, short, value_name = "FILE|-")]
    pub output: PathBuf,

    /// Form of the input [default: by its name: .csv, .tsv, .jsonl, .ndjson; else a line a text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub input_format: Option<InputFormat>,

    /// Form of the output [default: by its name: .npy, else JSONL]
    #[arg(long, alias = "output-format", value_name = "FORMAT", value_enum)]
    pub format: Option<OutputFormat>,

    /// Column of a CSV file with the text, by name or by index from 0 [default: `text`, or the
    /// only one]
    #[arg(long, value_name = "NAME|INDEX")]
    pub column: Option<String>,

    /// Character between the columns of a CSV file [default: a comma; a tab for .tsv]
    #[arg(long, value_name = "CHAR")]
    pub delimiter: Option<char>,

    /// The CSV file has no header: its first row is a text like the others
    #[arg(long)]
    pub no_header: bool,

    /// Field of a JSONL object with the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub field: String,

    /// Continue an interrupted run: keep the rows of the output and leave out as many inputs
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,

    /// Replace the output if it exists
    #[arg(long)]
    pub overwrite: bool,

    /// Write an empty row (null, or NaN in .npy) for a text that cannot be run, instead of
    /// stopping there
    #[arg(long)]
    pub skip_errors: bool,

    /// Prompt of the model to put before each text
    #[arg(long, value_name = "NAME")]
    pub prompt_name: Option<String>,

    /// Refuse texts that are too long instead of cutting them
    #[arg(long)]
    pub no_truncate: bool,

    /// How texts are batched
    #[command(flatten)]
    pub batch: BatchArgs,

    /// Which model to run
    #[command(flatten)]
    pub model: ModelArgs,
}

/// A bulk run, checked.
#[derive(Clone, Debug)]
pub struct BulkConfig {
    /// What to read.
    pub input: InputConfig,
    /// What to write.
    pub output: OutputConfig,
    /// Write an empty row for a text that cannot be run.
    pub skip_errors: bool,
    /// The prompt put before each text.
    pub prompt_name: Option<String>,
    /// Cut what is too long.
    pub truncate: bool,
    /// How texts are batched.
    pub batcher: BatcherConfig,
    /// Which model to run.
    pub model: ModelConfig,
}

impl TryFrom<BulkArgs> for BulkConfig {
    type Error = ArgError;

    fn try_from(args: BulkArgs) -> Result<Self, ArgError> {
        let input = input(&args)?;
        let output = output(&args)?;
        let mut batcher = BatcherConfig::try_from(args.batch)?;
        // Nobody else uses this batcher, and the pipeline holds only a few chunks.
        batcher.max_queue_tokens = usize::MAX;
        batcher.max_queue_bytes = usize::MAX;
        Ok(Self {
            input,
            output,
            skip_errors: args.skip_errors,
            prompt_name: args.prompt_name,
            truncate: !args.no_truncate,
            batcher,
            model: ModelConfig::try_from(args.model)?,
        })
    }
}

/// `None` for `-`.
fn file(path: &Path) -> Option<PathBuf> {
    (path != Path::new("-")).then(|| path.to_owned())
}

/// Whether both are the same file, by whatever names.
fn is_same(output: &Path, input: Option<&Path>) -> bool {
    let by_path = |input: &Path| matches!((output.canonicalize(), input.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if input.is_some_and(by_path) {
        return true;
    }
    let input = input.map_or_else(of_stdin, fs::metadata);
    matches!((fs::metadata(output), input), (Ok(a), Ok(b)) if is_same_inode(&a, &b))
}

/// Whether both are one file on disk; terminals and pipes may well be read and written.
#[cfg(unix)]
fn is_same_inode(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_inode(_: &Metadata, _: &Metadata) -> bool {
    false
}

#[cfg(unix)]
fn of_stdin() -> io::Result<Metadata> {
    use std::os::fd::AsFd;
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    fs::File::from(stdin).metadata()
}

#[cfg(not(unix))]
fn of_stdin() -> io::Result<Metadata> {
    Err(io::ErrorKind::Unsupported.into())
}

fn extension(path: &Path) -> String {
    path.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase()
}

fn input(args: &BulkArgs) -> Result<InputConfig, ArgError> {
    let extension = extension(&args.input);
    let path = file(&args.input);
    if let Some(missing) = path.as_ref().filter(|path| !path.exists()) {
        let reason = format!("{} does not exist", missing.display());
        return Err(ArgError::other("--input", reason));
    }
    let format = args.input_format.unwrap_or(match extension.as_str() {
        "csv" | "tsv" => InputFormat::Csv,
        "jsonl" | "ndjson" => InputFormat::Jsonl,
        _ => InputFormat::Text,
    });
    if let Some(column) = args.column.as_ref().filter(|_| format != InputFormat::Csv) {
        return Err(ArgError::Needs {
            flag: "--column",
            found: column.clone(),
            needs: "CSV input",
            instead: format!("--input-format {format}"),
        });
    }
    let delimiter = args
        .delimiter
        .unwrap_or(if extension == "tsv" { '\t' } else { ',' });
    let delimiter = u8::try_from(delimiter).map_err(|_| {
        ArgError::other(
            "--delimiter",
            format!("must be one byte, got {delimiter:?}"),
        )
    })?;
    let column = args
        .column
        .clone()
        .map_or(CsvColumn::Obvious, CsvColumn::Named);
    Ok(InputConfig {
        path,
        format,
        field: args.field.clone(),
        column,
        delimiter,
        has_header: !args.no_header,
    })
}

fn output(args: &BulkArgs) -> Result<OutputConfig, ArgError> {
    let path = file(&args.output);
    let format = args
        .format
        .unwrap_or(match extension(&args.output).as_str() {
            "npy" => OutputFormat::Npy,
            _ => OutputFormat::Jsonl,
        });
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let wrong = |reason: String| Err(ArgError::other("--output", reason));
    match &path {
        None if format == OutputFormat::Npy => {
            return wrong("- is standard output, which cannot take .npy; name a file".to_owned());
        }
        None if existing == Existing::Resume => {
            return wrong("- is standard output, which cannot be resumed; name a file".to_owned());
        }
        Some(path) if is_same(path, file(&args.input).as_deref()) => {
            return wrong(format!(
                "{} is the input; name another file",
                path.display()
            ));
        }
        Some(path) if existing == Existing::Refuse && path.exists() => {
            return wrong(format!(
                "{} exists: continue it with --resume or replace it with --overwrite",
                path.display()
            ));
        }
        _ => {}
    }
    Ok(OutputConfig {
        path,
        format,
        existing,
    })
}
