//! What every route answers.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use moeshard_tests::model_dir::ModelDir;
use moeshard_tests::server::Server;
use serde_json::{Value, json};

use crate::numbers::{assert_close, assert_unit, floats, norm};

/// What the built-in model's recipe computed for it, in f32.
fn expected() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/mini/expected.json");
    let text = std::fs::read_to_string(path).expect(path);
    serde_json::from_str(&text).expect("a list of texts")
}

#[test]
fn the_built_in_model_answers_what_its_recipe_computed() {
    let server = Server::start(&["--dtype", "f32"]);
    let expected = expected();
    assert!(expected.len() > 5);
    let embeddings: Vec<Vec<f32>> = expected.iter().map(|e| floats(&e["embedding"])).collect();

    let ids: Vec<&Value> = expected.iter().map(|e| &e["token_ids"]).collect();
    let rows = server.client().post("/embed", json!({ "inputs": ids }));
    assert_close(&rows.rows(), &embeddings, 1e-4);

    // An empty text is refused, so those are compared by their ids alone.
    for (e, embedding) in expected.iter().zip(&embeddings) {
        if e["text"]
            .as_str()
            .is_some_and(|text| !text.trim().is_empty())
        {
            let row = server
                .client()
                .post("/embed", json!({ "inputs": e["text"] }));
            assert_close(&row.rows(), std::slice::from_ref(embedding), 1e-4);
        }
    }
}

#[test]
fn the_built_in_model_classifies_as_its_recipe_did() {
    let server = Server::start(&["--dtype", "f32"]);
    for e in expected() {
        let body = json!({ "inputs": [e["token_ids"]], "top_k": 3 });
        let scores = server.client().post("/classify", body).ok();
        for (rank, top) in e["top3"]
            .as_array()
            .expect("three labels")
            .iter()
            .enumerate()
        {
            let got = &scores[0][rank];
            assert_eq!(got["label"], top["label"], "{}", e["text"]);
            let (a, b) = (got["score"].as_f64(), top["probability"].as_f64());
            let difference = (a.expect("a score") - b.expect("a probability")).abs();
            assert!(difference < 1e-3, "{}: {a:?} and {b:?}", e["text"]);
        }
    }
}

#[test]
fn embed_takes_one_several_and_ids() {
    let server = Server::start(&[]);
    let client = server.client();
    let embed = |inputs: Value| client.post("/embed", json!({ "inputs": inputs })).rows();

    let one = embed(json!("hello"));
    let both = embed(json!(["hello", "I lost my card"]));
    assert_eq!((one.len(), both.len()), (1, 2));
    assert_close(&one, &both[..1], 1e-5);
    both.iter().for_each(|row| assert_unit(row));
    assert!(norm(&both[0]) > 0.0 && both[0] != both[1]);

    let pieces = client.post("/tokenize", json!({ "inputs": "hello" })).ok();
    let ids: Vec<&Value> = pieces[0]
        .as_array()
        .expect("pieces")
        .iter()
        .map(|p| &p["id"])
        .collect();
    assert_close(&embed(json!(ids)), &one, 1e-6);
    assert_close(&embed(json!([ids, "I lost my card"])), &both, 1e-5);
}

#[test]
fn embeddings_are_cut_and_scaled_as_asked() {
    let server = Server::start(&[]);
    let embed = |more: Value| {
        let mut body = json!({ "inputs": "I lost my card" });
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().expect("one"));
        server.client().post("/embed", body).rows().remove(0)
    };
    let whole = embed(json!({}));
    let raw = embed(json!({ "normalize": false }));
    let length = norm(&raw);
    assert!(
        (length - 1.0).abs() > 1e-3,
        "length {length} without normalising"
    );
    let scaled: Vec<f32> = raw.iter().map(|value| value / length).collect();
    assert_close(&[scaled], std::slice::from_ref(&whole), 1e-5);

    let cut = embed(json!({ "dimensions": 8 }));
    assert_unit(&cut);
    let length = norm(&whole[..8]);
    let expect: Vec<f32> = whole[..8].iter().map(|value| value / length).collect();
    assert_close(&[cut], &[expect], 1e-5);
}

#[test]
fn openai_embeddings_agree_in_both_formats() {
    let server = Server::start(&[]);
    let client = server.client();
    let texts = json!(["hello", "I lost my card"]);
    let ask = |format: &str| {
        let body = json!({ "input": texts, "model": "any", "encoding_format": format });
        client.post("/v1/embeddings", body).ok()
    };
    let (float, base64) = (ask("float"), ask("base64"));
    assert_eq!(float["object"], "list");
    let rows = client.post("/embed", json!({ "inputs": texts })).rows();
    for (idx, row) in rows.iter().enumerate() {
        assert_eq!(float["data"][idx]["index"], idx);
        assert_eq!(float["data"][idx]["object"], "embedding");
        let text = base64["data"][idx]["embedding"].as_str().expect("a string");
        let bytes = BASE64_STANDARD.decode(text).expect("Base64");
        let (values, rest) = bytes.as_chunks::<4>();
        let values: Vec<f32> = values
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect();
        assert_eq!((values.len(), rest.len()), (row.len(), 0));
        let floats = floats(&float["data"][idx]["embedding"]);
        assert_close(&[floats], std::slice::from_ref(&values), 1e-6);
        assert_close(&[values], std::slice::from_ref(row), 1e-5);
    }
    let models = client.get("/v1/models").ok();
    assert_eq!(float["model"], models["data"][0]["id"]);
    assert_eq!(
        float["usage"]["prompt_tokens"],
        float["usage"]["total_tokens"]
    );
    assert!(float["usage"]["total_tokens"].as_u64() > Some(4));
}

#[test]
fn classify_answers_all_labels_highest_first() {
    let server = Server::start(&[]);
    let client = server.client();
    let ask = |body: Value| client.post("/classify", body).ok();

    let one = ask(json!({ "inputs": "I lost my card" }));
    assert_eq!(
        one.as_array().map(Vec::len),
        Some(1),
        "a list of lists, also for one"
    );
    let scores: Vec<f64> = scores(&one[0]);
    assert_eq!(scores.len(), 77);
    assert!(scores.is_sorted_by(|a, b| a >= b));
    assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-4);
    assert_eq!(one[0][0]["label"], "lost_or_stolen_card");

    let top = ask(json!({ "inputs": ["I lost my card", "hello"], "top_k": 3 }));
    let lengths: Vec<usize> = lists(&top).iter().map(Vec::len).collect();
    assert_eq!(lengths, [3, 3]);
    assert_eq!(top[0][0]["label"], one[0][0]["label"]);

    let raw = ask(json!({ "inputs": "I lost my card", "raw_scores": true }));
    let raw = self::scores(&raw[0]);
    assert!(
        (raw.iter().sum::<f64>() - 1.0).abs() > 1e-2,
        "logits, not probabilities"
    );
    let sum: f64 = raw.iter().map(|logit| (logit - raw[0]).exp()).sum();
    assert!(
        (1.0 / sum - scores[0]).abs() < 1e-4,
        "softmax of the logits"
    );

    let flat = client
        .post("/predict", json!({ "inputs": "I lost my card" }))
        .ok();
    assert_eq!(flat[0]["label"], one[0][0]["label"]);
}

#[test]
fn the_root_does_the_models_own_task() {
    let server = Server::start(&[]);
    let body = json!({ "inputs": "hello" });
    let root = server.client().post("/", body.clone()).rows();
    assert_close(
        &root,
        &server.client().post("/embed", body.clone()).rows(),
        1e-6,
    );

    let model = ModelDir::of_golden("nomic_moe_classify");
    let server = Server::of_model(model.path(), &[]);
    let labels = server.client().post("/", body).ok();
    let names: Vec<String> = by_label(&labels[0]).into_keys().collect();
    assert_eq!(names, ["negative", "neutral", "positive"]);
}

#[test]
fn a_classifier_answers_its_golden() {
    let model = ModelDir::of_golden("nomic_moe_classify");
    let golden = model.json("golden.json");
    let server = Server::of_model(model.path(), &["--dtype", "f32"]);
    for sequence in golden["sequences"].as_array().expect("sequences") {
        let body = json!({ "inputs": [sequence["ids"]] });
        let got = by_label(&server.client().post("/classify", body).ok()[0]);
        let probabilities = floats(&sequence["probabilities"]);
        let labels = golden["labels"].as_array().expect("labels");
        assert_eq!((got.len(), labels.len()), (3, 3));
        for (label, expect) in labels.iter().zip(probabilities) {
            let score = got[label.as_str().expect("a name")];
            assert!(
                (score - f64::from(expect)).abs() < 1e-4,
                "{label}: {score}, not {expect}"
            );
        }
    }
}

#[test]
fn requests_at_once_get_their_own_answers() {
    let server = Server::start(&["--dtype", "f32"]);
    let client = server.client();
    let text = |idx: usize| format!("transfer number {idx} is {}", "very ".repeat(idx % 7));
    let alone: Vec<Vec<f32>> = (0..24)
        .map(|idx| {
            client
                .post("/embed", json!({ "inputs": text(idx) }))
                .rows()
                .remove(0)
        })
        .collect();
    let threads: Vec<_> = (0..24)
        .map(|idx| {
            std::thread::spawn(move || client.post("/embed", json!({ "inputs": text(idx) })).rows())
        })
        .collect();
    for (thread, alone) in threads.into_iter().zip(alone) {
        assert_close(&thread.join().expect("an answer"), &[alone], 1e-5);
    }
}

#[test]
fn long_texts_are_cut_unless_forbidden() {
    let server = Server::start(&[]);
    let client = server.client();
    let long = "card ".repeat(2_000);
    let answer = client.post("/embed", json!({ "inputs": long }));
    assert_unit(&answer.rows()[0]);
    let limit = client.get("/info").ok()["max_input_length"]
        .as_u64()
        .expect("a number");
    assert_eq!(
        answer.header("x-compute-tokens"),
        Some(limit.to_string().as_str())
    );
    let refused = client.post("/embed", json!({ "inputs": long, "truncate": false }));
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(
        refused.text().contains(&limit.to_string()),
        "{}",
        refused.text()
    );
}

fn scores(list: &Value) -> Vec<f64> {
    let scores = list.as_array().expect("a list").iter();
    scores
        .map(|one| one["score"].as_f64().expect("a score"))
        .collect()
}

fn by_label(list: &Value) -> BTreeMap<String, f64> {
    let names = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| one["label"].as_str());
    let names = names.map(|name| name.expect("a label").to_owned());
    names.zip(scores(list)).collect()
}

fn lists(value: &Value) -> Vec<Vec<Value>> {
    serde_json::from_value(value.clone()).expect("a list of lists")
}
