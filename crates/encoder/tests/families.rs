//! Families: every golden translates into a spec whose tensors exist, and no config crashes.

#[path = "families/bad_configs.rs"]
mod bad_configs;
#[path = "families/names.rs"]
mod names;
#[path = "families/settings.rs"]
mod settings;

use std::path::{Path, PathBuf};

use moeshard_encoder::families::translate;
use moeshard_encoder::model::Model;
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

#[test]
fn a_head_numbers_labels_without_names_and_stands_beside_a_bare_model() {
    use moeshard_encoder::spec::ProblemType::{Regression, SingleLabel};
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
}
