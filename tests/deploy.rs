//! What `deploy/` holds can be read by those it is made for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn files(ends: &[&str]) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let entries = fs::read_dir(folder).expect("deploy").flatten();
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
const EXPECTED: [&str; 6] = [
    "kind: LeaderWorkerSet",
    "restartPolicy: RecreateGroupOnPodRestart",
    "{path: /ready, port: http}",
    "{path: /health, port: http}",
    "moeshard serve --device cpu --port 3000",
    "containerPort: 3000",
];

/// Prints the kinds of a file's documents, and checks the scripts in them.
const PARSE: &str = "
import subprocess, sys
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
        for script in leader['args'] + worker['command'][-1:]:
            subprocess.run(['bash', '-n', '-c', script], check=True)
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
            Some(kinds) => assert_eq!(kinds.lines().count(), 5, "{kinds}"),
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
