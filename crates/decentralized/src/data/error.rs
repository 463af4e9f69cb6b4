//! What can be wrong with data.

use std::path::PathBuf;

/// Why data cannot be read.
///
/// Each message is one sentence that names the file or folder, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No file of any of the usual names.
    #[error("{folder}: no {what} found: looked for {names} there and in {subfolders}")]
    Missing {
        /// The folder searched.
        folder: PathBuf,
        /// What the file would hold.
        what: &'static str,
        /// The names it may have.
        names: String,
        /// The folders inside that were searched as well.
        subfolders: String,
    },
    /// The folder does not exist.
    #[error("{folder}: expected a folder of data, found none of that name")]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// A file called `.gz` that is not gzipped.
    #[error("{file}: expected a gzipped file by its name, found one that does not begin as such")]
    NotGzip {
        /// The file.
        file: PathBuf,
    },
    /// A gzipped file that is damaged.
    #[error("{file}: its gzip stream is damaged: {why}")]
    Gzip {
        /// The file.
        file: PathBuf,
        /// What the decoder found.
        why: String,
    },
    /// The file is of another kind.
    #[error("{file}: expected {kind} beginning with 0x{expected:08x}, found 0x{found:08x}")]
    Magic {
        /// The file.
        file: PathBuf,
        /// What the file should hold.
        kind: &'static str,
        /// The magic number of that kind.
        expected: u32,
        /// The file's own.
        found: u32,
    },
    /// Fewer bytes than the header declares, or than a header has.
    #[error("{file}: cut short: expected {expected} bytes, found {found}")]
    CutShort {
        /// The file.
        file: PathBuf,
        /// Bytes that it should have (decompressed).
        expected: u128,
        /// Bytes that it has (decompressed).
        found: u64,
    },
    /// More bytes than the header declares.
    #[error("{file}: expected {expected} bytes, found more after them")]
    Trailing {
        /// The file.
        file: PathBuf,
        /// Bytes that it should have (decompressed).
        expected: u128,
    },
    /// A gzipped file declares more than it can contain, or more than is ever read.
    #[error(
        "{file}: declares {declared} bytes, expected at most {limit} from a gzipped file of {n_bytes} bytes"
    )]
    Oversized {
        /// The file.
        file: PathBuf,
        /// Bytes that the header declares.
        declared: u128,
        /// Bytes that it may declare.
        limit: u64,
        /// Bytes of the file as it is.
        n_bytes: u64,
    },
    /// Too little memory for what the file really holds.
    #[error("{file}: holds {n_values} values, for which there is too little memory")]
    Memory {
        /// The file.
        file: PathBuf,
        /// How many numbers were to be kept.
        n_values: usize,
    },
    /// No example at all.
    #[error("{file}: expected at least one example, found none")]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// Images of another size than the data set's, or of none.
    #[error("{file}: expected {expected}, found {found}")]
    Shape {
        /// The file.
        file: PathBuf,
        /// What a sound file has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// Images and labels are not of one set.
    #[error(
        "{labels}: expected a label for each of the {n_images} images of {images}, found {n_labels}"
    )]
    Counts {
        /// The file of images.
        images: PathBuf,
        /// How many there are.
        n_images: usize,
        /// The file of labels.
        labels: PathBuf,
        /// How many there are.
        n_labels: usize,
    },
    /// A label that no class has.
    #[error("{file}: example {example_idx} has label {label}, expected one below {n_classes}")]
    Label {
        /// The file.
        file: PathBuf,
        /// Which example.
        example_idx: usize,
        /// Its label.
        label: u32,
        /// How many classes there are.
        n_classes: usize,
    },
    /// A feature that is infinite or not a number.
    #[error(
        "{file}: feature {feature_idx} of example {example_idx} is {value}, expected a finite number"
    )]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// Which example.
        example_idx: usize,
        /// Which of its features.
        feature_idx: usize,
        /// The feature.
        value: f32,
    },
    /// A table without a column that is needed.
    #[error("{file}: expected a column {expected}, found the columns {found}")]
    Column {
        /// The file.
        file: PathBuf,
        /// The names that the column may have.
        expected: String,
        /// The columns there are.
        found: String,
    },
    /// A row of a table that is not what it should be.
    #[error("{file}: line {line}: expected {expected}, found {found}")]
    Row {
        /// The file.
        file: PathBuf,
        /// Where, from 1.
        line: u64,
        /// What a sound row has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// Texts could not be turned into vectors.
    #[error("{file}: cannot be embedded: {why}")]
    Embedding {
        /// The file of the texts.
        file: PathBuf,
        /// What the encoder said.
        why: String,
    },
    /// Mean and standard deviation that pixels cannot be normalised by.
    #[error("the normalisation has {what} {found}, expected {expected}")]
    Normalization {
        /// What is wrong.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// No data set has this name.
    #[error("no data set is called {name:?}, expected {expected}")]
    UnknownSet {
        /// The name.
        name: String,
        /// The names there are.
        expected: &'static str,
    },
}
