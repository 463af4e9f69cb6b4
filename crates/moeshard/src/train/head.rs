//! The head that all nodes together have learned, ready to be served.

use std::path::Path;

use anyhow::{Context, Result, bail};
use moeshard_decentralized::record::Evaluation;
use moeshard_decentralized::train::evaluate::{accuracy, mean_model};
use moeshard_encoder::trained_head::{DenseLayer, HeadCard, Layers, write};

use super::args::TrainConfig;
use super::task::LoadedTask;
use super::texts::TextTask;

/// How a head came to be.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// By which settings.
    pub config: &'a TrainConfig,
    /// On which topology.
    pub topology: &'a str,
    /// After how many epochs.
    pub epochs: f64,
}

/// Writes the mean of all nodes' models (`models`: `[n_nodes, n_params]`) as a head into `dir`; returns
/// the share of the test examples that it gets right.
///
/// # Errors
/// If a file cannot be written, or no head is made of such models.
pub fn write_mean(
    dir: &Path,
    from: &Origin<'_>,
    task: &LoadedTask,
    text: &TextTask,
    models: &[f32],
) -> Result<f64> {
    let mean = mean_model(models, task.model.n_params());
    let accuracy = accuracy(&*task.model, &mean, &task.test);
    let (classifier, dense, out) = layers(task, &mean)?;
    let Origin {
        config,
        topology,
        epochs,
    } = from;
    let origin = format!(
        "trained on {} by {} node{}, {}, {topology}, {epochs} epochs, {:.2} % right",
        text.name,
        config.n_nodes,
        if config.n_nodes == 1 { "" } else { "s" },
        config.partition.0,
        100.0 * accuracy
    );
    let card = HeadCard::new(
        text.encoder.clone(),
        classifier,
        text.label_names.clone(),
        origin,
    );
    write(dir, &card, dense, out)?;
    Ok(accuracy)
}

/// Says how the head does beside the nodes whose mean it is.
pub fn tell(dir: &Path, from: &Origin<'_>, accuracy: f64, last: &Evaluation) {
    let (nodes, topology) = (&last.accuracy, from.topology);
    let model = from.config.model.model.as_deref();
    let model = model.map_or_else(String::new, |model| format!(" --model {model}"));
    tracing::info!(
        "{topology}: the mean of all models gets {:.2} % right (nodes {:.2} % on average, the worst {:.2} %, \
         the best {:.2} %): moeshard serve{model} --head {}",
        100.0 * accuracy,
        100.0 * nodes.mean,
        100.0 * nodes.min,
        100.0 * nodes.max,
        dir.display()
    );
}

/// Cuts a parameter vector into its layers: W, then b, of one after the other.
fn layers<'a>(
    task: &LoadedTask,
    params: &'a [f32],
) -> Result<(Layers, Option<DenseLayer<'a>>, DenseLayer<'a>)> {
    let (n_features, n_classes) = (task.model.n_features(), task.model.n_classes());
    if task.classifier == "linear" {
        let out = layer(params, n_features)?;
        return Ok((Layers::Linear, None, out));
    }
    if !task.classifier.starts_with("mlp") {
        bail!("a head is linear or an mlp, not {}", task.classifier);
    }
    // n_params = n_hidden · (n_features + 1) + n_classes · (n_hidden + 1)
    let n_hidden = (params.len() - n_classes) / (n_features + 1 + n_classes);
    let (first, second) = params.split_at(n_hidden * (n_features + 1));
    let (dense, out) = (layer(first, n_features)?, layer(second, n_hidden)?);
    Ok((Layers::Mlp, Some(dense), out))
}

fn layer(params: &[f32], n_in: usize) -> Result<DenseLayer<'_>> {
    let n_out = params.len() / (n_in + 1);
    let split = params.split_at_checked(n_in * n_out);
    let (weight, bias) = split.context("a layer has weights")?;
    Ok(DenseLayer { n_in, weight, bias })
}

#[cfg(test)]
mod tests {
    use moeshard_decentralized::data::Dataset;
    use moeshard_decentralized::model::{Mlp, Model};

    use super::*;

    #[test]
    fn the_layers_of_an_mlp_are_found_by_their_sizes() {
        let model = Mlp::new(3, 5, 2);
        let params: Vec<f32> = (0..model.n_params()).map(|i| i as f32).collect();
        let data = Dataset::new(Path::new("a"), 3, 2, vec![0.0; 6], vec![0, 1]).expect("sound");
        let task = LoadedTask {
            identity: String::new(),
            train: data.clone(),
            test: data,
            model: Box::new(model),
            classifier: "mlp:hidden=5".to_owned(),
            text: None,
        };
        let (kind, dense, out) = layers(&task, &params).expect("layers");
        let dense = dense.expect("two layers");
        assert_eq!(kind, Layers::Mlp);
        assert_eq!((dense.n_in, out.n_in), (3, 5));
        assert_eq!(dense.weight, &params[..15]);
        assert_eq!(dense.bias, &params[15..20]);
        assert_eq!(out.weight, &params[20..30]);
        assert_eq!(out.bias, &params[30..]);
    }
}
