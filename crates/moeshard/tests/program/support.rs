//! What several tests need.

use std::process::{Command, Output};

pub(crate) use crate::folders::{golden, model, text};

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
