//! Configs that lie: each is refused in one sentence, none crashes.

use moeshard_encoder::families::translate;
use moeshard_tensor::checkpoint::Checkpoint;
use serde_json::{Value, json};

use crate::{config_of, facts, golden, goldens};

/// The error of a golden whose config has some keys changed.
fn error_of(name: &str, changes: &Value) -> String {
    let dir = golden(name);
    let mut config = config_of(&dir);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let checkpoint = Checkpoint::open(&dir).unwrap();
    match translate(&config, &checkpoint) {
        Ok(spec) => panic!("{name} with {changes} translates: {}", facts(&spec)),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_config_that_cannot_be_is_refused_in_one_sentence() {
    let cases = [
        (
            "nomic_moe",
            json!({"n_head": 5}),
            vec!["n_head", "divides the width 48", "found 5"],
        ),
        (
            "bert_cls",
            json!({"num_attention_heads": 7}),
            vec!["the width 36", "found 7"],
        ),
        (
            "nllb_moe",
            json!({"encoder_attention_heads": 3}),
            vec!["the width 32", "found 3"],
        ),
        (
            "switch",
            json!({"model_type": "gpt2"}),
            vec!["\"gpt2\"", "switch_transformers", "bert"],
        ),
        (
            "switch",
            json!({"model_type": null, "architectures": []}),
            vec!["found nothing"],
        ),
        (
            "switch",
            json!({"d_model": null}),
            vec!["d_model", "found nothing"],
        ),
        (
            "switch",
            json!({"d_model": "40"}),
            vec!["d_model", "found \"40\""],
        ),
        (
            "switch",
            json!({"num_layers": 0}),
            vec!["num_layers", "from 1 to 10000", "found 0"],
        ),
        (
            "switch",
            json!({"num_layers": -4}),
            vec!["num_layers", "found -4"],
        ),
        (
            "switch",
            json!({"num_experts": 1_u64 << 40}),
            vec!["num_experts", "to 65536", "found 109"],
        ),
        (
            "switch",
            json!({"num_sparse_encoder_layers": 5}),
            vec!["layers (4)", "found 5"],
        ),
        (
            "switch",
            json!({"is_gated_act": true}),
            vec!["is_gated_act", "expected false"],
        ),
        (
            "switch",
            json!({"dense_act_fn": "mish"}),
            vec!["dense_act_fn", "gelu", "\"mish\""],
        ),
        (
            "nomic_moe",
            json!({"moe_top_k": 6}),
            vec!["moe_top_k", "experts (5)", "found 6"],
        ),
        (
            "nllb_moe",
            json!({"num_experts": 1}),
            vec!["experts (1)", "found 2"],
        ),
        (
            "nllb_moe",
            json!({"moe_token_dropout": 1.5}),
            vec!["moe_token_dropout", "1.5"],
        ),
        (
            "nllb_moe",
            json!({"second_expert_policy": "random"}),
            vec!["\"all\"", "\"random\""],
        ),
        (
            "nomic_moe",
            json!({"rotary_emb_interleaved": true}),
            vec!["interleaved", "found true"],
        ),
        (
            "nomic_moe",
            json!({"prenorm": true}),
            vec!["prenorm", "expected false"],
        ),
        (
            "nomic_moe",
            json!({"rotary_emb_fraction": 0.25}),
            vec!["even number", "found 3"],
        ),
        (
            "nomic_moe",
            json!({"layer_norm_epsilon": []}),
            vec!["layer_norm_epsilon", "a list"],
        ),
        (
            "bert_cls",
            json!({"position_embedding_type": "relative_key"}),
            vec!["\"absolute\""],
        ),
        (
            "xlm_roberta",
            json!({"max_position_embeddings": 2}),
            vec!["pad_token_id + 1 (2)"],
        ),
        (
            "bert_classify",
            json!({"id2label": {"7": "x"}}),
            vec!["from 0 to 2", "\"7\""],
        ),
        (
            "bert_classify",
            json!({"problem_type": "guess"}),
            vec!["problem_type", "\"guess\""],
        ),
    ];
    for (name, changes, expected) in cases {
        let error = error_of(name, &changes);
        assert!(
            error.starts_with("config.json: ") && !error.contains('\n'),
            "{error}"
        );
        for part in expected {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }
}

#[test]
fn weights_that_contradict_the_config_are_refused_before_loading() {
    let cases = [
        (
            "switch",
            json!({"num_layers": 6, "num_sparse_encoder_layers": 3}),
            "encoder.block.4.",
        ),
        ("nomic_moe", json!({"num_experts": 6}), "found [5, 48]"),
        (
            "nomic_moe",
            json!({"n_inner": 41}),
            "expected shape [41, 48], found [40, 48]",
        ),
        (
            "nomic_moe",
            json!({"vocab_size": 96}),
            "expected shape [96, 48], found [97, 48]",
        ),
        (
            "nllb_moe",
            json!({"num_experts": 65_536}),
            "expected shape [65536, 32]",
        ),
        (
            "switch",
            json!({"num_experts": 7}),
            "expected shape [7, 40], found [6, 40]",
        ),
        (
            "bert_last",
            json!({"architectures": ["BertForSequenceClassification"]}),
            "pooler.dense",
        ),
        (
            "bert_cls",
            json!({"model_type": "switch_transformers", "d_model": 36, "d_ff": 50,
            "num_layers": 2, "num_heads": 3, "num_sparse_encoder_layers": 0}),
            "encoder.block.0",
        ),
    ];
    for (name, changes, expected) in cases {
        let error = error_of(name, &changes);
        assert!(
            error.contains(expected),
            "{error:?} does not say {expected:?}"
        );
    }
}

#[test]
fn no_value_of_any_key_crashes_a_translation() {
    let hostile = [
        json!(null),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(65_536),
        json!(u64::MAX),
        json!(1e300),
        json!(0.5),
        json!(true),
        json!("x"),
        json!([]),
        json!({}),
        json!([[{}]]),
    ];
    for dir in goldens() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let config = config_of(&dir);
        for key in config.as_object().unwrap().keys() {
            for value in &hostile {
                let mut changed = config.clone();
                changed[key] = value.clone();
                if let Err(error) = translate(&changed, &checkpoint) {
                    assert!(
                        !error.to_string().contains('\n'),
                        "{key} = {value}: {error}"
                    );
                }
            }
        }
        for value in &hostile {
            assert!(translate(value, &checkpoint).is_err());
        }
    }
}
