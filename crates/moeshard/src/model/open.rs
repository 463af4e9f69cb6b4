//! From where a model is to its opened and checked files.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use moeshard_encoder::model::Model;
use moeshard_encoder::trained_head;

use super::builtin;
use super::config::{ModelConfig, Source};
use crate::hub;

/// A model whose files are open.
pub struct Opened {
    /// The model, with the user's wishes applied.
    pub model: Model,
    /// What to call it.
    pub name: String,
    /// Where it is, for errors.
    pub place: String,
    /// The commit, if it came from the hub.
    pub revision: Option<String>,
    /// How the head came about, if it is not the model's own.
    pub head: Option<String>,
}

/// Opens a model, fetching it first if it is on the hub.
///
/// # Errors
/// If it cannot be fetched, or is not a model that can be run; one sentence.
pub fn open(config: &ModelConfig) -> Result<Opened> {
    let mut opened = match &config.source {
        Source::BuiltIn => {
            let model = Model::from_static(builtin::NAME, &builtin::FILES)?;
            let name = builtin::NAME.to_owned();
            Opened {
                model,
                place: name.clone(),
                name,
                revision: None,
                head: None,
            }
        }
        Source::Folder(dir) => {
            let (name, place) = (folder_name(dir), dir.display().to_string());
            Opened {
                model: Model::open(dir)?,
                name,
                place,
                revision: None,
                head: None,
            }
        }
        Source::Hub { id, revision } => {
            let fetched = hub::fetch(&config.hub, id, revision)?;
            let model = Model::open(&fetched.dir)
                .with_context(|| format!("`{id}` from the hub cannot be served"))?;
            let place = fetched.dir.display().to_string();
            Opened {
                model,
                name: id.clone(),
                place,
                revision: Some(fetched.commit),
                head: None,
            }
        }
    };
    apply(config, &mut opened.model)?;
    if let Some(dir) = &config.head {
        let card = trained_head::attach(dir, &mut opened.model, &opened.name)?;
        opened.head = Some(card.origin);
    }
    Ok(opened)
}

/// What the user wants otherwise than the model says.
fn apply(config: &ModelConfig, model: &mut Model) -> Result<()> {
    if let Some(pooling) = config.pooling {
        model.settings.pooling = pooling;
    }
    if let Some(max_length) = config.max_length {
        if let Some(most) = model.spec.max_positions {
            ensure!(
                max_length <= most,
                "--max-length {max_length} is above what the model takes, {most}"
            );
        }
        model.settings.max_length = max_length;
    }
    Ok(())
}

/// The last part of a folder's path.
fn folder_name(dir: &Path) -> String {
    let absolute = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let name = absolute
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| dir.display().to_string())
}
