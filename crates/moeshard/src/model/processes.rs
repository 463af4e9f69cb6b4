//! Ranks that are processes of a launcher's job.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use anyhow::{Context, Result};
use moeshard_encoder::model::Model;
use moeshard_engine::Layout;
use moeshard_engine::processes::{FollowError, Leadership, OnLost};

use super::config::ComputeConfig;
use super::devices::{self, layout};
use super::load::dtype;
use super::open::Opened;
use crate::launch::Joining;

/// The processes of a job, as rank 0 has them.
pub struct Processes {
    /// How they find each other.
    pub joining: Joining,
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
            join: self.joining.join(agreement(model, compute)?),
            on_lost: self.on_lost,
        })
    }
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Processes").field(&self.joining).finish()
    }
}

/// Runs this process' rank of a model until rank 0 says that it is over.
///
/// # Errors
/// If the model cannot be read: an error. If the job cannot go on: why, inside.
pub fn follow(
    opened: Opened,
    compute: &ComputeConfig,
    joining: Joining,
) -> Result<Result<(), FollowError>> {
    let model = Arc::new(opened.model);
    let rank = joining.rank();
    let join = joining.join(agreement(&model, compute)?);
    Ok(devices::follow(model, compute, rank, join))
}

/// A number that processes share if they have the same model and the same flags of it.
fn agreement(model: &Model, compute: &ComputeConfig) -> Result<u64> {
    let fingerprint = model.fingerprint().context("cannot read the model")?;
    // Rank 0 alone decides how it cuts batches.
    let layout = Layout {
        overlap: None,
        ..layout(compute)
    };
    let of_layout = (layout, dtype(model, compute), compute.device.to_string());
    let settings = (model.settings.pooling, &model.spec.head);
    let mut hasher = DefaultHasher::new();
    format!("{fingerprint:?} {of_layout:?} {settings:?}").hash(&mut hasher);
    Ok(hasher.finish())
}
