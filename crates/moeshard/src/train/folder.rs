//! The folder of one run: metrics, checkpoint, topology.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use moeshard_decentralized::record::{Evaluation, Record, RunHeader, read_runs};
use moeshard_decentralized::topology::file::{self, SavedSchedule};
use moeshard_decentralized::train::checkpoint::Checkpoint;

use super::run::Network;

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A folder that is made if there is none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// The file of metrics, one line each.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// The file of the last state.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    /// The folder of the head.
    #[must_use]
    pub fn head(&self) -> PathBuf {
        self.0.join("head")
    }

    /// The file of the topology.
    #[must_use]
    pub fn topology(&self) -> PathBuf {
        self.0.join("topology.json")
    }

    /// Whether a run can go on from here.
    #[must_use]
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint().exists()
    }

    /// Forgets the run before.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn start(&self) -> Result<()> {
        // The checkpoint first: without it nothing goes on from the rest.
        for path in [self.checkpoint(), self.metrics(), self.topology()] {
            forget(&path, fs::remove_file(&path))?;
        }
        forget(&self.head(), fs::remove_dir_all(self.head()))
    }

    /// Adds a line to the metrics.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&self, record: &Record) -> Result<()> {
        let path = self.metrics();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let write = |mut file| record.write(&mut file);
        file.and_then(write)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Leaves the evaluations up to a round, after which the run goes on, and returns them; the header is
    /// that of the run that goes on.
    ///
    /// # Errors
    /// If the metrics cannot be read or written.
    pub fn keep_records(&self, round: u64, header: RunHeader) -> Result<Vec<Evaluation>> {
        let path = self.metrics();
        let mut runs = read_runs(&path)?;
        let Some(mut run) = runs.pop() else {
            bail!("{} has no run to go on with", path.display());
        };
        run.evaluations
            .retain(|evaluation| evaluation.round <= round);
        let beside = path.with_extension("new");
        let mut lines = Vec::new();
        Record::Header(Box::new(header)).write(&mut lines)?;
        for evaluation in &run.evaluations {
            Record::Evaluation(evaluation.clone()).write(&mut lines)?;
        }
        let write = fs::write(&beside, &lines).and_then(|()| fs::rename(&beside, &path));
        write.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(run.evaluations)
    }

    /// Reads the last state.
    ///
    /// # Errors
    /// If it is no checkpoint.
    pub fn read_checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::read(&self.checkpoint())?)
    }

    /// Writes the state.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_checkpoint(&self, checkpoint: &Checkpoint, n_nodes: usize) -> Result<()> {
        Ok(checkpoint.write(&self.checkpoint(), n_nodes)?)
    }

    /// Writes who exchanges with whom, as `moeshard topology build` does.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_topology(&self, network: &Network) -> Result<()> {
        let saved = SavedSchedule {
            topology: network.topology.clone(),
            schedule: network.schedule.clone(),
            classes: Some(network.classes.clone()),
        };
        Ok(file::write(&self.topology(), &saved)?)
    }
}

/// Whatever is not there need not be removed.
fn forget(path: &Path, removed: io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A topology's name as the name of a folder.
#[must_use]
pub fn folder_name(topology: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    topology.chars().map(plain).collect()
}
