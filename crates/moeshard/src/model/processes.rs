//! Ranks that are processes of a launcher's job.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use anyhow::{Context, Result};
use moeshard_encoder::model::Model;
use moeshard_engine::processes::{self, FollowError, Leadership, OnLost};

use super::config::ComputeConfig;
use super::devices::{cpu_ranks, layout};
use super::load::dtype;
use super::open::Opened;
use crate::launch::Launch;

/// The processes of a job, as rank 0 has them.
pub struct Processes {
    /// How they were started.
    pub launch: Launch,
    /// Told when they cannot go on together.
    pub on_lost: OnLost,
}

impl Processes {
    /// What the engine needs of them.
    ///
    /// # Errors
    /// If the model cannot be read.
    pub(super) fn lead(self, model: &Model, compute: &ComputeConfig) -> Result<Leadership> {
        Ok(Leadership {
            hosts: self.launch.hosts.clone(),
            join: self.launch.join(agreement(model, compute)?),
            on_lost: self.on_lost,
        })
    }
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Processes").field(&self.launch).finish()
    }
}

/// Runs this process' rank of a model until rank 0 says that it is over.
///
/// # Errors
/// If the model cannot be read: an error. If the job cannot go on: why, inside.
pub fn follow(
    opened: Opened,
    compute: &ComputeConfig,
    launch: &Launch,
) -> Result<Result<(), FollowError>> {
    let model = Arc::new(opened.model);
    let join = launch.join(agreement(&model, compute)?);
    let (layout, cores) = (layout(compute), cpu_ranks(&model, compute));
    Ok(processes::follow(model, layout, cores, launch.rank, join))
}

/// A number that processes share if they have the same model and the same flags of it.
fn agreement(model: &Model, compute: &ComputeConfig) -> Result<u64> {
    let fingerprint = model.fingerprint().context("cannot read the model")?;
    let of_layout = (layout(compute), dtype(model, compute));
    let settings = (model.settings.pooling, &model.spec.head);
    let mut hasher = DefaultHasher::new();
    format!("{fingerprint:?} {of_layout:?} {settings:?}").hash(&mut hasher);
    Ok(hasher.finish())
}
