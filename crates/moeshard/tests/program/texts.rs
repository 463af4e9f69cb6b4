//! `moeshard train` on texts: what is wrong with them is said in one sentence, before anything is
//! embedded.

use std::fs;

use tempfile::TempDir;

use crate::support::{fails, succeeds, text};

/// Trains on a file of these contents, which must fail with a last line that contains `expect`.
#[track_caller]
fn refused(name: &str, contents: &str, args: &[&str], expect: &str) {
    let folder = TempDir::new().expect("a folder");
    let (file, out) = (folder.path().join(name), folder.path().join("out"));
    fs::write(&file, contents).expect("written");
    let nodes = if args.contains(&"--nodes") {
        &[][..]
    } else {
        &["--nodes", "2"]
    };
    let line = ["train", "--task", text(&file), "--out", text(&out)];
    fails(&[&line, nodes, args].concat(), expect);
    assert!(!out.exists(), "something was written");
}

/// Ten texts, of which eight are learned from.
const SOUND: &str = "text,label\na,x\nb,x\nc,x\nd,x\ne,x\nf,y\ng,y\nh,y\ni,y\nj,y\n";

#[test]
fn files_that_are_no_labelled_texts() {
    refused(
        "a.csv",
        "body,label\na,x\n",
        &[],
        "a.csv: expected a column text",
    );
    refused(
        "a.csv",
        "text,score\na,1\n",
        &[],
        "a.csv: expected a column label",
    );
    refused(
        "a.csv",
        "",
        &[],
        "a.csv: expected at least one example, found none",
    );
    refused(
        "a.csv",
        "text,label\n \n",
        &[],
        "a.csv: line 2: expected 2 fields, found 1",
    );
    refused(
        "a.csv",
        "text,label\na,x\n\"  \",y\n",
        &[],
        "a.csv: line 3: expected a text, found an empty one",
    );
    refused(
        "a.jsonl",
        "{\"text\": \"a\"}\n",
        &[],
        "a.jsonl: line 1: expected a field label",
    );
    refused(
        "a.csv",
        "text,label\na,x\nb,x\n",
        &[],
        "a.csv: expected at least two labels to tell apart, found only \"x\"",
    );
}

#[test]
fn texts_that_do_not_fit_the_nodes() {
    refused(
        "a.csv",
        SOUND,
        &["--nodes", "9"],
        "a.csv: expected an example for each of 9 nodes, found 8",
    );
    refused("a.csv", "text,label\na,x\nb,y\n", &[], "--test-data");
    refused(
        "a.csv",
        SOUND,
        &["--nodes", "1", "--partition", "one-class"],
        "one-class: the number of nodes is 1, expected at least 2",
    );
    refused(
        "a.csv",
        SOUND,
        &["--train-examples", "0"],
        "--train-examples must be at least 1",
    );
    refused(
        "a.csv",
        SOUND,
        &["--model", "/no/such"],
        "--model `/no/such`",
    );
    refused(
        "a.csv",
        SOUND,
        &["--classifier", "forest"],
        "--classifier must be linear",
    );
}

#[test]
fn the_first_examples_have_all_labels() {
    refused(
        "a.csv",
        SOUND,
        &["--train-examples", "5"],
        "--train-examples 5 leaves examples of 1 of the 2 labels of",
    );
}

#[test]
fn labels_of_other_names_are_another_task() {
    let folder = TempDir::new().expect("a folder");
    let (file, out) = (folder.path().join("a.csv"), folder.path().join("out"));
    fs::write(&file, SOUND).expect("written");
    let line = ["train", "--task", text(&file), "--out", text(&out)];
    let line = [
        &line[..],
        &["--nodes", "2", "--topology", "complete", "--epochs", "1"],
    ]
    .concat();
    succeeds(&line);
    fs::write(&file, SOUND.replace(",y", ",z")).expect("written");
    fails(
        &[&line[..], &["--resume"]].concat(),
        "is of another run: labels",
    );
}

#[test]
fn files_to_measure_on() {
    let folder = TempDir::new().expect("a folder");
    let test = folder.path().join("test.csv");
    fs::write(&test, "text,label\na,z\n").expect("written");
    let flags = ["--test-data", text(&test)];
    refused(
        "a.csv",
        SOUND,
        &flags,
        "test.csv: line 2: expected one of the 2 labels known, found \"z\"",
    );
    fails(
        &[
            "train",
            "--task",
            "mnist",
            "--data",
            "/tmp",
            "--test-data",
            text(&test),
        ],
        "has no effect without a task of texts; got --task mnist",
    );
}

#[test]
fn sets_that_are_not_there() {
    fails(
        &["train", "--task", "banking77"],
        "--task banking77 needs the folder of its files: --data DIR",
    );
    let folder = TempDir::new().expect("a folder");
    fails(
        &[
            "train",
            "--task",
            "banking77",
            "--data",
            text(folder.path()),
        ],
        "expected train.csv in it, in banking77 or in text/banking77, found none",
    );
    fails(
        &["train", "--task", "no/such.csv"],
        "no/such.csv: cannot be read",
    );
    fails(&["train", "--task", "poems"], "--task must be mnist");
}
