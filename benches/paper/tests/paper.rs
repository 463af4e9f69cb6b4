//! The program from end to end, on shapes of no use.

use std::process::Command;

use serde_json::Value;

fn program(args: &str) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeshard-paper"));
    let output = command.args(args.split(' ')).output().expect("the program");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

const TINY: &str =
    "--batch 2 --length 5 --d-model 32 --heads 1 --layers 2 --vocab 20 --share-cores --skew 0,0.6";

fn rows(flags: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("a path");
    let (is_well, shown, said) = program(&format!("{TINY} {flags} --out {out}"));
    assert!(is_well, "{said}");
    let read = |name| std::fs::read_to_string(folder.path().join(name)).expect("a report");
    assert_eq!(shown, read("paper.md"));
    assert!(
        shown.contains("| sharded | 1.000 (1.000) | 1.000 (1.000) |"),
        "{shown}"
    );
    let page = read("paper.html");
    assert!(page.contains("Work per rank, max/mean") && page.contains("<svg"));
    assert!(!page.contains("NaN") && page.ends_with("</html>\n"));
    let report: Value = serde_json::from_str(&read("paper.json")).expect("JSON");
    report["rows"].as_array().expect("rows").clone()
}

#[test]
fn strategies_are_counted_and_timed() {
    let rows = rows("--experts 3,4 --ranks 1,2 --rounds 2 --d-ff 32");
    assert_eq!(rows.len(), 2 * 2 * 4 * 2);
    for row in &rows {
        let times = &row["times"];
        assert_eq!(times["rounds_ms"].as_array().map(Vec::len), Some(2));
        assert!(times["median_ms"].as_f64() > Some(0.0));
        let over_uniform = times["over_uniform"].as_f64();
        match row["skew"] == 0.0 {
            true => assert_eq!(over_uniform, Some(1.0)),
            false => assert!(over_uniform > Some(0.0)),
        }
    }
}

#[test]
fn nothing_is_timed_without_rounds() {
    let rows = rows("--experts 4 --ranks 2 --rounds 0 --d-ff 32");
    assert!(rows.iter().all(|row| row["times"].is_null()));
}

#[test]
fn gpus_count_the_same() {
    let strip = |mut rows: Vec<Value>| {
        for row in &mut rows {
            row["times"] = Value::Null;
        }
        rows
    };
    let flags =
        "--experts 4 --ranks 2 --d-ff 32 --strategies sharded,parallel,capacity:1,replicated";
    let on = |device| strip(rows(&format!("{flags} --rounds 1 --device {device}")));
    assert_eq!(on("emulated"), on("cpu"));
}

#[test]
fn what_cannot_be_run_is_said_in_a_sentence() {
    for (flags, reason) in [
        (
            "--ranks 4 --experts 3 --strategies parallel",
            "3 experts cannot be dealt out to 4 ranks",
        ),
        ("--ranks 4 --d-ff 3", "d_ff 3 cannot be split over 4 ranks"),
        ("--heads 5", "--d-model 32 cannot be split over 5 heads"),
    ] {
        let (is_well, _, said) = program(&format!("--rounds 0 --d-model 32 {flags}"));
        assert!(!is_well);
        assert!(said.contains(reason), "{said}");
    }
}
