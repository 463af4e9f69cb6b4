//! What is learned: data sets, and the classifier for them.

use std::path::Path;

use anyhow::{Context, Result};
use moeshard_decentralized::data::{Dataset, ImageSet, Split};
use moeshard_decentralized::model::{GnLeNet, Linear, Mlp, Model};

use super::args::TaskArgs;
use super::texts::{self, TextTask, is_text};
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
    let images = Images::of(args)?;
    if let Some(file) = &args.test_data {
        Err(ArgError::Needs {
            flag: "--test-data",
            found: file.display().to_string(),
            needs: "a task of texts",
            instead: format!("--task {}", args.task),
        })?;
    }
    let train = images.read_train(args)?;
    let default = match images.set {
        ImageSet::Cifar10 => "gn-lenet",
        ImageSet::Mnist | ImageSet::FashionMnist => "linear",
    };
    let classifier = args.classifier.as_deref().unwrap_or(default);
    Ok(LoadedTask {
        identity: args.task.clone(),
        model: classifier_of(classifier, &train)?,
        train,
        test: images.set.read(images.folder, Split::Test)?,
        classifier: classifier.to_owned(),
        text: None,
    })
}

/// The labels of the examples that nodes learn from, of any task, and the number of classes.
///
/// # Errors
/// If a file is missing or not what it should be.
pub fn training_labels(args: &TaskArgs, seed: u64) -> Result<(Vec<u32>, usize)> {
    if is_text(&args.task) {
        return texts::training_labels(args, seed);
    }
    let train = Images::of(args)?.read_train(args)?;
    Ok((train.labels, train.n_classes))
}

/// A set of images and where it is.
struct Images<'a> {
    set: ImageSet,
    folder: &'a Path,
}

impl<'a> Images<'a> {
    fn of(args: &'a TaskArgs) -> Result<Self> {
        let set = args.task.parse().map_err(|_| ArgError::Unknown {
            flag: "--task",
            expected: "mnist, fashion-mnist, cifar10, banking77 or a .csv, .tsv or .jsonl file",
            found: args.task.clone(),
        })?;
        let folder = args.data.as_deref().with_context(|| {
            format!(
                "--task {} needs the folder of its files: --data DIR",
                args.task
            )
        })?;
        Ok(Self { set, folder })
    }

    fn read_train(&self, args: &TaskArgs) -> Result<Dataset> {
        let train = self.set.read(self.folder, Split::Train)?;
        Ok(match args.train_examples {
            Some(n) => train.first(ArgError::at_least_one("--train-examples", n)?),
            None => train,
        })
    }
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
