//! Tasks of texts with labels: an encoder embeds them once, then nodes learn a head on the embeddings.
//!
//! [`source`] finds the files, [`split`] keeps some examples apart where there is no file to measure
//! on, [`embed`] makes vectors of texts and [`cache`] keeps those. The encoder itself is not trained.

mod cache;
mod embed;
mod source;
mod split;

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use moeshard_decentralized::data::{DataError, Dataset, TextColumns, TextSet};
use moeshard_decentralized::partition::Labels;
use moeshard_decentralized::seed;
use moeshard_encoder::trained_head::{EncoderCard, NORM_EPS};

use super::args::{TaskArgs, TrainConfig};
use super::run::PARTITION_STREAM;
use super::task::{LoadedTask, classifier_of};
use crate::arg_error::ArgError;
use embed::Embedder;
pub use source::is_text;
use source::{Files, find};

/// What a head has to say of itself.
#[derive(Clone, Debug)]
pub struct TextTask {
    /// What it is called, for people.
    pub name: String,
    /// Whose embeddings it was trained on.
    pub encoder: EncoderCard,
    /// The name of each class.
    pub label_names: Vec<String>,
}

/// Reads a task's texts and embeds them.
///
/// # Errors
/// If a file is missing or not what it should be, the encoder cannot be loaded, or nodes, classifier
/// and data do not fit one another; as much of that as possible before the first text is embedded.
pub fn load(config: &TrainConfig) -> Result<LoadedTask> {
    let files = find(&config.task)?;
    let (train, test) = read(&config.task, config.settings.seed, &files)?;
    check(config, &train)?;
    let mut embedder = Embedder::open(config)?;
    let encoder = embedder.encoder().clone();
    let classifier = (config.task.classifier.clone()).unwrap_or_else(|| "linear".to_owned());
    let model = classifier_of(&classifier, &shape_of(&train, &encoder))?;
    Ok(LoadedTask {
        identity: format!("{} in {}", embedder.key(&train), encoder.name),
        train: embed(&mut embedder, &train)?,
        test: embed(&mut embedder, &test)?,
        model,
        classifier,
        text: Some(TextTask {
            name: files.name,
            encoder,
            label_names: train.label_names,
        }),
    })
}

/// What the data will look like, so that a classifier that does not fit is refused before anything is
/// embedded.
fn shape_of(set: &TextSet, encoder: &EncoderCard) -> Dataset {
    Dataset {
        n_features: encoder.d_model,
        n_classes: set.n_classes(),
        features: Vec::new(),
        labels: Vec::new(),
        shape: None,
    }
}

/// The labels of the texts that nodes learn from, and how many there are.
///
/// # Errors
/// If a file is missing or not what it should be.
pub fn training_labels(args: &TaskArgs, seed: u64) -> Result<(Vec<u32>, usize)> {
    let (train, _) = read(args, seed, &find(args)?)?;
    let n_classes = train.n_classes();
    Ok((train.labels, n_classes))
}

/// What is learned from, and what is measured on.
fn read(args: &TaskArgs, seed: u64, files: &Files) -> Result<(TextSet, TextSet)> {
    let columns = TextColumns::default();
    let mut train = TextSet::read(&files.train, &columns)?;
    if let [only] = &train.label_names[..] {
        let file = files.train.display();
        anyhow::bail!("{file}: expected at least two labels to tell apart, found only {only:?}");
    }
    if let Some(n) = args.train_examples {
        train = train.first(ArgError::at_least_one("--train-examples", n)?);
        check_labels(&train, n)?;
    }
    match &files.test {
        Some(file) => {
            let test = TextSet::read_with_labels(file, &columns, &train.label_names)?;
            Ok((train, test))
        }
        None => split::split(&train, seed),
    }
}

/// That the first examples of a file, which may be sorted, are not of a few labels alone.
fn check_labels(train: &TextSet, n_examples: usize) -> Result<(), ArgError> {
    let labels: BTreeSet<u32> = train.labels.iter().copied().collect();
    let (found, all) = (labels.len(), train.n_classes());
    if found == all {
        return Ok(());
    }
    let file = train.file.display();
    let reason = format!("{n_examples} leaves examples of {found} of the {all} labels of {file}");
    Err(ArgError::other("--train-examples", reason))
}

/// That the examples can be divided over the nodes.
fn check(config: &TrainConfig, train: &TextSet) -> Result<()> {
    let (n_examples, n_nodes) = (train.n_examples(), config.n_nodes);
    ensure!(
        n_examples >= n_nodes,
        "{}: expected an example for each of {n_nodes} nodes, found {n_examples}; ask for fewer with \
         --nodes",
        train.file.display()
    );
    let labels = Labels {
        labels: &train.labels,
        n_classes: train.n_classes(),
    };
    let mut rng = seed::rng(config.settings.seed, PARTITION_STREAM);
    config.partition.1.partition(&labels, n_nodes, &mut rng)?;
    Ok(())
}

fn embed(embedder: &mut Embedder, set: &TextSet) -> Result<Dataset, DataError> {
    let mut data = set.embed(|_| embedder.embed(set).map_err(|error| format!("{error:#}")))?;
    normalize(&mut data.features, data.n_features);
    Ok(data)
}

/// Divides each row by the root of its mean square, as heads do when they are served: what is left is
/// its direction, and features are about as large as a pixel's whatever the encoder.
fn normalize(features: &mut [f32], n_features: usize) {
    for row in features.chunks_exact_mut(n_features) {
        let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
        let mean = squares.sum::<f64>() / n_features as f64;
        let factor = 1.0 / (mean + f64::from(NORM_EPS)).sqrt();
        row.iter_mut()
            .for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_direction_and_lose_their_length() {
        let mut rows = [3.0, 4.0, -3e8, 4e8, 0.0, 0.0];
        normalize(&mut rows, 2);
        let unit = |x: f64| (x * 2f64.sqrt()) as f32;
        let expect = [unit(0.6), unit(0.8), unit(-0.6), unit(0.8), 0.0, 0.0];
        for (x, expect) in rows.iter().zip(expect) {
            assert!((x - expect).abs() < 1e-6, "{rows:?}");
        }
    }
}
