//! Tensor names as checkpoints in the wild spell them.

use std::borrow::Cow;

use moeshard_encoder::families::translate;
use moeshard_encoder::spec::{EncoderSpec, FfnSpec, ProblemType};
use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::Activation;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::{config_of, golden};

/// A golden's spec after `edit` has changed names and tensors.
fn spec_of(
    name: &str,
    config: &Value,
    edit: impl Fn(&str, TensorView<'static>) -> (String, TensorView<'static>),
) -> EncoderSpec {
    let bytes = std::fs::read(golden(name).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(bytes.leak()).unwrap();
    let edited: Vec<_> = tensors
        .iter()
        .map(|(name, view)| edit(name, view))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(path, safetensors::serialize(edited, None).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    translate(config, &checkpoint).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A golden's spec after its tensors were renamed.
fn renamed(name: &str, rename: impl Fn(&str) -> Cow<'_, str>) -> EncoderSpec {
    let config = config_of(&golden(name));
    spec_of(name, &config, |name, view| {
        (rename(name).into_owned(), view)
    })
}

#[test]
fn encoders_are_found_under_any_prefix() {
    for name in ["bert_cls", "xlm_roberta", "nomic_moe", "switch", "nllb_moe"] {
        for prefix in ["", "model.", "bert.", "0.auto_model."] {
            let spec = renamed(name, |tensor| Cow::Owned(format!("{prefix}{tensor}")));
            assert!(
                spec.embedding.word.name.starts_with(prefix),
                "{name} under {prefix:?}"
            );
            assert!(
                spec.layers[0].qkv.weights[0]
                    .tensor
                    .name
                    .starts_with(prefix)
            );
        }
    }
}

#[test]
fn a_stack_alone_has_its_own_embedding() {
    let spec = renamed("switch", |tensor| match tensor {
        "shared.weight" => Cow::Borrowed("embed_tokens.weight"),
        other => Cow::Borrowed(other.strip_prefix("encoder.").unwrap_or(other)),
    });
    assert_eq!(spec.embedding.word.name, "embed_tokens.weight");
    let spec = renamed("nllb_moe", |tensor| match tensor {
        "shared.weight" => Cow::Borrowed("encoder.embed_tokens.weight"),
        other => Cow::Borrowed(other),
    });
    assert_eq!(spec.embedding.word.name, "encoder.embed_tokens.weight");
}

#[test]
fn early_checkpoints_call_norms_gamma_and_beta() {
    let spec = renamed("bert_classify", |tensor| {
        let gamma = tensor.replace("LayerNorm.weight", "LayerNorm.gamma");
        Cow::Owned(gamma.replace("LayerNorm.bias", "LayerNorm.beta"))
    });
    let norm = &spec.layers[1].ffn_norm;
    assert_eq!(
        norm.weight.name,
        "bert.encoder.layer.1.output.LayerNorm.gamma"
    );
    assert_eq!(
        norm.bias.as_ref().unwrap().name,
        "bert.encoder.layer.1.output.LayerNorm.beta"
    );
}

#[test]
fn nomic_bert_may_be_described_by_the_keys_of_transformers() {
    let config = json!({
        "model_type": "nomic_bert", "hidden_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "intermediate_size": 40, "hidden_act": "silu",
        "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "vocab_size": 97, "rope_parameters": {"rope_type": "default", "rope_theta": 1000},
    });
    let native = spec_of("nomic_dense", &config, |name, view| (name.into(), view));
    let own = config_of(&golden("nomic_dense"));
    let published = spec_of("nomic_dense", &own, |name, view| (name.into(), view));
    assert_eq!(native, published);
}

#[test]
fn tanh_and_exact_gelu_are_told_apart() {
    let cases = [
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("relu", Activation::Relu),
        ("silu", Activation::Silu),
    ];
    for (name, expected) in cases {
        let mut config = config_of(&golden("nomic_moe"));
        config["activation_function"] = json!(name);
        let spec = spec_of("nomic_moe", &config, |name, view| (name.into(), view));
        let FfnSpec::Dense(ffn) = &spec.layers[0].ffn else {
            panic!("dense")
        };
        let (_, experts) = spec.expert_layers().next().unwrap();
        assert_eq!(
            (ffn.activation, experts.activation),
            (expected, expected),
            "{name}"
        );
    }
}

#[test]
fn one_score_alone_gets_a_sigmoid() {
    let mut config = config_of(&golden("bert_classify"));
    config["id2label"] = Value::Null;
    config["problem_type"] = Value::Null;
    // f32 zeros, enough for one row.
    let zeros: &'static [u8] = &[0; 4 * 36];
    let spec = spec_of("bert_classify", &config, |name, view| {
        let one = |shape: Vec<usize>| {
            let n_bytes = 4 * shape.iter().product::<usize>();
            TensorView::new(Dtype::F32, shape, &zeros[..n_bytes]).unwrap()
        };
        match name {
            "classifier.weight" => (name.into(), one(vec![1, 36])),
            "classifier.bias" => (name.into(), one(vec![1])),
            _ => (name.into(), view),
        }
    });
    let head = spec.head.unwrap();
    assert_eq!(
        (head.labels, head.problem_type),
        (vec!["LABEL_0".to_owned()], ProblemType::MultiLabel)
    );
}
