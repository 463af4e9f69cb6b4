//! Bulk files: forms, order, resumption, errors.

use std::fs;
use std::path::PathBuf;

use moeshard::bulk::npy::{HEADER, parse_header};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{fails, model, program, said, succeeds, text};

/// A folder with a model and files beside it.
struct Desk {
    dir: TempDir,
    model: TempDir,
}

impl Desk {
    fn new(golden: &str) -> Self {
        Self {
            dir: TempDir::new().expect("a folder"),
            model: model(golden),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).expect(name);
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect(name)
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = String::from_utf8(self.read(name)).expect("text");
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    /// The arguments of `action` from one file of the desk to another.
    fn args<'a>(&'a self, action: &'a str, io: &'a [PathBuf; 2], more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec![action, "--model", text(self.model.path())];
        args.extend(["--input", text(&io[0]), "--output", text(&io[1])]);
        args.extend(more);
        args
    }

    fn run(&self, action: &str, input: &str, output: &str, more: &[&str]) -> String {
        let io = [self.path(input), self.path(output)];
        said(&succeeds(&self.args(action, &io, more)))
    }

    fn fails(&self, action: &str, input: &str, output: &str, more: &[&str], expect: &str) {
        let io = [self.path(input), self.path(output)];
        fails(&self.args(action, &io, more), expect);
    }
}

/// Texts of many lengths, more than one chunk of them.
fn texts(n: usize) -> Vec<String> {
    let text = |i: usize| format!("{i} {}", "text ".repeat(1 + i * 7 % 13));
    (0..n).map(text).collect()
}

fn embedding(line: &Value) -> Vec<f32> {
    let values = line["embedding"].as_array().expect("an embedding");
    values
        .iter()
        .map(|value| value.as_f64().expect("a number") as f32)
        .collect()
}

/// The numbers of a matrix, row by row.
fn matrix(bytes: &[u8]) -> Vec<Vec<f32>> {
    let (n_rows, width) = parse_header(bytes).expect("a header");
    let numbers = bytes[HEADER..].chunks_exact(4);
    let numbers: Vec<f32> = numbers
        .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")))
        .collect();
    let rows: Vec<Vec<f32>> = numbers.chunks(width).map(<[f32]>::to_vec).collect();
    assert_eq!(rows.len() as u64, n_rows);
    rows
}

#[test]
fn every_form_of_a_text_gives_the_same_vector() {
    let desk = Desk::new("nomic_moe");
    let texts = ["one", "two, and \"three\"", "four"];
    desk.write("a.txt", format!("\u{feff}{}\r\n", texts.join("\r\n")));
    desk.write(
        "a.csv",
        "id,text\n1,one\n2,\"two, and \"\"three\"\"\"\n3,four\n",
    );
    desk.write("b.csv", "one\n\"two, and \"\"three\"\"\"\nfour");
    desk.write(
        "a.tsv",
        "x\tbody\n1\tone\n2\t\"two, and \"\"three\"\"\"\n3\tfour\n",
    );
    let objects = texts.map(|text| serde_json::json!({ "body": text, "text": text }).to_string());
    desk.write("a.jsonl", objects.join("\n"));
    desk.run("embed", "a.txt", "a.txt.jsonl", &[]);
    let want = desk.read("a.txt.jsonl");
    let indices: Vec<_> = desk
        .lines("a.txt.jsonl")
        .iter()
        .map(|l| l["index"].as_u64())
        .collect();
    assert_eq!(indices, [Some(0), Some(1), Some(2)]);
    for (input, more) in [
        ("a.csv", &[][..]),
        ("a.csv", &["--column", "text"]),
        ("a.csv", &["--column", "1"]),
        ("b.csv", &["--no-header"]),
        ("a.tsv", &["--column", "body"]),
        ("a.jsonl", &[]),
        ("a.jsonl", &["--field", "body"]),
    ] {
        desk.run(
            "embed",
            input,
            "out.jsonl",
            &[more, &["--overwrite"]].concat(),
        );
        assert!(desk.read("out.jsonl") == want, "{input} {more:?}");
    }
}

#[test]
fn a_matrix_has_the_numbers_of_the_lines() {
    let desk = Desk::new("nomic_moe");
    desk.write("in.txt", texts(30).join("\n"));
    desk.run("embed", "in.txt", "out.jsonl", &[]);
    desk.run("embed", "in.txt", "out.npy", &["--ranks", "1"]);
    let rows = matrix(&desk.read("out.npy"));
    let lines: Vec<Vec<f32>> = desk.lines("out.jsonl").iter().map(embedding).collect();
    assert_eq!(rows, lines);
    assert_eq!((rows.len(), rows[0].len()), (30, 48));
    let norm: f32 = rows[0].iter().map(|x| x * x).sum();
    assert!((norm - 1.0).abs() < 1e-5);
    desk.run("embed", "in.txt", "cut.npy", &["--dimensions", "7"]);
    assert_eq!(matrix(&desk.read("cut.npy"))[0].len(), 7);
    desk.fails(
        "embed",
        "in.txt",
        "x.npy",
        &["--dimensions", "49"],
        "--dimensions 49 is above",
    );
}

#[test]
fn a_run_that_was_cut_anywhere_ends_in_the_same_file() {
    let desk = Desk::new("nomic_moe");
    desk.write("in.txt", texts(1300).join("\n"));
    for (output, cuts) in [
        ("out.jsonl", [0, 1, 5_000, 400_000, usize::MAX]),
        ("out.npy", [0, 100, HEADER, HEADER + 1301, usize::MAX]),
    ] {
        desk.run("embed", "in.txt", output, &[]);
        let whole = desk.read(output);
        for cut in cuts {
            desk.write(output, &whole[..cut.min(whole.len())]);
            desk.run("embed", "in.txt", output, &["--resume"]);
            assert!(desk.read(output) == whole, "{output} cut at {cut}");
        }
    }
    desk.run("embed", "in.txt", "new.npy", &["--resume"]);
    assert!(desk.read("new.npy") == desk.read("out.npy"));
}

#[test]
fn an_output_is_never_lost_by_mistake() {
    let desk = Desk::new("nomic_moe");
    desk.write("in.txt", "one\ntwo\n");
    desk.run("embed", "in.txt", "out.jsonl", &[]);
    desk.run("embed", "in.txt", "out.npy", &[]);
    let check = |output, more: &[&str], expect| {
        let before = desk.read(output);
        desk.fails("embed", "in.txt", output, more, expect);
        assert!(desk.read(output) == before, "{output} {more:?}");
    };
    check(
        "out.jsonl",
        &[],
        "exists: continue it with --resume or replace it with --overwrite",
    );
    check(
        "out.npy",
        &["--resume", "--dimensions", "5"],
        "its rows have 48 numbers, this run's have 5",
    );
    desk.write("other.jsonl", "{\"index\":0}\n{\"index\":7}\n");
    check(
        "other.jsonl",
        &["--resume"],
        "its line 2 should have index 1, it has 7",
    );
    desk.write("other.npy", [7; 200]);
    check(
        "other.npy",
        &["--resume"],
        "it is no .npy matrix of float32",
    );
    for (kept, expect) in [
        ("a precious one-line file", "its line 1 is no row"),
        ("l1\nl2\nprecious tail", "its line 3 is no row"),
        ("l1\nl2\n", "its line 2 should have index 1, it has none"),
        ("{\"index\":0}\n", "has neither an embedding nor a label"),
    ] {
        desk.write("keep.jsonl", kept);
        check("keep.jsonl", &["--resume"], expect);
    }
    desk.write("keep.npy", "a precious one-line file");
    check("keep.npy", &["--resume"], "it is no .npy matrix of float32");
    desk.write("in.txt", "one\n");
    check(
        "out.jsonl",
        &["--resume"],
        "the output has 2 rows but the input only 1",
    );
}

#[test]
fn rows_of_another_run_are_not_continued() {
    let desk = Desk::new("nomic_moe_classify");
    desk.write("in.txt", "one\n\n");
    desk.run("embed", "in.txt", "e.jsonl", &["--skip-errors"]);
    desk.run("classify", "in.txt", "l.jsonl", &["--skip-errors"]);
    desk.write("in.txt", "one\ntwo\nthree\n");
    let check = |action, output, more: &[&str], expect| {
        let before = desk.read(output);
        let more = [more, &["--resume"]].concat();
        desk.fails(action, "in.txt", output, &more, expect);
        assert!(desk.read(output) == before, "{action} {output}");
    };
    let narrow = &["--dimensions", "5"];
    check(
        "embed",
        "e.jsonl",
        narrow,
        "its rows have 48 numbers, this run's have 5",
    );
    check(
        "embed",
        "l.jsonl",
        &[],
        "its rows are labels, this run's are embeddings",
    );
    check(
        "classify",
        "e.jsonl",
        &[],
        "its rows are embeddings, this run's are labels",
    );
    for (action, output) in [("embed", "e.jsonl"), ("classify", "l.jsonl")] {
        desk.run(action, "in.txt", output, &["--resume"]);
        assert_eq!(desk.lines(output).len(), 3);
    }
}

#[cfg(unix)]
#[test]
fn the_input_is_never_emptied() {
    let desk = Desk::new("nomic_moe");
    desk.write("in.txt", "one\n");
    fs::hard_link(desk.path("in.txt"), desk.path("link.jsonl")).expect("a link");
    let expect = "link.jsonl is the input; name another file";
    desk.fails("embed", "in.txt", "link.jsonl", &["--overwrite"], expect);
    let io = [PathBuf::from("-"), desk.path("link.jsonl")];
    let mut command = program(&desk.args("embed", &io, &["--overwrite"]));
    command.stdin(fs::File::open(desk.path("in.txt")).expect("the input"));
    let output = command.output().expect("the program runs");
    assert!(said(&output).contains(expect), "{}", said(&output));
    assert_eq!(desk.read("in.txt"), b"one\n");
}

#[test]
fn a_blank_last_line_is_no_text() {
    let desk = Desk::new("nomic_moe");
    desk.write("in.jsonl", "{\"text\":\"a\"}\n \n{\"text\":\"b\"}\n\n");
    let expect = "line 2: the line is empty";
    desk.fails("embed", "in.jsonl", "a.jsonl", &[], expect);
    desk.run("embed", "in.jsonl", "b.jsonl", &["--skip-errors"]);
    assert_eq!(desk.lines("b.jsonl").len(), 3);
}

#[test]
fn a_text_that_cannot_be_run_is_named_or_left_empty() {
    let desk = Desk::new("nomic_moe");
    let long = "long ".repeat(50);
    desk.write(
        "in.txt",
        [b"fine\n\nbad \xff\n".as_slice(), long.as_bytes()].concat(),
    );
    desk.fails(
        "embed",
        "in.txt",
        "a.jsonl",
        &[],
        "line 2: the text is empty",
    );
    assert_eq!(desk.lines("a.jsonl").len(), 1, "what came before is kept");

    desk.run(
        "embed",
        "in.txt",
        "b.jsonl",
        &["--skip-errors", "--no-truncate"],
    );
    let lines = desk.lines("b.jsonl");
    let errors: Vec<_> = lines
        .iter()
        .map(|line| line["error"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(
        errors[..3],
        [
            "",
            "the text is empty",
            "the text is not valid UTF-8 (at byte 5)"
        ]
    );
    assert!(
        errors[3].contains("the model takes at most 64"),
        "{}",
        errors[3]
    );
    assert!(lines[1]["embedding"].is_null() && lines[0]["embedding"].is_array());

    desk.run("embed", "in.txt", "b.npy", &["--skip-errors"]);
    let rows = matrix(&desk.read("b.npy"));
    let empty: Vec<bool> = rows
        .iter()
        .map(|row| row.iter().all(|x| x.is_nan()))
        .collect();
    assert_eq!(empty, [false, true, true, false]);

    desk.write(
        "in.jsonl",
        "{\"text\":\"a\"}\n{\"text\":5}\n{\"x\":1}\n[1]\n{\n",
    );
    desk.fails(
        "embed",
        "in.jsonl",
        "c.jsonl",
        &[],
        "line 2: field `text` is not a string",
    );
    desk.run("embed", "in.jsonl", "d.jsonl", &["--skip-errors"]);
    let n_errors = desk
        .lines("d.jsonl")
        .iter()
        .filter(|l| l["error"].is_string())
        .count();
    assert_eq!(n_errors, 4);
}

#[test]
fn texts_before_the_one_that_fails_are_written() {
    let desk = Desk::new("nomic_moe");
    desk.write("in.txt", format!("a\nb\n{}\nc\n", "long ".repeat(50)));
    desk.fails(
        "embed",
        "in.txt",
        "a.jsonl",
        &["--no-truncate"],
        "line 3: the input has",
    );
    assert_eq!(desk.lines("a.jsonl").len(), 2);
    // Mended, it is continued.
    desk.write("in.txt", "a\nb\nshort\nc\n");
    desk.run("embed", "in.txt", "a.jsonl", &["--no-truncate", "--resume"]);
    desk.run("embed", "in.txt", "b.jsonl", &[]);
    assert!(desk.read("a.jsonl") == desk.read("b.jsonl"));
}

#[test]
fn labels_come_best_first() {
    let desk = Desk::new("nomic_moe_classify");
    desk.write("in.txt", texts(20).join("\n"));
    desk.run("classify", "in.txt", "out.jsonl", &["--top-k", "2"]);
    for line in desk.lines("out.jsonl") {
        let scores = line["scores"].as_array().expect("scores");
        assert_eq!(scores.len(), 2);
        assert_eq!(
            (&scores[0]["label"], &scores[0]["score"]),
            (&line["label"], &line["score"])
        );
        assert!(scores[0]["score"].as_f64() >= scores[1]["score"].as_f64());
    }
    desk.run("classify", "in.txt", "out.npy", &[]);
    let rows = matrix(&desk.read("out.npy"));
    for row in &rows {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{row:?}");
    }
    let plain = Desk::new("nomic_moe");
    plain.write("in.txt", "a\n");
    plain.fails(
        "classify",
        "in.txt",
        "out.jsonl",
        &[],
        "has no classification head",
    );
    assert!(!plain.path("out.jsonl").exists(), "nothing is left behind");
}

#[test]
fn impossible_files_are_named() {
    let desk = Desk::new("nomic_moe");
    desk.write("in.txt", "a\n");
    desk.write("in.csv", "id,body\n1,a\n");
    let check =
        |input, output, more: &[&str], expect| desk.fails("embed", input, output, more, expect);
    check("none.txt", "o.jsonl", &[], "does not exist");
    check(
        "in.txt",
        "in.txt",
        &["--overwrite"],
        "in.txt is the input; name another file",
    );
    check(
        "in.csv",
        "o.jsonl",
        &[],
        "choose one of 2 columns with --column: id, body",
    );
    check(
        "in.csv",
        "o.jsonl",
        &["--column", "x"],
        "in.csv: the CSV file has no column `x`; it has 2: id, body",
    );
    check(
        "in.csv",
        "o.jsonl",
        &["--column", "2"],
        "has no column `2`; it has 2: id, body",
    );
    check(
        "in.txt",
        "o.jsonl",
        &["--column", "x"],
        "has no effect without CSV input",
    );
    check(
        "in.txt",
        "o.jsonl",
        &["--prompt-name", "q"],
        "`q` is no prompt of",
    );
    check("in.txt", "no/o.jsonl", &[], "No such file");
    let io = [desk.path("in.txt"), PathBuf::from("-")];
    fails(
        &desk.args("embed", &io, &["--format", "npy"]),
        "cannot take .npy",
    );
    fails(&desk.args("embed", &io, &["--resume"]), "cannot be resumed");
    let output = succeeds(&desk.args("embed", &io, &[]));
    let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(embedding(&line).len(), 48);
}
