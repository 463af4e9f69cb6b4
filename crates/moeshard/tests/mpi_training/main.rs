//! `mpirun -n P moeshard train …`: the same bits for any number of processes, and what becomes of a run
//! that loses one.

#[path = "../program/mnist.rs"]
mod mnist;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const METHODS: [&[&str]; 3] = [
    &[
        "--topology",
        "d-cliques:size=5",
        "--clique-averaging",
        "--momentum",
        "0.5",
    ],
    &[
        "--topology",
        "one-peer-exponential",
        "--method",
        "gradient-tracking",
    ],
    &[
        "--topology",
        "random:d=4",
        "--straggle",
        "0.2",
        "--leave",
        "0.1",
    ],
];

fn data() -> TempDir {
    let data = TempDir::new().expect("a folder");
    mnist::write(data.path());
    data
}

/// The program on `n_ranks` processes, or alone.
fn command(n_ranks: Option<usize>, data: &Path, out: &Path, more: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_moeshard");
    let mut command = match n_ranks {
        None => Command::new(program),
        Some(n_ranks) => {
            let mpirun = std::env::var_os("MOESHARD_MPIRUN").unwrap_or_else(|| "mpirun".into());
            let mut command = Command::new(mpirun);
            // A place of its own for `mpirun`'s files: jobs that start and end at the same time trip over each
            // other in a common one (Open MPI 4.1.4).
            command.env("TMPDIR", out);
            command.args(["--allow-run-as-root", "--oversubscribe", "-n"]);
            command.arg(n_ranks.to_string()).arg(program);
            command
        }
    };
    command.args([
        "train",
        "--nodes",
        "11",
        "--batch-size",
        "16",
        "--threads",
        "1",
    ]);
    command
        .arg("--data")
        .arg(data)
        .arg("--out")
        .arg(out)
        .args(more);
    command
}

fn succeeds(mut command: Command) {
    let output = command.output().expect("mpirun");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// The state of all nodes, and the metrics without times.
fn result(out: &Path) -> (Vec<u8>, String) {
    let folders = fs::read_dir(out).expect("results").flatten();
    let mut folders = folders
        .map(|entry| entry.path())
        .filter(|path| path.join("checkpoint.safetensors").is_file());
    let folder = folders.next().expect("a run");
    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let lines = metrics
        .lines()
        .filter(|line| line.contains("\"evaluation\""));
    let lines: Vec<&str> = lines
        .filter_map(|line| line.split("\"train_s\"").next())
        .collect();
    assert!(lines.len() > 1, "{metrics}");
    let state = fs::read(folder.join("checkpoint.safetensors")).expect("a checkpoint");
    (state, lines.join("\n"))
}

#[test]
fn processes_change_no_bit() {
    let data = data();
    for method in METHODS {
        let more = [method, &["--epochs", "3"]].concat();
        let alone = TempDir::new().expect("a folder");
        succeeds(command(None, data.path(), alone.path(), &more));
        let alone = result(alone.path());
        // More processes than nodes, in the end.
        for n_ranks in [1, 2, 4, 8, 12] {
            let out = TempDir::new().expect("a folder");
            succeeds(command(Some(n_ranks), data.path(), out.path(), &more));
            assert!(
                result(out.path()) == alone,
                "{method:?} on {n_ranks} processes"
            );
        }
    }
}

/// With the flags that nobody gives: every epoch is measured and saved.
#[test]
fn a_run_goes_on_on_other_processes() {
    let data = data();
    let (whole, out) = (
        TempDir::new().expect("a folder"),
        TempDir::new().expect("a folder"),
    );
    let with = |epochs| ["--topology", "ring", "--epochs", epochs];
    succeeds(command(None, data.path(), whole.path(), &with("4")));
    succeeds(command(Some(3), data.path(), out.path(), &with("2")));
    let more = [&with("4")[..], &["--resume"]].concat();
    succeeds(command(Some(2), data.path(), out.path(), &more));
    assert!(result(out.path()) == result(whole.path()));
    // One that is over is over.
    succeeds(command(Some(2), data.path(), out.path(), &more));
    assert!(result(out.path()) == result(whole.path()));
}

#[test]
fn processes_that_embed_texts_learn_the_same_head() {
    let texts =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/end_to_end/data/topics.csv");
    let task = ["--task", texts.to_str().expect("a path")];
    let more = [&task[..], &["--topology", "ring", "--epochs", "3"]].concat();
    let learn = |n_ranks| {
        let out = TempDir::new().expect("a folder");
        succeeds(command(n_ranks, out.path(), out.path(), &more));
        let head = fs::read(out.path().join("ring/head/head.safetensors")).expect("a head");
        (head, result(out.path()))
    };
    assert!(learn(Some(3)) == learn(None));
}

#[test]
fn a_run_that_loses_a_process_ends_and_can_go_on() {
    let data = data();
    let (whole, out) = (
        TempDir::new().expect("a folder"),
        TempDir::new().expect("a folder"),
    );
    let more = [
        "--topology",
        "ring",
        "--epochs",
        "400",
        "--evaluate-every",
        "400",
    ];
    succeeds(command(None, data.path(), whole.path(), &more));
    let mut job = command(Some(3), data.path(), out.path(), &more);
    let job = job
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("mpirun");
    let checkpoint = out.path().join("ring/checkpoint.safetensors");
    let started = Instant::now();
    while !checkpoint.exists() && started.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(1));
    }
    kill_one_rank(&job);
    let output = job_output(job);
    assert!(
        !output.0,
        "the job went well although it lost a rank: {}",
        output.1
    );
    assert!(output.1.contains("go on with --resume"), "{}", output.1);
    succeeds(command(
        Some(2),
        data.path(),
        out.path(),
        &[&more[..], &["--resume"]].concat(),
    ));
    assert!(result(out.path()) == result(whole.path()));
}

/// Kills a child of `mpirun`.
fn kill_one_rank(job: &Child) {
    let of_parent = job.id().to_string();
    let ranks = Command::new("pgrep")
        .args(["-P", &of_parent, "moeshard"])
        .output()
        .expect("pgrep");
    let ranks = String::from_utf8_lossy(&ranks.stdout).into_owned();
    let rank = ranks.lines().last().expect("a rank that runs");
    let killed = Command::new("kill")
        .args(["-9", rank])
        .status()
        .expect("kill");
    assert!(killed.success());
}

/// Whether it went well, and what it said.
fn job_output(job: Child) -> (bool, String) {
    let output = job.wait_with_output().expect("the end of the job");
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
