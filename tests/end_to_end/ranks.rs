//! Ranks and strategies, seen from outside.

use moeshard_tests::model_dir::ModelDir;
use moeshard_tests::server::Server;
use serde_json::{Value, json};

use crate::numbers::{assert_close, by_rank, floats, metric};

/// Inputs of a golden with the embeddings that it expects.
fn golden_inputs(model: &ModelDir) -> (Vec<Value>, Vec<Vec<f32>>) {
    let golden = model.json("golden.json");
    let sequences = golden["sequences"].as_array().expect("sequences");
    let ids = sequences.iter().map(|sequence| sequence["ids"].clone());
    let embeddings = sequences
        .iter()
        .map(|sequence| floats(&sequence["mean_embedding"]));
    (ids.collect(), embeddings.collect())
}

#[test]
fn every_world_size_and_strategy_answers_the_golden() {
    let model = ModelDir::of_golden("nomic_moe");
    let (ids, expect) = golden_inputs(&model);
    assert!(ids.len() > 2);
    let embed = |ranks: &str, experts: &str| {
        let server = Server::of_model(model.path(), &["--ranks", ranks, "--experts", experts]);
        let info = server.client().get("/info").ok();
        assert_eq!(info["world_size"].to_string(), ranks);
        server
            .client()
            .post("/embed", json!({ "inputs": ids }))
            .rows()
    };
    let solo = embed("1", "auto");
    assert_close(&solo, &expect, 1e-4);
    for ranks in ["2", "3", "4"] {
        for experts in ["sharded", "parallel", "replicated"] {
            assert_close(&embed(ranks, experts), &solo, 1e-5);
        }
    }
    // More ranks than tiles of d_ff 40: some hold nothing of an expert.
    assert_close(&embed("7", "sharded"), &solo, 1e-5);
}

#[test]
fn emulated_gpus_answer_the_golden() {
    let model = ModelDir::of_golden("nomic_moe");
    let (ids, expect) = golden_inputs(&model);
    for ranks in ["1", "4"] {
        let server = Server::of_model(model.path(), &["--device", "emulated", "--ranks", ranks]);
        let info = server.client().get("/info").ok();
        assert_eq!(info["device"], "emulated");
        // Batches of about a size are launched one kernel after the other, then as a graph.
        for round in 0..3 {
            let answer = server.client().post("/embed", json!({ "inputs": ids }));
            assert_close(&answer.rows(), &expect, 1e-4);
            let alone = &ids[round..=round];
            let answer = server.client().post("/embed", json!({ "inputs": alone }));
            assert_close(&answer.rows(), &expect[round..=round], 1e-4);
        }
        let metrics = server.client().get("/metrics");
        let work = by_rank(&metrics, "moeshard_expert_multiply_adds_total");
        assert_eq!(work.len().to_string(), ranks);
        assert!(work.iter().all(|&n| n > 0.0), "{work:?}");
    }
}

#[test]
fn each_rank_holds_and_multiplies_its_share_of_every_expert() {
    let measure = |ranks: usize| {
        let server = Server::start(&["--ranks", &ranks.to_string(), "--experts", "sharded"]);
        let texts = ["hello", "I lost my card", "why was I charged a fee abroad?"];
        let answer = server.client().post("/embed", json!({ "inputs": texts }));
        assert_eq!(answer.rows().len(), 3);
        let metrics = server.client().get("/metrics");
        let bytes = by_rank(&metrics, "moeshard_expert_bytes");
        let work = by_rank(&metrics, "moeshard_expert_multiply_adds_total");
        assert_eq!((bytes.len(), work.len()), (ranks, ranks));
        (bytes, work)
    };
    let (whole_bytes, whole_work) = measure(1);
    assert!(whole_bytes[0] > 1e6 && whole_work[0] > 1e6);
    for ranks in [2, 3, 4] {
        let (bytes, work) = measure(ranks);
        assert_shares(&bytes, whole_bytes[0]);
        assert_shares(&work, whole_work[0]);
    }
}

/// Asserts that ranks share `whole` evenly, up to one tile of 16 of the expert's 320 hidden units.
#[track_caller]
fn assert_shares(parts: &[f64], whole: f64) {
    const TILE: f64 = 16.0 / 320.0;
    let sum: f64 = parts.iter().sum();
    assert!(
        (sum / whole - 1.0).abs() < 0.01,
        "{parts:?} sum to {sum}, not {whole}"
    );
    for part in parts {
        let excess = part / whole - 1.0 / parts.len() as f64;
        assert!(
            excess.abs() <= TILE,
            "{part} of {whole} over {} ranks",
            parts.len()
        );
    }
}

#[test]
fn a_capacity_drops_tokens_and_counts_them() {
    let args = [
        "--ranks",
        "2",
        "--experts",
        "capacity",
        "--capacity-factor",
        "0.5",
    ];
    let server = Server::start(&args);
    let client = server.client();
    let text = "my card has not arrived and I would like to know why ".repeat(8);
    let dropped = client.post("/embed", json!({ "inputs": text })).rows();
    let count = metric(
        &client.get("/metrics").text(),
        "moeshard_dropped_tokens_total",
    );
    assert!(count.is_some_and(|n| n > 0.0), "{count:?}");

    let server = Server::start(&["--ranks", "2", "--experts", "sharded"]);
    let client = server.client();
    let whole = client.post("/embed", json!({ "inputs": text })).rows();
    let count = metric(
        &client.get("/metrics").text(),
        "moeshard_dropped_tokens_total",
    );
    assert_eq!(count, Some(0.0));
    assert_ne!(dropped, whole, "dropping changes the answer");
}
