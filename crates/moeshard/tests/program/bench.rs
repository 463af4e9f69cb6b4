//! `moeshard bench` from outside.

use serde_json::Value;

use crate::support::{fails, golden, shown, succeeds, text};

#[test]
fn the_built_in_model_is_benched_as_json() {
    let shown = shown(&succeeds(&[
        "bench", "--shape", "2x16,1x3", "--rounds", "2", "--json",
    ]));
    let report: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(report["model"], "moeshard-mini");
    let peak = report["peak"]["weights_gflop_per_s"].as_f64();
    assert!(peak.is_some_and(|peak| peak > 0.1), "{shown}");
    let shapes = report["shapes"].as_array().expect("shapes");
    assert_eq!(shapes.len(), 2);
    for (shape, n_tokens) in shapes.iter().zip([32.0, 3.0]) {
        assert_eq!(shape["n_rounds"], 2);
        let number = |key: &str| shape[key].as_f64().expect(key);
        let tokens = number("tokens_per_s") * number("forward_ms") / 1e3;
        assert!((tokens / n_tokens - 1.0).abs() < 1e-6, "{shown}");
        let operations = shape["operations"].as_array().expect("operations");
        let names: Vec<_> = operations
            .iter()
            .map(|operation| operation["operation"].as_str().expect("a name"))
            .collect();
        for expect in [
            "embed",
            "linear ",
            "attention",
            "route ",
            "expert_ffn ",
            "pool",
        ] {
            let found = names.iter().any(|name| name.starts_with(expect));
            assert!(found, "no {expect} in {names:?}");
        }
    }
}

#[test]
fn tables_name_operations_and_peaks() {
    let path = golden("switch");
    let args = [
        "bench",
        "--model",
        text(&path),
        "--batch",
        "2",
        "--length",
        "9",
        "--rounds",
        "1",
    ];
    let shown = shown(&succeeds(&args));
    for expect in [
        "GB/s from memory",
        "2 × 9: ",
        "tokens/s",
        "expert_ffn 40→37→40",
        "rest",
    ] {
        assert!(shown.contains(expect), "{shown}");
    }
}

#[test]
fn impossible_benches_are_named() {
    let check = |args: &[&str], expect| fails(&[&["bench"], args].concat(), expect);
    check(&["--batch", "0"], "--batch must be at least 1, got 0");
    check(&["--length", "0"], "--length must be at least 1, got 0");
    check(&["--shape", "4x0"], "--shape must be at least 1, got 0");
    check(
        &["--shape", "99999x99999"],
        "must have at most 16777216 tokens",
    );
    check(&["--rounds", "0"], "--rounds must be at least 1, got 0");
    check(&["--seconds", "nan"], "--seconds must be above 0, got NaN");
    check(&["--ranks", "2"], "--ranks must be 1 here, got 2");
}
