//! Classification heads, as far as families share them.

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{Activation, Pooling};
use serde_json::Value;

use super::config::{Config, error, shown};
use crate::model_error::{ModelError, Result};
use crate::spec::{HeadSpec, LinearSpec, ProblemType};

/// Architectures whose classifier is not one of sequences.
const OTHER_CLASSIFIERS: [&str; 3] = [
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
];

/// Whether the model was saved as a classifier of sequences.
pub(super) fn is_classifier(config: &Config<'_>) -> bool {
    config
        .architectures()
        .any(|name| name.ends_with("ForSequenceClassification"))
}

/// One matrix beside the model, if there is one: `classifier` or `score`, on the model's own
/// pooling.
pub(super) fn plain(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
    d_model: usize,
) -> Result<Option<HeadSpec>> {
    let is_other = |name: &str| OTHER_CLASSIFIERS.iter().any(|other| name.ends_with(other));
    if config.architectures().any(is_other) {
        return Ok(None);
    }
    let has_weight = |name: &&str| checkpoint.contains(&format!("{name}.weight"));
    let found = ["classifier", "score"].into_iter().find(has_weight);
    let name = match found {
        Some(name) => name,
        None if is_classifier(config) => "classifier",
        None => return Ok(None),
    };
    head(config, checkpoint, name, d_model, None, None).map(Some)
}

/// `out(tanh(dense(first token)))`.
pub(super) fn pooled(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
    dense: &str,
    out: &str,
    d_model: usize,
) -> Result<HeadSpec> {
    let dense = LinearSpec::new(dense, d_model, d_model, true);
    let dense = Some((dense, Activation::Tanh));
    head(config, checkpoint, out, d_model, Some(Pooling::Cls), dense)
}

/// A head of which all is known but its labels.
pub(super) fn head(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
    out: &str,
    d_model: usize,
    pooling: Option<Pooling>,
    dense: Option<(LinearSpec, Activation)>,
) -> Result<HeadSpec> {
    let n_labels = n_labels(checkpoint, out, d_model)?;
    let has_bias = checkpoint.contains(&format!("{out}.bias"));
    Ok(HeadSpec {
        pooling,
        norm: None,
        dense,
        out: LinearSpec::new(out, n_labels, d_model, has_bias),
        labels: labels(config, n_labels)?,
        problem_type: problem_type(config, n_labels)?,
    })
}

/// How many labels the weights know: they know best.
///
/// A matrix that is missing is found when the whole spec is checked.
fn n_labels(checkpoint: &Checkpoint, out: &str, d_model: usize) -> Result<usize> {
    let tensor = format!("{out}.weight");
    let Some(info) = checkpoint.info(&tensor) else {
        return Ok(1);
    };
    match info.shape[..] {
        [n_labels, n_in] if n_in == d_model && n_labels > 0 => Ok(n_labels),
        _ => Err(ModelError::TensorShape {
            file: checkpoint.file_of(&tensor).to_owned(),
            tensor,
            expected: vec![info.shape.first().copied().unwrap_or(1).max(1), d_model],
            found: info.shape.clone(),
        }),
    }
}

/// The names in `id2label`; `LABEL_3` for a label without one.
fn labels(config: &Config<'_>, n_labels: usize) -> Result<Vec<String>> {
    let mut labels: Vec<String> = (0..n_labels).map(|i| format!("LABEL_{i}")).collect();
    let Some(value) = config.value("id2label") else {
        return Ok(labels);
    };
    let names = value.as_object();
    let names = names.ok_or_else(|| error("id2label", "an object", &shown(value)))?;
    for (idx, name) in names {
        let slot = idx.parse().ok().and_then(|idx: usize| labels.get_mut(idx));
        let Some(slot) = slot else {
            let expected = format!("keys from 0 to {}", n_labels - 1);
            return Err(error("id2label", &expected, &format!("{idx:?}")));
        };
        *slot = match name {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(error(&format!("id2label.{idx}"), "a string", &shown(other))),
        };
    }
    Ok(labels)
}

/// What the scores mean, where the config does not say too.
///
/// As `transformers` and text-embeddings-inference do: a single label gets a sigmoid (which is
/// [`ProblemType::MultiLabel`]), several get a softmax; scores are left as they are only for a
/// model that calls itself a regression.
fn problem_type(config: &Config<'_>, n_labels: usize) -> Result<ProblemType> {
    Ok(match config.text("problem_type")? {
        Some("regression") => ProblemType::Regression,
        Some("multi_label_classification") => ProblemType::MultiLabel,
        Some("single_label_classification") | None if n_labels == 1 => ProblemType::MultiLabel,
        Some("single_label_classification") | None => ProblemType::SingleLabel,
        Some(other) => {
            let known = "single_label_classification, multi_label_classification or regression";
            return Err(error("problem_type", known, &format!("{other:?}")));
        }
    })
}
