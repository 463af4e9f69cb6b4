//! What a model's folder says beside its config: pooling, prompts, length limit.

use std::path::Path;

use moeshard_encoder::model::Model;
use moeshard_encoder::model_error::ModelError;
use moeshard_tensor::device::Pooling;
use serde_json::{Value, json};

use crate::golden;

/// A copy of a golden's weights in a folder with other files beside.
fn folder(name: &str, files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(name).join(file), dir.path().join(file)).unwrap();
    }
    for (file, value) in files {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    }
    dir
}

#[test]
fn the_longest_sequence_comes_from_the_first_file_that_knows() {
    let sentence = "sentence_bert_config.json";
    let tokenizer = "tokenizer_config.json";
    // The tokenizer's own truncation is how it was last called: never followed.
    let trap = ("tokenizer.json", json!({"truncation": {"max_length": 7}}));
    let cases = [
        ("switch", vec![], 512),
        (
            "switch",
            vec![(tokenizer, json!({"model_max_length": 900}))],
            900,
        ),
        (
            "switch",
            vec![(tokenizer, json!({"model_max_length": 1e30}))],
            512,
        ),
        (
            "switch",
            vec![
                (sentence, json!({"max_seq_length": 77})),
                (tokenizer, json!({"model_max_length": 900})),
            ],
            77,
        ),
        ("bert_cls", vec![], 48),
        (
            "bert_cls",
            vec![(sentence, json!({"max_seq_length": null}))],
            48,
        ),
        (
            "bert_cls",
            vec![(sentence, json!({"max_seq_length": 512}))],
            48,
        ),
        (
            "xlm_roberta",
            vec![(tokenizer, json!({"model_max_length": 20}))],
            20,
        ),
    ];
    for (name, mut files, expected) in cases {
        files.push(trap.clone());
        let dir = folder(name, &files);
        let model = Model::open(dir.path()).unwrap();
        assert_eq!(model.settings.max_length, expected, "{name} with {files:?}");
    }
}

#[test]
fn pooling_and_prompts_come_from_their_files() {
    let module = |class: &str, path: &str| json!({"type": format!("sentence_transformers.models.{class}"), "path": path});
    let files = [
        (
            "modules.json",
            json!([module("Transformer", ""), module("Pooling", "2_Other")]),
        ),
        ("2_Other/config.json", json!({"pooling_mode": "lasttoken"})),
        (
            "1_Pooling/config.json",
            json!({"pooling_mode_max_tokens": true}),
        ),
        (
            "config_sentence_transformers.json",
            json!({"prompts": {"query": "q: "}, "default_prompt_name": "query"}),
        ),
    ];
    let settings = Model::open(folder("bert_cls", &files).path())
        .unwrap()
        .settings;
    assert_eq!(settings.pooling, Pooling::LastToken);
    assert_eq!(settings.prompts["query"], "q: ");
    assert_eq!(settings.default_prompt_name.as_deref(), Some("query"));

    let dense = json!([module("Transformer", ""), module("Dense", "2_Dense")]);
    let cases = [
        (
            "1_Pooling/config.json",
            json!({"pooling_mode_max_tokens": true}),
            "found \"max_tokens\"",
        ),
        (
            "1_Pooling/config.json",
            json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
            "\"cls_token and mean_tokens\"",
        ),
        ("modules.json", dense, "models.Dense"),
        (
            "modules.json",
            json!([module("Pooling", "../other")]),
            "../other",
        ),
        ("modules.json", json!(3), "expected a list, found 3"),
        (
            "config_sentence_transformers.json",
            json!({"default_prompt_name": "x"}),
            "\"x\"",
        ),
        (
            "config_sentence_transformers.json",
            json!({"prompts": {"a": 1}}),
            "prompts.a",
        ),
        (
            "sentence_bert_config.json",
            json!({"max_seq_length": 0}),
            "found 0",
        ),
    ];
    for (file, value, expected) in cases {
        let dir = folder("bert_cls", &[(file, value)]);
        let error = Model::open(dir.path()).map(|_| ()).unwrap_err().to_string();
        let path = format!("{}/{file}: ", dir.path().display());
        assert!(
            error.starts_with(&path) && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn a_model_in_the_program_opens_like_one_in_a_folder() {
    let leak = |file| -> &'static [u8] {
        Box::leak(
            std::fs::read(golden("bert_cls").join(file))
                .unwrap()
                .into_boxed_slice(),
        )
    };
    let names = [
        "config.json",
        "model.safetensors",
        "1_Pooling/config.json",
        "modules.json",
    ];
    let files: Vec<(&'static str, &'static [u8])> =
        names.iter().map(|name| (*name, leak(name))).collect();
    let model = Model::from_static("mini", &files).unwrap();
    let folder = Model::open(&golden("bert_cls")).unwrap();
    assert_eq!((model.spec, model.settings), (folder.spec, folder.settings));
    let error = Model::from_static("mini", &files[..1])
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(&error, ModelError::MissingFile { file } if file == "mini/model.safetensors"));
}

#[test]
fn a_folder_without_a_config_or_with_a_broken_one_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| Model::open(dir).map(|_| ()).unwrap_err().to_string();
    assert!(error(dir.path()).contains("config.json: expected a file of this name, found none"));
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    assert!(error(dir.path()).contains("config.json: expected JSON"));
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(error(dir.path()).contains("model.safetensors"));
}
