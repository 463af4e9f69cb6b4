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

/// Every `$ curl …` of the README gives the answer that stands below it, in which `…` is anything. The
/// one to a head of one's own is asked of the built-in model, whose own head has the same labels.
#[test]
fn curl_as_the_readme_has_it() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: no curl");
        return;
    }
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).expect("README.md");
    let server = Server::start(&[]);
    let mut lines = readme.lines();
    let mut n_commands = 0;
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("$ curl ") else {
            continue;
        };
        let expected = lines.next().expect("an answer below the command");
        let command = command
            .replace("http://", "")
            .replace("localhost:3000", &server.url());
        let output = Command::new("sh")
            .args([
                "-c",
                &format!("curl --silent --fail --noproxy '*' {command}"),
            ])
            .output()
            .expect("sh starts");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_matches(&text(&output.stdout), expected);
        n_commands += 1;
    }
    assert_eq!(n_commands, 3, "commands of the README");
}

/// Asserts that the parts of `pattern` between `…` come in `answer` in this order.
fn assert_matches(answer: &str, pattern: &str) {
    let mut rest = answer;
    for (i, part) in pattern.split('…').enumerate() {
        let at = rest.find(part);
        let fits = at.is_some_and(|at| i > 0 || at == 0);
        let start: String = answer.chars().take(300).collect();
        assert!(fits, "{part:?} of {pattern} is not in {start}");
        rest = &rest[at.unwrap_or(0) + part.len()..];
    }
    assert_eq!(rest, "", "after {pattern}");
}
