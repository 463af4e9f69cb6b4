//! Heads trained apart from their encoder: what is written is what is put on, and nothing else is.

use std::fs;
use std::path::{Path, PathBuf};

use moeshard_encoder::model::Model;
use moeshard_encoder::reference::Reference;
use moeshard_encoder::trained_head::{DenseLayer, EncoderCard, HeadCard, Layers, attach, write};
use moeshard_tensor::device::Pooling;
use serde_json::{Value, json};
use tempfile::TempDir;

const CASE: &str = "nomic_moe_classify";
const LABELS: [&str; 3] = ["x", "y", "z"];

fn open(case: &str) -> Model {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    Model::open(&goldens.join(case)).expect("a golden")
}

/// Numbers in no order, about `-scale..scale`.
fn numbers(n: usize, scale: f32) -> Vec<f32> {
    let number = |i: usize| ((i * 7919 + 31) % 1000) as f32 / 500.0 - 1.0;
    (0..n).map(|i| scale * number(i)).collect()
}

/// Weights of a head on vectors of `d_model`.
struct Weights {
    dense: Option<(Vec<f32>, Vec<f32>)>,
    out: (Vec<f32>, Vec<f32>),
}

impl Weights {
    fn new(d_model: usize, n_hidden: Option<usize>) -> Self {
        let layer = |n_in, n_out, scale| (numbers(n_in * n_out, scale), numbers(n_out, 0.5));
        Self {
            dense: n_hidden.map(|n_hidden| layer(d_model, n_hidden, 0.3)),
            out: layer(n_hidden.unwrap_or(d_model), LABELS.len(), 0.2),
        }
    }

    fn write(&self, dir: &Path, model: &Model) {
        let layer = |(weight, bias): &(Vec<f32>, Vec<f32>)| -> (usize, Vec<f32>, Vec<f32>) {
            (weight.len() / bias.len(), weight.clone(), bias.clone())
        };
        let parts: Vec<_> = self.dense.iter().chain([&self.out]).map(layer).collect();
        let layers: Vec<DenseLayer<'_>> = (parts.iter())
            .map(|(n_in, weight, bias)| DenseLayer {
                n_in: *n_in,
                weight,
                bias,
            })
            .collect();
        let (out, dense) = layers.split_last().expect("a layer");
        let kind = match dense {
            [] => Layers::Linear,
            _ => Layers::Mlp,
        };
        let labels = LABELS.map(str::to_owned).to_vec();
        let encoder = EncoderCard::of(model, "golden").expect("a card");
        let card = HeadCard::new(encoder, kind, labels, "made by a test".to_owned());
        write(dir, &card, dense.first().copied(), *out).expect("written");
    }

    /// `out(relu(dense(x / rms(x))))` in f64.
    fn logits(&self, x: &[f32]) -> Vec<f64> {
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let rms = (squares / x.len() as f64).sqrt();
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x) / rms).collect();
        let layer = |(weight, bias): &(Vec<f32>, Vec<f32>), x: &[f64]| -> Vec<f64> {
            let rows = weight.chunks_exact(x.len()).zip(bias);
            rows.map(|(row, &b)| {
                let terms = row.iter().zip(x).map(|(&w, x)| f64::from(w) * x);
                terms.sum::<f64>() + f64::from(b)
            })
            .collect()
        };
        let hidden = (self.dense.as_ref()).map(|dense| layer(dense, &x));
        let hidden = hidden.map(|h| h.into_iter().map(|x| x.max(0.0)).collect());
        layer(&self.out, &hidden.unwrap_or(x))
    }
}

/// A head for [`CASE`] in a folder of its own.
fn folder() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("head");
    let model = open(CASE);
    Weights::new(model.spec.d_model, None).write(&dir, &model);
    (temp, dir)
}

fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let file = dir.join("head.json");
    let mut card = serde_json::from_slice(&fs::read(&file).expect("a card")).expect("JSON");
    change(&mut card);
    fs::write(file, card.to_string()).expect("written");
}

#[track_caller]
fn refused(dir: &Path, case: &str, fragments: &[&str]) {
    let error = attach(dir, &mut open(case), case).expect_err("not a head");
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    for fragment in fragments {
        assert!(error.contains(fragment), "no {fragment:?} in {error:?}");
    }
}

#[test]
fn a_head_put_on_gives_the_logits_of_its_weights() {
    for (case, n_hidden) in [(CASE, None), ("bert_cls", Some(20)), ("switch", Some(7))] {
        let mut model = open(case);
        let d_model = model.spec.d_model;
        let weights = Weights::new(d_model, n_hidden);
        let temp = tempfile::tempdir().expect("a folder");
        weights.write(temp.path(), &model);
        let pooling = model.settings.pooling;
        let card = attach(temp.path(), &mut model, case).expect(case);
        assert_eq!(card.labels, LABELS);
        assert!(model.settings.classifier, "{case}");
        let head = model.spec.head.as_ref().expect("a head");
        assert_eq!((head.pooling, &head.labels), (Some(pooling), &card.labels));

        let reference = Reference::new(&model.spec, &model.checkpoint, None);
        let hidden = numbers(5 * d_model, 3.0);
        let pooled = reference.pool(&hidden, pooling).expect("a vector");
        // The head keeps the pooling that it was trained with, whatever the model's is now.
        let logits = reference.logits(&hidden, Pooling::Cls).expect("logits");
        let expected = weights.logits(&pooled);
        assert_eq!(logits.len(), expected.len());
        for (found, expected) in logits.iter().zip(expected) {
            assert!(
                (f64::from(*found) - expected).abs() < 1e-5,
                "{case}: {found} {expected}"
            );
        }
    }
}

#[test]
fn an_encoder_keeps_its_fingerprint_whatever_its_head() {
    let of = |case: &str| open(case).fingerprint().expect("a fingerprint").to_string();
    assert_eq!(of(CASE), of(CASE));
    let (_temp, dir) = folder();
    let mut model = open(CASE);
    attach(&dir, &mut model, CASE).expect("a head");
    assert_eq!(
        model.fingerprint().expect("a fingerprint").to_string(),
        of(CASE)
    );
    let cases = [
        CASE,
        "nomic_moe",
        "bert_cls",
        "bert_last",
        "switch",
        "xlm_roberta",
    ];
    let mut all = cases.map(of);
    all.sort();
    assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
}

#[test]
fn a_folder_without_a_whole_head() {
    let (temp, dir) = folder();
    let nowhere = temp.path().join("nowhere");
    refused(&nowhere, CASE, &["nowhere", "head.json", "found none"]);

    let weights = fs::read(dir.join("head.safetensors")).expect("weights");
    for length in [0, 7, 100, weights.len() - 1] {
        fs::write(dir.join("head.safetensors"), &weights[..length]).expect("written");
        refused(&dir, CASE, &["head.safetensors", "expected", "found"]);
    }
    fs::remove_file(dir.join("head.safetensors")).expect("removed");
    refused(&dir, CASE, &["head.safetensors", "cannot be read"]);

    let card = fs::read(dir.join("head.json")).expect("a card");
    for length in [0, 1, card.len() / 2] {
        fs::write(dir.join("head.json"), &card[..length]).expect("written");
        refused(&dir, CASE, &["head.json", "expected", "found"]);
    }
}

#[test]
fn a_head_of_another_encoder() {
    let (_temp, dir) = folder();
    refused(
        &dir,
        "bert_cls",
        &["belongs to the encoder golden", "bert_cls"],
    );
    let (_temp, dir) = folder();
    edit(&dir, |card| card["encoder"]["d_model"] = json!(7));
    refused(&dir, CASE, &["7-dimensional", "48-dimensional"]);
}

#[test]
fn a_card_that_contradicts_the_weights_or_is_not_understood() {
    let wrong = |change: fn(&mut Value), fragments: &[&str]| {
        let (_temp, dir) = folder();
        edit(&dir, change);
        refused(&dir, CASE, fragments);
    };
    wrong(
        |card| card["labels"] = json!(["x", "y"]),
        &["head.json", "3 scores", "found 2"],
    );
    wrong(|card| card["labels"] = json!([]), &["labels", "none"]);
    wrong(|card| card["labels"] = json!(7), &["head.json", "sequence"]);
    wrong(
        |card| card["format"] = json!("moeshard-head-9"),
        &["format", "moeshard-head-9"],
    );
    wrong(
        |card| card["normalization"] = json!("whitened"),
        &["normalization", "rms", "whitened"],
    );
    wrong(
        |card| card["encoder"]["pooling"] = json!("max"),
        &["encoder.pooling", "cls, mean", "max"],
    );
    wrong(
        |card| card["classifier"] = json!("mlp"),
        &["head.safetensors", "head.dense.weight"],
    );
    wrong(
        |card| card["classifier"] = json!("forest"),
        &["head.json", "forest"],
    );
}
