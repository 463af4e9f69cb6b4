//! The program on an emulated GPU: everything but the numbers.

use std::process::Command;

fn program(args: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-check"));
    let output = command.args(args).output().expect("the program");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn benchmarks_run_and_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("a path");
    let (is_well, shown, said) = program(&["--emulated", "--no-conformance", "--out", out]);
    assert!(is_well, "{said}");
    let read = |name| std::fs::read_to_string(folder.path().join(name)).expect("a report");
    assert_eq!(shown, read("gpu-check.md"));
    let report: serde_json::Value = serde_json::from_str(&read("gpu-check.json")).expect("JSON");
    assert_eq!(report["device"], "emulated");
    let rows = report["rows"].as_array().expect("rows");
    for name in [
        "experts, E = 4, uniform",
        "experts, E = 4, skewed, one of 4 ranks",
        "dense, 16 → 32",
        "Switch, 2 × 3 tokens",
        "nomic, 2 × 3 tokens",
        "nomic, 2 × 3 tokens, 1 rank",
        "nomic, 2 × 3 tokens, 4 ranks on one GPU",
        "nomic, 2 × 3 tokens, 4 ranks on one GPU, its exchanges alone",
        "nomic, 2 × 3 tokens, 4 ranks on one GPU, in two halves",
        "gathering, 2 ranks on one GPU",
    ] {
        let is_there = |row: &serde_json::Value| {
            row["name"] == name && row["ms"].as_f64().is_some_and(|ms| ms > 0.0)
        };
        assert!(rows.iter().any(is_there), "{name}: {shown}");
    }
    let suites = report["suites"].as_array().expect("suites");
    assert_eq!(suites.len(), 3, "{shown}");
}

#[test]
fn dense_layers_run_on_the_library_that_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("a path");
    let (is_well, shown, said) = program(&[
        "--emulated",
        "--no-conformance",
        "--cuda-libs",
        "anywhere",
        "--out",
        out,
    ]);
    assert!(is_well, "{said}");
    let heading = "## emulated, compute capability 8.0, dense layers on cuBLASLt 130000\n";
    assert!(shown.starts_with(heading), "{shown}");
    for place in ["1 rank, NCCL", "2 GPUs, NCCL", "2 GPUs, memory"] {
        let suite = format!("{place}, cosines to one rank: ");
        assert!(shown.contains(&suite), "{shown}");
    }
}

#[test]
fn without_a_gpu_it_says_what_is_missing() {
    if std::path::Path::new("/dev/nvidia0").exists() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let (is_well, _, said) = program(&[]);
    assert!(!is_well);
    assert_eq!(said.lines().count(), 1, "{said}");
    let names = |what: &str| said.contains(what);
    assert!(
        names("libcuda.so") || names("without CUDA kernels"),
        "{said}"
    );
}
