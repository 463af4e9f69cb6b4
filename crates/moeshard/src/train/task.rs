//! What is learned: data sets, and the classifier for them.

use std::path::Path;

use anyhow::{Context, Result};
use moeshard_decentralized::data::{Dataset, ImageSet, Split};
use moeshard_decentralized::model::{GnLeNet, Linear, Mlp, Model};

use super::args::TaskArgs;
use super::texts::TextTask;
use crate::arg_error::ArgError;

/// Data to learn from and to measure on, and what learns.
#[derive(Debug)]
pub struct LoadedTask {
    /// What the data is, as far as a run that goes on must agree with it.
    pub identity: String,
    /// What nodes learn from.
    pub train: Dataset,
    /// What their models are measured on.
    pub test: Dataset,
    /// What is trained.
    pub model: Box<dyn Model>,
    /// Its name.
    pub classifier: String,
    /// What a head made of it must know, if it is one of texts.
    pub text: Option<TextTask>,
}

/// Reads the data of a task of images.
///
/// # Errors
/// If a file is missing or not what it should be, or the classifier does not fit the data.
pub fn load(args: &TaskArgs) -> Result<LoadedTask> {
    let set = match args.task.as_str() {
        "mnist" => ImageSet::Mnist,
        "fashion-mnist" => ImageSet::FashionMnist,
        "cifar10" => ImageSet::Cifar10,
        other => {
            let known = "mnist, fashion-mnist, cifar10, banking77 or a .csv, .tsv or .jsonl file";
            let found = other.to_owned();
            let flag = "--task";
            return Err(ArgError::Unknown {
                flag,
                expected: known,
                found,
            })?;
        }
    };
    let folder = args.data.as_deref().with_context(|| {
        format!(
            "--task {} needs the folder of its files: --data DIR",
            args.task
        )
    })?;
    images(args, set, folder)
}

fn images(args: &TaskArgs, set: ImageSet, folder: &Path) -> Result<LoadedTask> {
    if let Some(file) = &args.test_data {
        Err(ArgError::Needs {
            flag: "--test-data",
            found: file.display().to_string(),
            needs: "a task of texts",
            instead: format!("--task {}", args.task),
        })?;
    }
    let mut train = set.read(folder, Split::Train)?;
    if let Some(n) = args.train_examples {
        train = train.first(ArgError::at_least_one("--train-examples", n)?);
    }
    let test = set.read(folder, Split::Test)?;
    let classifier = args
        .classifier
        .clone()
        .unwrap_or_else(|| "linear".to_owned());
    let model = classifier_of(&classifier, &train)?;
    Ok(LoadedTask {
        identity: args.task.clone(),
        train,
        test,
        model,
        classifier,
        text: None,
    })
}

/// The classifier of a name, for such data.
pub(super) fn classifier_of(name: &str, data: &Dataset) -> Result<Box<dyn Model>> {
    let (n_features, n_classes) = (data.n_features, data.n_classes);
    let (kind, hidden) = match name.split_once(":hidden=") {
        Some((kind, hidden)) => (kind, hidden.parse().ok()),
        None => (name, Some(128)),
    };
    match (kind, hidden) {
        ("linear", _) if name == "linear" => Ok(Box::new(Linear::new(n_features, n_classes))),
        ("mlp", Some(hidden @ 1..=65_536)) => Ok(Box::new(Mlp::new(n_features, hidden, n_classes))),
        ("gn-lenet", _) if name == "gn-lenet" => {
            let image = data.shape.context("--classifier gn-lenet needs images")?;
            Ok(Box::new(GnLeNet::new(image, n_classes)?))
        }
        _ => Err(ArgError::Unknown {
            flag: "--classifier",
            expected: "linear, mlp, mlp:hidden=N or gn-lenet",
            found: name.to_owned(),
        })?,
    }
}
