//! Other people's clients against the real program: what is in `tests/clients/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use moeshard_tests::server::Server;

/// Runs a script of `tests/clients/` with the URL of a server of the built-in model.
#[track_caller]
fn check(script: &str) {
    let Some(python) = python() else { return };
    let server = Server::start(&[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(script);
    let mut command = Command::new(python);
    command.arg(&script).arg(server.url());
    // A proxy of the environment would not know this server.
    command
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1");
    let output = command
        .output()
        .expect("the Python of MOESHARD_PYTHON starts");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    println!("{stdout}");
    assert!(
        output.status.success(),
        "{}:\n{stdout}{stderr}",
        script.display()
    );
    assert!(stdout.trim_end().ends_with("all checks hold"), "{stdout}");
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

/// The Python that `cargo xtask test` sets up with the clients.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("MOESHARD_PYTHON").map(PathBuf::from);
    let python = python.filter(|path| path.is_file());
    if python.is_none() {
        println!("skipped: no python client environment");
    }
    python
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_openai_client() {
    check("openai_client.py");
}

#[test]
fn the_hugging_face_client() {
    check("hub_client.py");
}

/// `curl` as the README has it.
#[test]
fn curl() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: no curl");
        return;
    }
    let server = Server::start(&[]);
    let url = format!("{}/embed", server.url());
    let body = r#"{"inputs":"What is a mixture of experts?"}"#;
    let mut command = Command::new("curl");
    command.args(["--silent", "--fail", "--noproxy", "*", &url]);
    command.args(["-H", "content-type: application/json", "-d", body]);
    let output = command.output().expect("curl starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<Vec<f32>> = serde_json::from_slice(&output.stdout).expect("rows");
    assert_eq!(rows.len(), 1);
    assert!(rows[0].len() > 100);
}
