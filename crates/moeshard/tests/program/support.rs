//! What several tests need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A tokenizer with a token a character, fewer than the golden models have rows for.
const TOKENIZER: &[u8] = include_bytes!("../../../batcher/tests/data/tokenizer.json");

/// A small golden model, with a tokenizer, in a folder of its own.
pub(crate) fn model(name: &str) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    copy(&golden(name), dir.path());
    fs::write(dir.path().join("tokenizer.json"), TOKENIZER).expect("a tokenizer");
    dir
}

/// The folder of a golden model.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/goldens")
        .join(name)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a golden") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).expect("a folder");
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// The program without any setting of this machine.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeshard"));
    command.args(args).env_clear().env("RUST_LOG", "info");
    command
}

/// Runs the program to its end.
fn run(args: &[&str]) -> Output {
    program(args).output().expect("the program runs")
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// What the program showed on standard output.
pub(crate) fn shown(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the program said on standard error.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program, which must fail; the last line it says must contain `expect`.
#[track_caller]
pub(crate) fn fails(args: &[&str], expect: &str) {
    let output = run(args);
    let said = said(&output);
    assert!(!output.status.success(), "{args:?} went well: {said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("moeshard: "), "{args:?}: {said}");
    assert!(
        last.contains(expect),
        "{args:?}: {said}\nexpected: {expect}"
    );
}

/// Runs the program, which must go well.
#[track_caller]
pub(crate) fn succeeds(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    output
}
