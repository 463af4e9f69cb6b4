//! `moeshard train`: what it writes, that it goes on after it was killed, and what it refuses.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use moeshard_decentralized::record::read_runs;
use tempfile::TempDir;

use crate::mnist;
use crate::support::{fails, program, said, shown, succeeds, text};

/// A folder of data, and one for results.
fn folders() -> (TempDir, TempDir) {
    let data = TempDir::new().expect("a folder");
    mnist::write(data.path());
    (data, TempDir::new().expect("a folder"))
}

/// Flags of a short run on 8 nodes.
fn flags<'a>(data: &'a TempDir, out: &'a TempDir, more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec![
        "train",
        "--data",
        text(data.path()),
        "--out",
        text(out.path()),
    ];
    flags.extend(["--batch-size", "16", "--threads", "2"]);
    if !more.contains(&"--nodes") {
        flags.extend(["--nodes", "8"]);
    }
    flags.extend(more);
    flags
}

#[test]
fn topologies_are_trained_on_and_reported() {
    let (data, out) = folders();
    let more = [
        "--topology",
        "complete",
        "--topology",
        "ring",
        "--epochs",
        "4",
    ];
    let output = succeeds(&flags(&data, &out, &more));
    let shown = shown(&output);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 2, "{shown}");
    assert!(
        lines[0].starts_with("complete: ") && lines[1].starts_with("ring: "),
        "{shown}"
    );
    for topology in ["complete", "ring"] {
        let folder = out.path().join(topology);
        let runs = read_runs(&folder.join("metrics.jsonl")).expect("metrics");
        let [run] = &runs[..] else {
            panic!("{} runs", runs.len());
        };
        let epochs: Vec<f64> = run.evaluations.iter().map(|e| e.epoch).collect();
        assert_eq!(epochs, [0.0, 1.0, 2.0, 3.0, 4.0]);
        // Two shards of sixty make up a node's half-dozen batches.
        assert_eq!(run.evaluations[1].round, 5);
        let degree = if topology == "ring" { 2 } else { 7 };
        assert_eq!(run.evaluations[1].messages, 5 * 8 * degree);
        assert_eq!(run.evaluations[1].bytes_sent, 5 * 8 * degree * 4 * 7850);
        assert!(
            run.evaluations[4].accuracy.mean > 0.8,
            "{:?}",
            run.evaluations[4]
        );
        assert!(run.end.is_some() && folder.join("topology.json").is_file());
    }
    let report = fs::read_to_string(out.path().join("report.html")).expect("a report");
    assert!(report.contains("<svg") && report.contains("complete"));
}

#[test]
fn a_killed_run_goes_on_as_if_nothing_had_happened() {
    let (data, whole) = folders();
    let more = [
        "--topology",
        "random:d=3",
        "--momentum",
        "0.9",
        "--epochs",
        "30",
    ];
    succeeds(&flags(&data, &whole, &more));
    let killed = TempDir::new().expect("a folder");
    let arguments = flags(&data, &killed, &more);
    let mut child = program(&arguments)
        .stderr(Stdio::null())
        .spawn()
        .expect("the program");
    let checkpoint = killed.path().join("random-d-3/checkpoint.safetensors");
    let started = Instant::now();
    while !checkpoint.exists() && started.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    let resumed = succeeds(&[&arguments[..], &["--resume"]].concat());
    assert!(
        said(&resumed).contains("going on after round"),
        "{}",
        said(&resumed)
    );
    let result = |out: &TempDir| {
        let folder = out.path().join("random-d-3");
        let state = fs::read(folder.join("checkpoint.safetensors")).expect("a checkpoint");
        (state, without_times(&folder.join("metrics.jsonl")))
    };
    assert!(result(&whole) == result(&killed));
}

/// Evaluations of a metrics file but for the times in them.
fn without_times(path: &Path) -> String {
    let mut runs = read_runs(path).expect("metrics");
    for evaluation in &mut runs[0].evaluations {
        (evaluation.train_s, evaluation.eval_s) = (0.0, 0.0);
    }
    format!("{:?}", runs[0].evaluations)
}

#[test]
fn a_file_configures_a_run_and_flags_win() {
    let (data, out) = folders();
    let file = out.path().join("run.toml");
    let write = |config: &str| fs::write(&file, config).expect("written");
    write(&format!(
        "data = '{}'\nnodes = 6\nepochs = 50\ntopology = ['ring', 'complete']\nclique-averaging = false\n",
        text(data.path())
    ));
    let arguments = [
        "train",
        "--config",
        text(&file),
        "--out",
        text(out.path()),
        "--epochs",
        "1",
    ];
    let shown = shown(&succeeds(&arguments));
    assert_eq!(shown.matches("1 epochs").count(), 2, "{shown}");
    let check = |config: &str, expect: &str| {
        write(config);
        let output = program(&arguments).output().expect("the program");
        let said = said(&output);
        assert!(!output.status.success() && said.contains(expect), "{said}");
        assert!(
            said.contains("run.toml") && said.lines().count() == 1,
            "{said}"
        );
    };
    check(
        "epoch = 3",
        "`epoch` is no flag of train; did you mean `epochs`?",
    );
    check("nodes = 'many'", "invalid value 'many' for '--nodes <N>'");
    check("nodes = {}", "`nodes` is a table, expected a value");
    check("nodes = ", "line 1 is no TOML");
    fs::remove_file(&file).expect("removed");
    let output = program(&arguments).output().expect("the program");
    assert!(said(&output).contains("cannot read"), "{}", said(&output));
}

#[test]
fn what_cannot_be_trained_is_refused_in_a_sentence() {
    let (data, out) = folders();
    let check = |more: &[&str], expect: &str| fails(&flags(&data, &out, more), expect);
    check(&["--nodes", "0"], "--nodes must be at least 1, got 0");
    check(&["--topology", "star"], "star");
    check(
        &["--topology", "stl-fw:d=0"],
        "d is 0, expected at least 1 and less than the 8 nodes",
    );
    check(
        &["--topology", "stl-fw:d=8"],
        "d is 8, expected at least 1 and less than the 8 nodes",
    );
    check(
        &["--topology", "random:d=1"],
        "random:d=1 falls into 4 components",
    );
    check(&["--partition", "shards:k=0"], "k is 0");
    check(
        &["--partition", "shards:k=1000"],
        "k is 1000, expected 1 to 75",
    );
    check(&["--partition", "halves"], "halves");
    check(&["--task", "mist"], "--task must be");
    check(&["--classifier", "forest"], "--classifier must be");
    check(
        &["--method", "sgd"],
        "--method must be d-sgd, gradient-tracking or d2, got `sgd`",
    );
    check(
        &["--method", "d2", "--topology", "exponential"],
        "d2 needs one symmetric mixing matrix",
    );
    check(
        &["--method", "d2", "--momentum", "0.9"],
        "--method d2 has neither momentum",
    );
    check(
        &["--topology", "ring", "--clique-averaging"],
        "expected a topology of cliques",
    );
    check(&["--learning-rate", "0"], "learning rate is 0");
    check(&["--repro", "z"], "--repro must be");
    succeeds(&flags(
        &data,
        &out,
        &[
            "--topology",
            "random:d=1",
            "--allow-disconnected",
            "--epochs",
            "1",
        ],
    ));
}

#[test]
fn files_of_data_that_are_broken_are_named() {
    let broken = |name: &str, change: fn(&mut Vec<u8>), expect: &str| {
        let (data, out) = folders();
        let path = data.path().join(name);
        let mut bytes = fs::read(&path).expect("a file");
        change(&mut bytes);
        fs::write(&path, bytes).expect("written");
        fails(&flags(&data, &out, &[]), name);
        fails(&flags(&data, &out, &[]), expect);
    };
    broken(
        "train-images-idx3-ubyte",
        |bytes| bytes.truncate(5000),
        "cut short: expected 470416 bytes, found 5000",
    );
    broken(
        "train-images-idx3-ubyte",
        |bytes| bytes[3] = 9,
        "expected IDX images beginning with 0x00000803, found 0x00000809",
    );
    broken("train-labels-idx1-ubyte", |bytes| bytes[100] = 10, "10");
    broken(
        "train-labels-idx1-ubyte",
        |bytes| bytes.truncate(8),
        "train-labels",
    );
    let (data, out) = folders();
    fs::remove_file(data.path().join("t10k-images-idx3-ubyte")).expect("removed");
    fails(&flags(&data, &out, &[]), "t10k-images-idx3-ubyte");
    fails(
        &["train", "--out", text(out.path())],
        "--task mnist needs the folder of its files",
    );
}

#[test]
fn a_program_without_mpi_does_not_do_the_work_of_a_job_several_times() {
    let (data, out) = folders();
    let arguments = flags(&data, &out, &[]);
    let output = program(&arguments)
        .env("OMPI_COMM_WORLD_SIZE", "4")
        .output()
        .expect("the program");
    if cfg!(feature = "mpi") {
        return;
    }
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("built without MPI"), "{said}");
}
