//! Puts a head on an encoder.

use std::fs;
use std::path::Path;

use moeshard_tensor::device::{Activation, NormKind, Pooling};

use super::{
    CARD, DENSE, EncoderCard, FORMAT, HeadCard, HeadError, Layers, NORM, NORM_EPS, OUT, WEIGHTS,
};
use crate::model::Model;
use crate::spec::{HeadSpec, LinearSpec, NormSpec, ProblemType, TensorRef};

/// Puts the head in `dir` in place of that of `model`, which is called `name`; the model's own task
/// then is classification.
///
/// # Errors
/// If there is no head or it is not whole, or it belongs to another encoder.
pub fn attach(dir: &Path, model: &mut Model, name: &str) -> Result<HeadCard, HeadError> {
    let card = read_card(dir)?;
    let encoder = EncoderCard::of(model, name)?;
    let is_same = card.encoder.fingerprint == encoder.fingerprint;
    if !is_same || card.encoder.d_model != encoder.d_model {
        return Err(HeadError::OtherEncoder {
            dir: dir.into(),
            expected: Box::new(card.encoder),
            found: Box::new(encoder),
        });
    }
    let pooling = pooling(&card, dir)?;
    model.checkpoint.attach(&dir.join(WEIGHTS))?;
    check_names(dir, &card, model)?;
    let n_scores = n_out(model, OUT, card.labels.len());
    if n_scores != card.labels.len() {
        return Err(HeadError::Labels {
            file: dir.join(CARD),
            n_scores,
            n_labels: card.labels.len(),
        });
    }
    model.spec.head = Some(head(&card, pooling, model));
    model.spec.validate(&model.checkpoint)?;
    model.settings.classifier = true;
    Ok(card)
}

fn read_card(dir: &Path) -> Result<HeadCard, HeadError> {
    let file = dir.join(CARD);
    if !file.exists() {
        return Err(HeadError::Missing { dir: dir.into() });
    }
    let bytes = fs::read(&file).map_err(|source| HeadError::Io {
        file: file.clone(),
        done: "read",
        source,
    })?;
    let card: Result<HeadCard, _> = serde_json::from_slice(&bytes);
    let card = card.map_err(|source| HeadError::Json {
        file: file.clone(),
        source,
    })?;
    let only = |key, found: &str, expected| match found == expected {
        true => Ok(()),
        false => Err(HeadError::Key {
            file: file.clone(),
            key,
            expected,
            found: found.to_owned(),
        }),
    };
    only("format", &card.format, FORMAT)?;
    only("normalization", &card.normalization, "rms")?;
    let is_empty = card.labels.is_empty();
    only("labels", if is_empty { "none" } else { "some" }, "some")?;
    Ok(card)
}

/// That the file has all tensors: their shapes are checked with those of the encoder.
fn check_names(dir: &Path, card: &HeadCard, model: &Model) -> Result<(), HeadError> {
    let layers: &[&str] = match card.classifier {
        Layers::Linear => &[OUT],
        Layers::Mlp => &[DENSE, OUT],
    };
    let of_layer = |layer: &&str| [format!("{layer}.weight"), format!("{layer}.bias")];
    let mut names = layers.iter().flat_map(of_layer).chain([NORM.to_owned()]);
    match names.find(|name| !model.checkpoint.contains(name)) {
        None => Ok(()),
        Some(tensor) => Err(HeadError::MissingTensor {
            file: dir.join(WEIGHTS),
            tensor,
        }),
    }
}

fn pooling(card: &HeadCard, dir: &Path) -> Result<Pooling, HeadError> {
    match card.encoder.pooling.as_str() {
        "cls" => Ok(Pooling::Cls),
        "mean" => Ok(Pooling::Mean),
        "lasttoken" => Ok(Pooling::LastToken),
        found => Err(HeadError::Key {
            file: dir.join(CARD),
            key: "encoder.pooling",
            expected: "cls, mean or lasttoken",
            found: found.to_owned(),
        }),
    }
}

/// Rows of a layer's matrix; `otherwise` if it has none, which is found when the spec is checked.
fn n_out(model: &Model, layer: &str, otherwise: usize) -> usize {
    let info = model.checkpoint.info(&format!("{layer}.weight"));
    let rows = info.and_then(|info| info.shape.first().copied());
    rows.filter(|&n| n > 0).unwrap_or(otherwise)
}

fn head(card: &HeadCard, pooling: Pooling, model: &Model) -> HeadSpec {
    let (d_model, n_labels) = (card.encoder.d_model, card.labels.len());
    let (dense, n_in) = match card.classifier {
        Layers::Linear => (None, d_model),
        Layers::Mlp => {
            let n_hidden = n_out(model, DENSE, d_model);
            let dense = LinearSpec::new(DENSE, n_hidden, d_model, true);
            (Some((dense, Activation::Relu)), n_hidden)
        }
    };
    HeadSpec {
        pooling: Some(pooling),
        norm: Some(NormSpec {
            kind: NormKind::Rms,
            eps: NORM_EPS,
            weight: TensorRef::new(NORM),
            bias: None,
        }),
        dense,
        out: LinearSpec::new(OUT, n_labels, n_in, true),
        labels: card.labels.clone(),
        problem_type: ProblemType::SingleLabel,
    }
}
