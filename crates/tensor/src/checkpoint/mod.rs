//! Checkpoints on disk: mapped into memory, validated once, read slice by slice.
//!
//! Opening a checkpoint parses its headers and checks every claim in them: lengths, offsets,
//! shapes, names. After that a read can only fail because of what the caller asks for. Weights
//! are untrusted: no file may crash the process, and each error is one sentence that names the
//! file, the tensor, what was expected and what was found.

mod error;
mod host_tensor;
mod index;
mod info;
mod listing;
mod pickle;
mod safetensors;
mod slice;
mod source;
mod torch;
mod zip;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

pub use error::CheckpointError;
pub use host_tensor::HostTensor;
pub use info::{StoredDType, TensorInfo};

use error::{Result, file_error, tensor_error};
use listing::{Listing, Located};
use slice::Layout;
use source::{ReadAhead, Source};

/// The weights of a model: named tensors in one file or several.
///
/// `Send` and `Sync`: many ranks read at once.
pub struct Checkpoint {
    /// What errors call it when no single file is to blame.
    name: String,
    sources: Vec<Arc<Source>>,
    tensors: BTreeMap<String, Stored>,
    n_bytes_read: AtomicU64,
    /// Set by the first read; stops when the checkpoint is dropped.
    read_ahead: OnceLock<ReadAhead>,
}

/// A tensor and where it lies.
struct Stored {
    info: TensorInfo,
    strides: Vec<usize>,
    source_idx: usize,
    start: usize,
    n_bytes: usize,
}

impl Checkpoint {
    /// Opens the weights in `dir`: the first of `model.safetensors`,
    /// `model.safetensors.index.json`, `pytorch_model.bin`, `pytorch_model.bin.index.json`.
    ///
    /// Only headers are read, so this is quick for a checkpoint of any size.
    ///
    /// # Errors
    /// If there are no weights, or anything that their headers claim is false.
    pub fn open(dir: &Path) -> Result<Self> {
        let name = index::find(dir)?;
        let path = dir.join(name);
        if !name.ends_with(".index.json") {
            let mut checkpoint = Self::empty(path.display().to_string());
            let listing = checkpoint.add_source(Source::map(&path)?, name)?;
            checkpoint.add_tensors(0, listing)?;
            return Ok(checkpoint);
        }
        let mut checkpoint = Self::empty(path.display().to_string());
        checkpoint.add_shards(dir, index::read(&path)?)?;
        Ok(checkpoint)
    }

    /// Opens a safetensors file that is compiled into the program; errors call it `name`.
    ///
    /// # Errors
    /// If anything that its header claims is false.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self::empty(name.into());
        let source = Source::from_static(name, bytes);
        let listing = checkpoint.add_source(source, ".safetensors")?;
        checkpoint.add_tensors(0, listing)?;
        Ok(checkpoint)
    }

    /// Adds the tensors of one more file, in the format that the end of its name says.
    ///
    /// # Errors
    /// If anything that its header claims is false, or a tensor has the name of one that is here.
    pub fn attach(&mut self, file: &Path) -> Result<()> {
        let source = Source::map(file)?;
        let listing = self.add_source(source, &file.to_string_lossy())?;
        self.add_tensors(self.sources.len() - 1, listing)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Format and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|stored| &stored.info)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The file that a tensor lies in, for complaints about it; the checkpoint if there is no such
    /// tensor.
    pub fn file_of(&self, name: &str) -> &str {
        let stored = self.tensors.get(name);
        stored.map_or(&self.name, |stored| &self.sources[stored.source_idx].name)
    }

    /// Bytes of all tensors together.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.n_bytes as u64).sum()
    }

    /// Reads the slice `ranges` of a tensor: one range per axis, or none at all for the whole.
    ///
    /// The first read starts reading all files ahead, see [`prefetch`](Self::prefetch).
    ///
    /// # Errors
    /// If there is no such tensor, it is not of floating point, or the slice leaves it.
    pub fn read(&self, name: &str, ranges: &[Range<usize>]) -> Result<HostTensor<'_>> {
        let stored = self.stored(name)?;
        let source = &self.sources[stored.source_idx];
        let StoredDType::Float(dtype) = stored.info.dtype else {
            return Err(CheckpointError::UnreadableDtype {
                file: source.name.clone(),
                tensor: name.into(),
                dtype: stored.info.dtype.to_string(),
            });
        };
        let shape = &stored.info.shape;
        let ranges = checked_ranges(&source.name, name, shape, ranges)?;
        self.prefetch();
        let layout = Layout {
            shape: shape.clone(),
            strides: stored.strides.clone(),
        };
        let bytes = &source.bytes()[stored.start..stored.start + stored.n_bytes];
        let data = layout.cut(bytes, dtype.size(), &ranges);
        self.n_bytes_read
            .fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(HostTensor {
            dtype,
            shape: ranges.iter().map(Range::len).collect(),
            data,
        })
    }

    /// Starts reading all files ahead into memory, in the background, at the disk's pace.
    ///
    /// The first [`read`](Self::read) does so by itself; a caller that opens a checkpoint long
    /// before it reads gains by saying so. Whoever only lists tensors never pays for it.
    pub fn prefetch(&self) {
        self.read_ahead
            .get_or_init(|| ReadAhead::start(self.sources.clone()));
    }

    /// Bytes that [`read`](Self::read) has returned so far.
    pub fn n_bytes_read(&self) -> u64 {
        self.n_bytes_read.load(Ordering::Relaxed)
    }

    fn empty(name: String) -> Self {
        Self {
            name,
            sources: Vec::new(),
            tensors: BTreeMap::new(),
            n_bytes_read: AtomicU64::new(0),
            read_ahead: OnceLock::new(),
        }
    }

    /// Parses a file, in the format that the end of its name says, and keeps it.
    fn add_source(&mut self, source: Source, file_name: &str) -> Result<Listing> {
        let listing = if file_name.ends_with(".safetensors") {
            safetensors::parse(&source.name, source.bytes())?
        } else {
            torch::parse(&source.name, source.bytes())?
        };
        self.sources.push(Arc::new(source));
        Ok(listing)
    }

    /// Keeps the tensors of a file, refusing a name that is taken.
    fn add_tensors(&mut self, source_idx: usize, listing: Listing) -> Result<()> {
        for (name, located) in listing {
            let file = &self.sources[source_idx].name;
            if self.tensors.contains_key(&name) {
                return Err(tensor_error(file, &name, "one tensor of this name", "two"));
            }
            self.tensors.insert(name, Stored::new(source_idx, located));
        }
        Ok(())
    }

    /// Opens the files that an index names and keeps the tensors that it maps.
    fn add_shards(&mut self, dir: &Path, weight_map: Vec<(String, String)>) -> Result<()> {
        let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, shard) in weight_map {
            shards.entry(shard).or_default().push(tensor);
        }
        for (shard, tensors) in shards {
            let path = dir.join(&shard);
            if !path.exists() {
                let expected = format!("a file {shard} for tensor {:?} and others", tensors[0]);
                return Err(file_error(&self.name, expected, "no such file"));
            }
            let listing = self.add_source(Source::map(&path)?, &shard)?;
            let source_idx = self.sources.len() - 1;
            let mapped = pick(&self.sources[source_idx].name, listing, tensors)?;
            self.add_tensors(source_idx, mapped)?;
        }
        Ok(())
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors
            .get(name)
            .ok_or_else(|| CheckpointError::MissingTensor {
                file: self.name.clone(),
                tensor: name.into(),
                n_tensors: self.tensors.len(),
            })
    }
}

impl Stored {
    fn new(source_idx: usize, located: Located) -> Self {
        Self {
            info: TensorInfo {
                dtype: located.dtype,
                shape: located.layout.shape,
            },
            strides: located.layout.strides,
            source_idx,
            start: located.start,
            n_bytes: located.n_bytes,
        }
    }
}

/// The tensors of a shard that the index maps to it.
fn pick(file: &str, listing: Listing, tensors: Vec<String>) -> Result<Listing> {
    let n_tensors = listing.len();
    let mut by_name = HashMap::with_capacity(n_tensors);
    for (name, located) in listing {
        if by_name.contains_key(&name) {
            return Err(tensor_error(file, &name, "one tensor of this name", "two"));
        }
        by_name.insert(name, located);
    }
    let pick_one = |name: String| match by_name.remove(&name) {
        Some(located) => Ok((name, located)),
        None => Err(CheckpointError::MissingTensor {
            file: file.into(),
            tensor: name,
            n_tensors,
        }),
    };
    tensors.into_iter().map(pick_one).collect()
}

/// One range per axis, each within the tensor.
fn checked_ranges(
    file: &str,
    tensor: &str,
    shape: &[usize],
    ranges: &[Range<usize>],
) -> Result<Vec<Range<usize>>> {
    if ranges.is_empty() {
        return Ok(shape.iter().map(|&dim| 0..dim).collect());
    }
    if ranges.len() != shape.len() {
        return Err(CheckpointError::SliceRank {
            file: file.into(),
            tensor: tensor.into(),
            shape: shape.into(),
            expected: shape.len(),
            found: ranges.len(),
        });
    }
    let is_outside =
        |(range, &dim): (&Range<usize>, &usize)| range.start > range.end || range.end > dim;
    if let Some(axis) = ranges.iter().zip(shape).position(is_outside) {
        return Err(CheckpointError::SliceRange {
            file: file.into(),
            tensor: tensor.into(),
            axis,
            dim: shape[axis],
            start: ranges[axis].start,
            end: ranges[axis].end,
        });
    }
    Ok(ranges.to_vec())
}
