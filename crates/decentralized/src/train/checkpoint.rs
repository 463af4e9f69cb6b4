//! A run on disk: everything from which it goes on as if nothing had happened.
//!
//! Random choices follow from the seed and the number of the round, so no generator has to be saved.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::state::Saved;
use super::trainer::Trainer;
use super::{Result, TrainError};

/// The state of all nodes between two rounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// What was trained how, as far as a run that goes on must agree with it: parts between semicolons, of
    /// which an error names those that differ.
    pub fingerprint: String,
    /// Numbers by name.
    pub numbers: Vec<(String, f64)>,
    /// Matrices of one row a node, by name.
    pub matrices: Vec<(String, Vec<f32>)>,
}

/// Names the version of the format.
const FORMAT: &str = "moeshard-training-2";

/// The entry of the file's metadata that holds the rest.
const METADATA: &str = "moeshard";

/// What a checkpoint says beside its matrices.
#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    fingerprint: String,
    numbers: BTreeMap<String, f64>,
}

impl Checkpoint {
    /// A number that was saved.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        let mut numbers = self.numbers.iter();
        numbers.find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// Writes the file whole or not at all: whoever is killed meanwhile finds the one before.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] if the file cannot be written.
    pub fn write(&self, path: &Path, n_nodes: usize) -> Result<()> {
        let mut views = Vec::new();
        for (name, values) in &self.matrices {
            let shape = vec![n_nodes, values.len() / n_nodes.max(1)];
            let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values));
            views.push((name, view.map_err(|e| failed(path, &e))?));
        }
        // One entry, because the library writes several in any order, and equal runs should leave equal
        // files.
        let header = Header {
            format: FORMAT.to_owned(),
            fingerprint: self.fingerprint.clone(),
            numbers: self.numbers.iter().cloned().collect(),
        };
        let header = serde_json::to_string(&header).map_err(|e| failed(path, &e))?;
        let metadata = HashMap::from([(METADATA.to_owned(), header)]);
        let bytes = serialize(views, Some(metadata)).map_err(|e| failed(path, &e))?;
        replace(path, &bytes).map_err(|e| failed(path, &e))
    }

    /// Reads a file that [`Checkpoint::write`] has written.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] if there is no such file or it is no checkpoint.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| failed(path, &e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(path, &e))?;
        let metadata = header.metadata().as_ref();
        let header = metadata.and_then(|metadata| metadata.get(METADATA));
        let header: Header = header
            .and_then(|header| serde_json::from_str(header).ok())
            .filter(|header: &Header| header.format == FORMAT)
            .ok_or_else(|| failed(path, &format_args!("not of the format {FORMAT}")))?;
        let mut checkpoint = Self {
            fingerprint: header.fingerprint,
            numbers: header.numbers.into_iter().collect(),
            matrices: Vec::new(),
        };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| failed(path, &e))?;
        for (name, view) in tensors.tensors() {
            if view.dtype() != Dtype::F32 {
                let dtype = view.dtype();
                let reason = format_args!("{name} is {dtype:?}, expected F32");
                return Err(failed(path, &reason));
            }
            let values = view.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            checkpoint.matrices.push((name, values.collect()));
        }
        Ok(checkpoint)
    }
}

impl Trainer<'_> {
    /// The state of all nodes; nothing on other ranks than 0.
    ///
    /// # Communication
    /// A few gathers; every rank must call it.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn checkpoint(&mut self, fingerprint: &str) -> Result<Option<Checkpoint>> {
        let mut checkpoint = Checkpoint {
            fingerprint: fingerprint.to_owned(),
            numbers: self.numbers().map(|(name, x)| (name.to_owned(), x)).into(),
            matrices: Vec::new(),
        };
        for saved in self.state.saved_mut() {
            if let Some(all) = (self.transport).gather(saved.row_len, saved.rows)? {
                checkpoint.matrices.push((saved.name.to_owned(), all));
            }
        }
        Ok((self.transport.rank() == 0).then_some(checkpoint))
    }

    /// Goes on from a checkpoint, which every rank reads.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] if it is of another run; `path` is what the error calls it.
    pub fn restore(
        &mut self,
        checkpoint: &Checkpoint,
        fingerprint: &str,
        path: &Path,
    ) -> Result<()> {
        if checkpoint.fingerprint != fingerprint {
            let reason = difference(&checkpoint.fingerprint, fingerprint);
            return Err(failed(path, &reason));
        }
        let n_nodes = self.run.task.partition.nodes.len();
        let nodes = self.run.nodes.clone();
        for Saved {
            name,
            row_len,
            rows,
        } in self.state.saved_mut()
        {
            let saved = checkpoint.matrices.iter().find(|(n, _)| n == name);
            let Some((_, saved)) = saved.filter(|(_, m)| m.len() == n_nodes * row_len) else {
                let reason = format_args!("{name} is missing or not [{n_nodes}, {row_len}]");
                return Err(failed(path, &reason));
            };
            rows.copy_from_slice(&saved[nodes.start * row_len..nodes.end * row_len]);
        }
        self.set_numbers(|name| {
            let missing = || failed(path, &format_args!("{name} is missing"));
            checkpoint.number(name).ok_or_else(missing)
        })
    }
}

/// Says where two fingerprints, lists of parts between semicolons, differ.
fn difference(theirs: &str, ours: &str) -> String {
    let (theirs, ours): (Vec<_>, Vec<_>) =
        (theirs.split("; ").collect(), ours.split("; ").collect());
    if theirs.len() != ours.len() {
        return format!("it is of another run: {}", theirs.join("; "));
    }
    let pairs = theirs.into_iter().zip(ours).filter(|(a, b)| a != b);
    let pairs: Vec<_> = pairs.map(|(a, b)| format!("{a}, expected {b}")).collect();
    format!("it is of another run: {}", pairs.join("; "))
}

/// Writes beside the file, then renames.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    // Before the name: a machine that loses power must not find an empty file under it.
    file.sync_all()?;
    fs::rename(beside, path)
}

fn failed(path: &Path, reason: &dyn std::fmt::Display) -> TrainError {
    TrainError::Checkpoint {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}
