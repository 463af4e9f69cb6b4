//! Families: every golden translates into a spec whose tensors exist, and no config crashes.

use std::path::{Path, PathBuf};

use moeshard_encoder::families::translate;
use moeshard_encoder::model::Model;
use moeshard_encoder::model_error::ModelError;
use moeshard_encoder::spec::{EncoderSpec, FfnSpec, PositionEmbedding};
use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{Activation, Pooling, PositionRule};
use moeshard_tensor::dtype::DType;
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(name: &str) -> PathBuf {
    repository().join("tests/goldens").join(name)
}

/// All goldens that are whole checkpoints.
fn goldens() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden("")).expect("goldens are committed");
    let folders = entries.map(|entry| entry.expect("readable").path());
    let mut folders: Vec<PathBuf> = folders.filter(|f| f.join("config.json").exists()).collect();
    folders.sort();
    folders
}

fn config_of(dir: &Path) -> Value {
    let bytes = std::fs::read(dir.join("config.json")).expect("a config");
    serde_json::from_slice(&bytes).expect("a config is JSON")
}

/// A spec in one line: the facts that goldens differ in.
fn facts(spec: &EncoderSpec) -> String {
    let layers: String = spec
        .layers
        .iter()
        .map(|layer| layer_letter(&layer.ffn))
        .collect();
    let experts = spec.expert_layers().next().map(|(_, experts)| {
        let (rule, first) = (experts.rule, &experts.experts[0]);
        format!(
            "; {} experts × {}, top {}{}{}{}{}, × {}",
            experts.experts.len(),
            experts.d_ff,
            rule.top_k,
            if rule.normalize { " normalized" } else { "" },
            if first.b_in.is_some() {
                ", own biases"
            } else {
                ""
            },
            if experts.shared_bias.is_some() {
                ", shared bias"
            } else {
                ""
            },
            if first.w_in.tensor.rows.is_some() {
                ", stacked"
            } else {
                ""
            },
            experts.output_scale,
        )
    });
    let position = match (&spec.embedding.position, spec.attention.position) {
        (PositionEmbedding::Learned { n_rows, offset, .. }, PositionRule::None) => {
            format!("learned {n_rows} from {offset}")
        }
        (
            PositionEmbedding::Sinusoidal {
                offset,
                n_positions,
            },
            PositionRule::None,
        ) => {
            format!("sines {n_positions} from {offset}")
        }
        (PositionEmbedding::None, PositionRule::Rotary { base, dim }) => {
            format!("rotary {dim} base {base}")
        }
        (
            PositionEmbedding::None,
            PositionRule::RelativeBias {
                n_buckets,
                max_distance,
            },
        ) => {
            format!("relative {n_buckets} to {max_distance}")
        }
        other => format!("{other:?}"),
    };
    format!(
        "{}: d {}, {} × {}, {:?}, {position}, {layers}{}",
        spec.family,
        spec.d_model,
        spec.attention.n_heads,
        spec.attention.head_dim,
        spec.norm_order,
        experts.unwrap_or_default(),
    )
}

/// `E`xperts, `G`ated or `D`ense.
fn layer_letter(ffn: &FfnSpec) -> char {
    match ffn {
        FfnSpec::Experts(_) => 'E',
        FfnSpec::Dense(ffn) if ffn.gate.is_some() => 'G',
        FfnSpec::Dense(_) => 'D',
    }
}

#[test]
fn goldens_translate_into_these_specs() {
    let switch = "switch_transformers: d 40, 5 × 6, Pre, relative 32 to 128, DEDE; \
                  6 experts × 37, top 1, × 1";
    let nomic = |rule: &str| {
        format!(
            "nomic_bert: d 48, 4 × 12, Post, rotary 12 base 10000, DEDE; \
             5 experts × 40, {rule}, shared bias, stacked, × 1"
        )
    };
    let bert = "bert: d 36, 3 × 12, Post, learned 48 from 0, DD";
    let roberta = "roberta: d 36, 3 × 12, Post, learned 50 from 2, DD";
    let expected = [
        ("bert_classify", bert.to_owned()),
        ("bert_cls", bert.to_owned()),
        ("bert_last", bert.to_owned()),
        ("bert_multi_label", bert.to_owned()),
        (
            "nllb_moe",
            "nllb-moe: d 32, 4 × 8, Pre, sines 64 from 2, DEDE; \
             5 experts × 52, top 2 normalized, own biases, × 0.8"
                .to_owned(),
        ),
        (
            "nomic_dense",
            "nomic_bert: d 48, 4 × 12, Post, rotary 12 base 1000, GGGG".to_owned(),
        ),
        ("nomic_moe", nomic("top 2")),
        ("nomic_moe_classify", nomic("top 2")),
        ("nomic_moe_normalized", nomic("top 2 normalized")),
        ("nomic_moe_top1", nomic("top 1")),
        ("switch", switch.to_owned()),
        ("switch_bin", switch.to_owned()),
        ("xlm_roberta", roberta.to_owned()),
        ("xlm_roberta_classify", roberta.to_owned()),
    ];
    let found: Vec<(String, String)> = goldens()
        .iter()
        .map(|dir| {
            let model = Model::open(dir).unwrap_or_else(|error| panic!("{error}"));
            (
                dir.file_name().unwrap().to_string_lossy().into_owned(),
                facts(&model.spec),
            )
        })
        .collect();
    let expected: Vec<(String, String)> = expected
        .into_iter()
        .map(|(name, facts)| (name.to_owned(), facts))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_spec_names_every_tensor_of_its_encoder_and_no_other() {
    // Tensors in these goldens that no encoder needs.
    let others = [
        "position_ids",
        "pooler.dense",
        "decoder",
        "lm_head",
        "embed_tokens",
    ];
    for dir in goldens() {
        let model = Model::open(&dir).unwrap();
        let tensors = model.spec.tensors();
        for tensor in &tensors {
            let info = model.checkpoint.info(&tensor.name);
            assert_eq!(
                info.map(|info| &info.shape),
                Some(&tensor.shape),
                "{}",
                tensor.name
            );
        }
        let is_named = |name: &&str| tensors.iter().any(|tensor| tensor.name == **name);
        let is_other = |name: &&str| others.iter().any(|other| name.contains(other));
        let unused: Vec<&str> = model
            .checkpoint
            .names()
            .filter(|name| !is_named(name) && !is_other(name))
            .collect();
        assert_eq!(unused, Vec::<&str>::new(), "{}", dir.display());
    }
}

#[test]
fn details_that_the_line_of_facts_leaves_out() {
    let open = |name| Model::open(&golden(name)).unwrap().spec;
    let switch = open("switch");
    assert_eq!((switch.attention.scale, switch.max_positions), (1.0, None));
    assert!(switch.final_norm.is_some() && switch.embedding.norm.is_none());
    let nllb = open("nllb_moe");
    assert!((nllb.embedding.scale - 32_f32.sqrt()).abs() < 1e-6);
    assert_eq!(nllb.max_positions, Some(64));
    let nomic = open("nomic_dense");
    assert_eq!(
        nomic.embedding.token_type.as_ref().map(|(_, n)| *n),
        Some(2)
    );
    assert!(nomic.layers[0].qkv.biases.is_empty() && nomic.final_norm.is_none());
    let FfnSpec::Dense(ffn) = &nomic.layers[0].ffn else {
        panic!("dense")
    };
    assert_eq!(ffn.activation, Activation::Silu);
    assert!(ffn.up.weights[0].tensor.name.ends_with("fc11.weight"));
    assert_eq!(open("xlm_roberta").max_positions, Some(48));
    let moe = open("nomic_moe");
    let (_, experts) = moe.expert_layers().next().unwrap();
    assert_eq!(experts.experts[3].w_out.tensor.rows, Some(120..160));
    assert_eq!(experts.activation, Activation::Gelu);
}

#[test]
fn heads_and_settings_of_goldens() {
    use moeshard_encoder::spec::ProblemType::{MultiLabel, SingleLabel};
    let cases = [
        (
            "bert_classify",
            vec!["negative", "neutral", "positive"],
            SingleLabel,
        ),
        (
            "bert_multi_label",
            vec!["sport", "politics", "art", "science", "weather"],
            MultiLabel,
        ),
        (
            "xlm_roberta_classify",
            vec!["a", "b", "c", "d"],
            SingleLabel,
        ),
        (
            "nomic_moe_classify",
            vec!["negative", "neutral", "positive"],
            SingleLabel,
        ),
    ];
    for (name, labels, problem_type) in cases {
        let model = Model::open(&golden(name)).unwrap();
        let head = model.spec.head.expect(name);
        assert_eq!(head.labels, labels, "{name}");
        assert_eq!(
            (head.problem_type, head.pooling),
            (problem_type, Some(Pooling::Cls))
        );
        assert!(
            head.dense
                .is_some_and(|(_, activation)| activation == Activation::Tanh)
        );
        assert!(model.settings.classifier);
    }
    let cases = [
        ("bert_cls", Pooling::Cls, 48, DType::F32),
        ("bert_last", Pooling::LastToken, 48, DType::F32),
        ("switch", Pooling::Mean, 150, DType::F32),
        ("nomic_moe_top1", Pooling::Mean, 64, DType::BF16),
        ("xlm_roberta_classify", Pooling::Mean, 48, DType::F32),
    ];
    for (name, pooling, max_length, dtype) in cases {
        let settings = Model::open(&golden(name)).unwrap().settings;
        let found = (
            settings.pooling,
            settings.max_length,
            settings.weights_dtype,
        );
        assert_eq!(found, (pooling, max_length, dtype), "{name}");
    }
}

#[test]
fn the_built_in_model_embeds_and_has_a_plain_head_beside() {
    let model = Model::open(&repository().join("models/mini")).unwrap();
    let head = model.spec.head.expect("a head");
    assert_eq!(
        (head.pooling, head.labels.len(), head.dense),
        (None, 77, None)
    );
    assert!(!model.settings.classifier && model.tokenizer_json.is_some());
    assert_eq!(model.settings.max_length, 256);
}

/// The error of a golden whose config has some keys changed.
fn error_of(name: &str, changes: Value) -> String {
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
        let error = error_of(name, changes);
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
        let error = error_of(name, changes);
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
fn a_head_without_labels_numbers_them_and_one_score_gets_a_sigmoid() {
    use moeshard_encoder::spec::ProblemType::{MultiLabel, Regression, SingleLabel};
    let checkpoint = Checkpoint::open(&golden("bert_classify")).unwrap();
    let mut config = config_of(&golden("bert_classify"));
    config["id2label"] = json!({"1": "one"});
    config["problem_type"] = Value::Null;
    let head = translate(&config, &checkpoint).unwrap().head.unwrap();
    assert_eq!(head.labels, ["LABEL_0", "one", "LABEL_2"]);
    assert_eq!(head.problem_type, SingleLabel);
    config["problem_type"] = json!("regression");
    assert_eq!(
        translate(&config, &checkpoint)
            .unwrap()
            .head
            .unwrap()
            .problem_type,
        Regression
    );
    // Beside a bare model the same matrix is applied to the model's own pooling.
    config["architectures"] = json!(["BertModel"]);
    let head = translate(&config, &checkpoint).unwrap().head.unwrap();
    assert_eq!((head.pooling, head.dense), (None, None));
    config["architectures"] = json!(["BertForTokenClassification"]);
    assert_eq!(translate(&config, &checkpoint).unwrap().head, None);
    let _ = MultiLabel;
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
