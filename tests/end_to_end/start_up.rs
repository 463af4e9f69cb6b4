//! What is wrong before a server serves is said in one sentence, and the program ends.

use std::net::TcpListener;

use moeshard_tests::model_dir::ModelDir;
use moeshard_tests::server::run;
use serde_json::json;

const W1: &str = "encoder.layers.1.mlp.experts.mlp.w1";

/// Asserts that `serve` with these arguments ends with an error that has every fragment.
#[track_caller]
fn assert_refused(args: &[&str], fragments: &[&str]) {
    let mut line = vec!["serve"];
    if !args.contains(&"--port") {
        line.extend(["--hostname", "127.0.0.1", "--port", "0"]);
    }
    line.extend(args);
    let ended = run(&line);
    let stderr = &ended.stderr;
    assert!(!ended.status.success(), "{args:?} was served:\n{stderr}");
    assert!(
        ended.status.code().is_some(),
        "{args:?} crashed: {}",
        ended.status
    );
    for word in ["panicked", "stack backtrace", "RUST_BACKTRACE"] {
        assert!(!stderr.contains(word), "{word}:\n{stderr}");
    }
    let sentence = stderr.lines().last().unwrap_or_default();
    assert!(sentence.len() < 600, "too long to be read: {sentence}");
    for fragment in fragments {
        assert!(
            sentence.contains(fragment),
            "no {fragment:?} in {sentence:?} of\n{stderr}"
        );
    }
}

#[track_caller]
fn assert_model_refused(model: &ModelDir, fragments: &[&str]) {
    let folder = model.path().to_str().expect("UTF-8");
    assert_refused(&["--model", folder], fragments);
}

#[test]
fn truncated_weights() {
    let model = ModelDir::of_golden("nomic_moe");
    let bytes = model.read("model.safetensors");
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        model.write("model.safetensors", &bytes[..length]);
        assert_model_refused(&model, &["model.safetensors", "expected", "found"]);
    }
}

#[test]
fn a_header_that_lies() {
    let lie = |length: u64, fragment: &str| {
        let model = ModelDir::of_golden("nomic_moe");
        let mut bytes = model.read("model.safetensors");
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        model.write("model.safetensors", &bytes);
        assert_model_refused(&model, &["model.safetensors", "expected", fragment]);
    };
    lie(u64::MAX, &u64::MAX.to_string());
    lie(10_000_000, "10000000");
    lie(2, "found");

    let model = ModelDir::of_golden("nomic_moe");
    model.edit_header(|header| header[W1]["data_offsets"] = json!([0, 1_u64 << 40]));
    assert_model_refused(
        &model,
        &["model.safetensors", W1, "expected", "1099511627776"],
    );

    let model = ModelDir::of_golden("nomic_moe");
    model.edit_header(|header| header[W1]["dtype"] = json!("F16"));
    assert_model_refused(&model, &["model.safetensors", W1, "expected", "found"]);
}

#[test]
fn shapes_that_overflow() {
    for shape in [json!([u64::MAX, 48]), json!([1_u64 << 33, 1_u64 << 33])] {
        let model = ModelDir::of_golden("nomic_moe");
        model.edit_header(|header| header[W1]["shape"] = shape);
        assert_model_refused(&model, &["model.safetensors", W1, "expected", "found"]);
    }
}

#[test]
fn weights_that_are_no_numbers() {
    let tensors = [
        W1,
        "encoder.layers.3.mlp.experts.mlp.w2",
        "encoder.layers.0.attn.Wqkv.weight",
        "encoder.layers.1.mlp.router.layer.weight",
        "embeddings.word_embeddings.weight",
        "emb_ln.weight",
    ];
    for tensor in tensors {
        for value in [f32::NAN, f32::INFINITY] {
            let model = ModelDir::of_golden("nomic_moe");
            model.poke(tensor, 5, value);
            assert_model_refused(&model, &[tensor, "NaN"]);
        }
    }
}

#[test]
fn a_tensor_that_is_missing_or_misshapen() {
    let model = ModelDir::of_golden("nomic_moe");
    model.edit_header(|header| {
        let entry = header.remove(W1).expect("the tensor");
        header.insert("something.else".to_owned(), entry);
    });
    assert_model_refused(&model, &["model.safetensors", W1, "expected", "found none"]);

    let model = ModelDir::of_golden("nomic_moe");
    model.edit_header(|header| header[W1]["shape"] = json!([48, 200]));
    assert_model_refused(&model, &["model.safetensors", W1, "[200, 48]", "[48, 200]"]);
}

#[test]
fn a_config_that_cannot_be() {
    let wrong = |key: &str, value, fragments: &[&str]| {
        let model = ModelDir::of_golden("nomic_moe");
        model.configure(key, value);
        assert_model_refused(&model, &[&["config.json", key], fragments].concat());
    };
    wrong("n_head", json!(5), &["48", "5"]);
    wrong("n_head", json!(0), &["0"]);
    wrong("n_layer", json!("four"), &["four"]);
    wrong("moe_top_k", json!(6), &["5", "6"]);
    let known = [
        "gpt2",
        "nomic_bert",
        "switch_transformers",
        "nllb-moe",
        "bert",
        "xlm-roberta",
    ];
    wrong("model_type", json!("gpt2"), &known);

    let model = ModelDir::of_golden("nomic_moe");
    model.configure("n_inner", json!(41));
    assert_model_refused(&model, &["model.safetensors", "expected", "41", "40"]);
}

#[test]
fn files_that_are_missing_or_no_json() {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let model = ModelDir::of_golden("nomic_moe");
        std::fs::remove_file(model.path().join(name)).expect("the file");
        assert_model_refused(&model, &[name]);
    }
    for name in ["config.json", "tokenizer.json", "modules.json"] {
        let model = ModelDir::of_golden("nomic_moe");
        model.write(name, b"{\"a\": [");
        assert_model_refused(&model, &[name]);
    }
    assert_refused(&["--model", "/no/such/folder"], &["/no/such/folder"]);
}

#[test]
fn a_port_in_use() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener
        .local_addr()
        .expect("its address")
        .port()
        .to_string();
    assert_refused(
        &["--hostname", "127.0.0.1", "--port", &port],
        &[&port, "in use"],
    );
}

#[test]
fn arguments_that_cannot_be() {
    assert_refused(&["--ranks", "0"], &["--ranks", "0"]);
    assert_refused(&["--experts", "magic"], &["magic", "sharded"]);
    assert_refused(&["--max-batch-tokens", "0"], &["--max-batch-tokens", "0"]);
    assert_refused(&["--device", "abacus"], &["abacus", "cpu"]);
}

#[test]
fn gpus_where_there_are_none() {
    if std::path::Path::new("/dev/nvidia0").exists() {
        println!("skipped: this machine has a GPU");
        return;
    }
    for args in [["--gpus", "1"], ["--device", "cuda"]] {
        assert_refused(&args, &["no CUDA driver", "libcuda.so", "--device cpu"]);
    }
}
