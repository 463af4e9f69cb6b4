//! A model as it lies in a folder: what to run, with which weights, and how texts come in.

mod files;
mod settings;

use std::borrow::Cow;
use std::path::Path;

use moeshard_tensor::checkpoint::Checkpoint;
use serde_json::Value;

use crate::families;
use crate::model_error::{ModelError, Result};
use crate::spec::EncoderSpec;
use files::Files;
pub use settings::Settings;

/// A model, opened and checked; nothing is loaded yet.
pub struct Model {
    /// What the encoder is made of. Every tensor it names is in the checkpoint.
    pub spec: EncoderSpec,
    /// The weights.
    pub checkpoint: Checkpoint,
    /// How to use it.
    pub settings: Settings,
    /// Contents of tokenizer.json, if there is one.
    pub tokenizer_json: Option<Vec<u8>>,
}

impl Model {
    /// Opens the model in a folder, laid out as on the Hugging Face hub.
    ///
    /// # Errors
    /// If a file is missing or malformed, the family or the pooling is not supported, or the
    /// weights are not those that the config describes.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let name = dir.display().to_string();
        let files = Files::Folder(dir);
        Self::build(&files, || Ok(Checkpoint::open(dir)?)).map_err(|error| error.within(&name))
    }

    /// Opens a model that is compiled into the program: pairs of file name and contents.
    ///
    /// The weights must be in `model.safetensors`. Errors call the folder `name`.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_static(
        name: &str,
        files: &[(&'static str, &'static [u8])],
    ) -> Result<Self, ModelError> {
        let weights = || {
            let found = files.iter().find(|(file, _)| *file == WEIGHTS);
            let (file, bytes) = found.ok_or(ModelError::MissingFile {
                file: WEIGHTS.into(),
            })?;
            Ok(Checkpoint::from_static(&format!("{name}/{file}"), bytes)?)
        };
        Self::build(&Files::Static(files), weights).map_err(|error| error.within(name))
    }

    fn build(files: &Files<'_>, weights: impl FnOnce() -> Result<Checkpoint>) -> Result<Self> {
        let Some(config) = files.json("config.json")? else {
            return Err(ModelError::MissingFile {
                file: "config.json".into(),
            });
        };
        let checkpoint = weights()?;
        let spec = families::translate(&config, &checkpoint)?;
        let settings = Settings::discover(files, &config, &spec, &checkpoint)?;
        let tokenizer_json = files.read("tokenizer.json")?.map(Cow::into_owned);
        Ok(Self {
            spec,
            checkpoint,
            settings,
            tokenizer_json,
        })
    }
}

/// Where the weights of a compiled-in model are.
const WEIGHTS: &str = "model.safetensors";

/// A complaint about a value of a JSON file.
fn key_error(file: &str, key: &str, expected: &str, found: &Value) -> ModelError {
    ModelError::Key {
        file: file.into(),
        key: key.into(),
        expected: expected.into(),
        found: families::shown(found),
    }
}
