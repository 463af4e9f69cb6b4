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
    let end = child.wait().expect("gone");
    assert!(
        end.code().is_none(),
        "the run was over before it was killed: {end}"
    );
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

#[test]
fn only_the_same_run_goes_on() {
    let (data, out) = folders();
    let ring = out.path().join("a.json");
    let build = |topology| {
        let line = ["topology", "build", "--nodes", "8", "--topology", topology];
        succeeds(&[&line[..], &["--out", text(&ring)]].concat());
    };
    build("ring");
    let topology = format!("file:{}", text(&ring));
    let with = |more: &[&'static str]| {
        let more = [&["--topology", &topology][..], more].concat();
        flags(&data, &out, &more)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let run = |more: &[&'static str]| {
        let line = with(more);
        succeeds(&line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = |more: &[&'static str], expect: &str| {
        let line = with(more);
        fails(&line.iter().map(String::as_str).collect::<Vec<_>>(), expect);
    };
    run(&["--epochs", "2"]);
    refused(
        &["--epochs", "4", "--seed", "2", "--resume"],
        "seed 1, expected seed 2",
    );
    refused(
        &["--epochs", "1", "--resume"],
        "--epochs 1 is less than the 2 that the checkpoint has",
    );
    run(&["--epochs", "3", "--resume"]);
    // The file has another graph now.
    build("complete");
    refused(
        &["--epochs", "4", "--resume"],
        "is of another run: mixing matrices",
    );
    // What a run does not go on from is forgotten.
    run(&["--epochs", "1"]);
}

#[test]
fn absent_nodes_are_reported() {
    let (data, out) = folders();
    let more = [
        "--topology",
        "exponential",
        "--straggle",
        "0.4",
        "--epochs",
        "3",
    ];
    let output = succeeds(&flags(&data, &out, &more));
    assert!(
        shown(&output).contains("columns of W off by 0."),
        "{}",
        shown(&output)
    );
    let runs = read_runs(&out.path().join("exponential/metrics.jsonl")).expect("metrics");
    let bias = runs[0]
        .evaluations
        .last()
        .and_then(|last| last.absence_bias);
    assert!(bias.is_some_and(|bias| bias > 0.01), "{bias:?}");
    assert!(
        runs[0].header.algorithm.contains("straggle 0.4"),
        "{}",
        runs[0].header.algorithm
    );
    let report = fs::read_to_string(out.path().join("report.html")).expect("a report");
    assert!(report.contains("Absence bias"));
}

#[test]
fn lists_in_a_file_are_for_flags_that_take_some() {
    let (data, out) = folders();
    let check = |line: &str, expect: &str| {
        let file = out.path().join("a.toml");
        fs::write(&file, line).expect("written");
        fails(&flags(&data, &out, &["--config", text(&file)]), expect);
    };
    check(
        "topology = []",
        "`topology` is a list of 0, expected at least one",
    );
    check("seed = [1, 2]", "`seed` is a list of 2, expected one value");
    check(
        "partition = []",
        "`partition` is a list of 0, expected one value",
    );
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
fn nodes_and_data_that_cannot_be_trained_on_are_refused_in_a_sentence() {
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
fn methods_and_numbers_that_do_not_fit_are_refused_in_a_sentence() {
    let (data, out) = folders();
    let check = |more: &[&str], expect: &str| fails(&flags(&data, &out, more), expect);
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
        &["--method", "d2", "--topology", "ring"],
        "above -1/3, and ring has a smallest eigenvalue of -0.333",
    );
    // Said before the first of them is trained.
    let two = ["--topology", "d-cliques:size=4", "--topology", "ring"];
    check(
        &[&two[..], &["--clique-averaging"]].concat(),
        "clique averaging needs every node in one clique, and ring has no cliques",
    );
    check(
        &["--topology", "ring", "--topology", "ring"],
        "--topology ring and ring would both be written to ring",
    );
    check(
        &["--learning-rate", "0"],
        "--learning-rate must be a positive number, got 0",
    );
    check(&["--come-back", "2"], "--come-back must be a probability");
    check(
        &["--epochs", "9223372036854775808"],
        "--epochs must be fewer, got 9223372036854775808",
    );
    check(&["--model", "/no/such"], "--model");
    check(
        &["--model", "a/b"],
        "--model a/b has no effect without a task of texts; got --task mnist",
    );
    check(&["--ranks", "0"], "--ranks must be at least 1, got 0");
    check(&["--repro", "z"], "--repro must be");
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
    broken(
        "train-labels-idx1-ubyte",
        |bytes| bytes[100] = 10,
        "label 10",
    );
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
