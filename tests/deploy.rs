//! What `deploy/` holds can be read by those it is made for, and what can be run without a cluster starts processes
//! that serve: with stand-ins for launchers (`deploy/` beside this file) on one machine.

#[path = "deploy/jobs.rs"]
mod jobs;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jobs::{Job, stand_ins};

/// A folder or a file of `deploy`.
fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name)
}

fn files(ends: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(deploy("")).expect("deploy").flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| {
        let end = path.extension().unwrap_or_default().to_string_lossy();
        ends.contains(&end.as_ref())
    });
    let files: Vec<_> = files.collect();
    assert!(!files.is_empty(), "no {ends:?} in deploy");
    files
}

#[test]
fn scripts_can_be_parsed() {
    for script in files(&["sh", "sbatch"]) {
        let output = Command::new("bash").arg("-n").arg(&script).output();
        let output = output.expect("bash");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}

/// What a LeaderWorkerSet must say for the probes to be asked and for a lost pod to end the group.
const EXPECTED: [&str; 5] = [
    "kind: LeaderWorkerSet",
    "restartPolicy: RecreateGroupOnPodRestart",
    "{path: /ready, port: http}",
    "{path: /health, port: http}",
    "containerPort: 3000",
];

/// Prints the kinds of a file's documents.
const PARSE: &str = "
import sys
try:
    import yaml
except ImportError:
    sys.exit(3)
documents = list(yaml.safe_load_all(open(sys.argv[1])))
for document in documents:
    print(document['apiVersion'], document['kind'], document['metadata']['name'])
    if document['kind'] == 'LeaderWorkerSet':
        template = document['spec']['leaderWorkerTemplate']
        leader, = template['leaderTemplate']['spec']['containers']
        worker, = template['workerTemplate']['spec']['containers']
        assert leader['name'] == worker['name'] == 'moeshard'
        assert leader['command'] == worker['command']
";

#[test]
fn manifests_can_be_parsed() {
    for manifest in files(&["yaml"]) {
        let text = fs::read_to_string(&manifest).expect("a manifest");
        assert!(!text.contains('\t'), "YAML knows no tabs");
        for expected in EXPECTED {
            assert!(text.contains(expected), "no `{expected}`");
        }
        let python = env::var_os("MOESHARD_PYTHON").unwrap_or_else(|| "python3".into());
        let mut parsed = Command::new(python);
        parsed.args(["-c", PARSE]).arg(&manifest);
        match parsed_output(&mut parsed) {
            Some(kinds) => assert_eq!(kinds.lines().count(), 2, "{kinds}"),
            None => println!("skipped: parsing manifests: no Python with yaml"),
        }
    }
}

/// What it printed; nothing where there is no Python or no parser.
fn parsed_output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    if output.status.code() == Some(3) {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_job_for_slurm_serves() {
    let mut job = Job::of_script(&deploy("slurm.sbatch"), |command, port| {
        // The step's port follows from the number.
        let number = (1_000_000 + u32::from(port)).to_string();
        let variables = [
            ("SLURM_JOB_ID", number.as_str()),
            ("SLURM_JOB_NODELIST", "localhost"),
            ("SLURM_NTASKS", "3"),
            ("SLURM_NTASKS_PER_NODE", "3"),
            ("SLURM_CPUS_ON_NODE", "3"),
        ];
        command.envs(variables).env("PATH", stand_ins());
    });
    job.answers("serving on localhost");
    job.ends_well();
}

#[test]
fn the_job_for_slurm_ends_when_a_process_is_lost() {
    let mut job = Job::of_script(&deploy("slurm.sbatch"), |command, port| {
        let number = (2_000_000 + u32::from(port)).to_string();
        let variables = [
            ("SLURM_JOB_ID", number.as_str()),
            ("SLURM_JOB_NODELIST", "localhost"),
            ("SLURM_NTASKS", "2"),
        ];
        command.envs(variables).env("PATH", stand_ins());
    });
    job.answers("rank 1 of 2 follows");
    job.ends_by_a_kill();
}

#[test]
fn the_script_for_torchrun_serves() {
    let mut job = Job::of_script(&deploy("torchrun.sh"), |command, port| {
        let before = (port - 1).to_string();
        command.arg("2").env("STAND_IN_PORT", before);
        command.env("PATH", stand_ins());
    });
    job.answers("rank 1 of 2 follows");
    job.ends_well();
}

/// The command of every container, as the manifest has it.
fn commands() -> Vec<Vec<String>> {
    let manifest = fs::read_to_string(deploy("leader-worker-set.yaml")).expect("a manifest");
    let lists = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("command: "));
    let commands = lists.map(|list| serde_json::from_str(list).expect("a list of words"));
    commands.collect()
}

#[test]
fn the_containers_of_a_leader_worker_set_serve() {
    let [leader, worker] = commands().try_into().expect("two containers");
    let mut job = Job::of_processes(3, |rank, command, port| {
        let words = if rank == 0 { &leader } else { &worker };
        assert_eq!(words[0], "moeshard");
        command.args(&words[1..]);
        // The leader's port, 3001 in a pod of its own, is the one behind this.
        let before = (port - 1).to_string();
        let variables = [
            ("LWS_WORKER_INDEX", rank.to_string()),
            ("LWS_GROUP_SIZE", "3".to_owned()),
            ("LWS_LEADER_ADDRESS", "localhost".to_owned()),
            ("MASTER_PORT", before),
        ];
        command.envs(variables);
    });
    job.answers("rank 2 of 3 follows");
    job.ends_well();
}
