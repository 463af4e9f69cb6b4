//! From labelled texts on many nodes to answers over HTTP: heads learned without a server, served.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moeshard_decentralized::model::{Linear, Model, Scratch};
use moeshard_tests::data;
use moeshard_tests::model_dir::ModelDir;
use moeshard_tests::server::{Ended, Server, run, run_within};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Six runs on 10,003 texts, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(900);

/// How the nodes of a topology and the mean of their models do.
#[derive(Debug)]
struct Row {
    topology: &'static str,
    /// Share of the test texts: the nodes' mean, the worst and the best of them.
    nodes: [f64; 3],
    /// The head that is served, as the server answers.
    served: f64,
    head: PathBuf,
}

/// Labelled texts.
type Texts = Vec<(String, String)>;

fn topics(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.join("end_to_end/data").join(name)
}

fn read(file: &Path) -> Texts {
    let mut reader = csv::Reader::from_path(file).expect("a file of texts");
    let rows = reader.records().map(|row| row.expect("a row"));
    rows.map(|row| (row[0].to_owned(), row[1].to_owned()))
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Runs `moeshard train` with one `--topology` for each of `topologies`.
fn train(out: &Path, args: &[&str], topologies: &[&str]) -> Ended {
    let flags = topologies.iter().flat_map(|t| ["--topology", t]);
    let args = args.iter().copied().chain(flags);
    let line: Vec<&str> = ["train", "--out", text(out)]
        .into_iter()
        .chain(args)
        .collect();
    let ended = run_within(&line, PATIENCE);
    assert!(ended.status.success(), "{line:?}:\n{}", ended.stderr);
    ended
}

/// The folder of a topology's run.
fn folder(out: &Path, topology: &str) -> PathBuf {
    let name = topology.split(':').next().unwrap_or_default();
    let entries = fs::read_dir(out).expect("the output");
    let mut folders = entries.map(|entry| entry.expect("an entry").path());
    let is_its = |path: &PathBuf| {
        let folder = path.file_name().unwrap_or_default().to_string_lossy();
        path.join("head").is_dir() && folder.starts_with(name)
    };
    folders
        .find(is_its)
        .unwrap_or_else(|| panic!("no {topology} in {}", out.display()))
}

/// Trains on `topologies` and serves the head of each.
fn compare(
    out: &Path,
    args: &[&str],
    topologies: &[&'static str],
    test: &[(String, String)],
) -> Vec<Row> {
    let _ = train(out, args, topologies);
    let row = |&topology: &&'static str| {
        let folder = folder(out, topology);
        let head = folder.join("head");
        let server = Server::start(&["--head", text(&head)]);
        Row {
            topology,
            nodes: last_accuracy(&folder.join("metrics.jsonl")),
            served: share_right(&server, test),
            head,
        }
    };
    topologies.iter().map(row).collect()
}

/// Mean, worst and best node after the last evaluation.
fn last_accuracy(metrics: &Path) -> [f64; 3] {
    let lines = fs::read_to_string(metrics).expect("metrics");
    let mut records = lines.lines().rev().map(|line| {
        let record: Value = serde_json::from_str(line).expect("JSON");
        record["accuracy"].clone()
    });
    let last = records.find(Value::is_object).expect("an evaluation");
    ["mean", "min", "max"].map(|key| last[key].as_f64().expect("a number"))
}

/// Share of `texts` whose best label is right.
fn share_right(server: &Server, texts: &[(String, String)]) -> f64 {
    let mut n_right = 0;
    for texts in texts.chunks(512) {
        let inputs: Vec<&str> = texts.iter().map(|(text, _)| text.as_str()).collect();
        let body = json!({ "inputs": inputs, "top_k": 1 });
        let answers = server.client().post("/classify", body).ok();
        for (answer, (_, label)) in answers.as_array().expect("a list").iter().zip(texts) {
            n_right += usize::from(answer[0]["label"] == label.as_str());
        }
    }
    n_right as f64 / texts.len() as f64
}

fn show(rows: &[Row]) {
    println!("topology        nodes: mean  worst   best   served head");
    for Row {
        topology,
        nodes: [mean, worst, best],
        served,
        ..
    } in rows
    {
        let [mean, worst, best, served] = [mean, worst, best, served].map(|x| 100.0 * x);
        println!("{topology:20} {mean:6.2} {worst:6.2} {best:6.2}        {served:6.2}");
    }
}

/// So few rounds of the small task that a topology still shows.
const FEW: [&str; 2] = ["--epochs", "2"];

/// Flags of the small task, on eight nodes.
fn small() -> Vec<String> {
    let (train, test) = (topics("topics.csv"), topics("topics_test.csv"));
    let flags = [
        ["--task", text(&train)],
        ["--test-data", text(&test)],
        ["--nodes", "8"],
    ];
    flags.concat().into_iter().map(str::to_owned).collect()
}

/// Trains on the small task with more flags.
fn train_small(out: &Path, more: &[&str], topologies: &[&str]) -> Ended {
    let small = small();
    let args: Vec<&str> = small
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    train(out, &args, topologies)
}

/// A folder with the head of one run on the small task.
fn small_head(more: &[&str]) -> (TempDir, PathBuf) {
    let out = tempfile::tempdir().expect("a folder");
    let _ = train_small(out.path(), more, &["complete"]);
    let head = out.path().join("complete/head");
    (out, head)
}

#[test]
fn nodes_of_one_topic_learn_all_topics_from_one_another() {
    let test = read(&topics("topics_test.csv"));
    let out = tempfile::tempdir().expect("a folder");
    let small = small();
    let flags = |partition| -> Vec<&str> {
        let flags = small.iter().map(String::as_str).chain(FEW);
        flags.chain(["--partition", partition]).collect()
    };
    let place = out.path().join("centralised");
    let centralised = compare(&place, &flags("iid"), &["complete"], &test).remove(0);
    let topologies = ["d-cliques:size=4", "stl-fw:d=3", "random:d=3", "ring"];
    let mut rows = compare(
        &out.path().join("skewed"),
        &flags("one-class"),
        &topologies,
        &test,
    );
    let [d_cliques, stl_fw, random, ring] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert!(centralised.served >= 0.9, "{centralised:?}");
    for row in [d_cliques, stl_fw] {
        let worst = row.nodes[1];
        assert!(
            worst >= centralised.nodes[1] - 0.05,
            "{row:?} {centralised:?}"
        );
        assert!(
            row.served >= centralised.served - 0.05,
            "{row:?} {centralised:?}"
        );
    }
    assert!(
        ring.nodes[0] <= d_cliques.nodes[0] - 0.1,
        "{ring:?} {d_cliques:?}"
    );
    assert!(ring.nodes[0] <= random.nodes[0], "{ring:?} {random:?}");
    rows.push(centralised);
    show(&rows);
}

#[test]
fn a_served_head_answers_with_its_labels_and_says_so() {
    let (_out, head) = small_head(&FEW);
    let server = Server::start(&["--head", text(&head)]);
    let client = server.client();
    let info = client.get("/info").ok();
    assert_eq!(
        info["labels"],
        json!(["cooking", "music", "sport", "weather"])
    );
    assert_eq!(
        info["model_type"]["classifier"]["label2id"]["sport"],
        json!(2)
    );
    let origin = info["head"].as_str().expect("how the head came about");
    for part in ["topics", "8 nodes", "complete", "2 epochs"] {
        assert!(origin.contains(part), "no {part:?} in {origin:?}");
    }
    let body = json!({ "inputs": "The goalkeeper caught the ball." });
    let scores = client.post("/classify", body).ok();
    assert_eq!(scores[0][0]["label"], "sport", "{scores}");
    let sum: f64 = (0..4).filter_map(|i| scores[0][i]["score"].as_f64()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{scores}");

    // The encoder is as it was.
    let body = || json!({ "inputs": "The goalkeeper caught the ball." });
    let embedding = client.post("/embed", body()).rows();
    let plain = Server::start(&[]);
    assert_eq!(plain.client().post("/embed", body()).rows(), embedding);
    assert_eq!(plain.client().get("/info").ok()["head"], Value::Null);
}

#[test]
fn bulk_files_are_classified_with_a_head() {
    let (out, head) = small_head(&FEW);
    let (input, output) = (topics("topics_test.csv"), out.path().join("labels.jsonl"));
    let ended = run(&[
        "classify",
        "--input",
        text(&input),
        "--output",
        text(&output),
        "--head",
        text(&head),
    ]);
    assert!(ended.status.success(), "{}", ended.stderr);
    let lines = fs::read_to_string(output).expect("labels");
    let found: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let test = read(&input);
    let is_right = |(row, (_, label)): &(&Value, &(String, String))| row["label"] == label.as_str();
    let n_right = found.iter().zip(&test).filter(is_right).count();
    assert_eq!(found.len(), test.len());
    assert!(
        n_right * 10 >= test.len() * 9,
        "{n_right} of {}",
        test.len()
    );
}

#[test]
fn served_logits_are_those_of_training() {
    let (out, head) = small_head(&FEW);
    let (weight, bias) = (
        tensor(&head, "head.out.weight"),
        tensor(&head, "head.out.bias"),
    );
    let params = [weight, bias.clone()].concat();
    let texts = read(&topics("topics.csv"));
    // What training made of the texts, kept so that nobody embeds them again.
    let rows = cached(&out.path().join("embeddings"), texts.len());
    let n_features = rows.len() / texts.len();
    let features: Vec<f32> = rows.chunks_exact(n_features).flat_map(direction).collect();
    let model = Linear::new(n_features, bias.len());
    let mut expected = vec![0.0; texts.len() * bias.len()];
    model.logits(&params, &features, &mut expected, &mut Scratch::default());
    let expected: Vec<&[f32]> = expected.chunks_exact(bias.len()).collect();
    let found = served_logits(&head, &texts);
    assert_close(&found, &expected);
}

#[test]
fn a_head_of_two_layers_is_served_as_well() {
    let (out, head) = small_head(&["--classifier", "mlp:hidden=32", "--epochs", "20"]);
    let texts = read(&topics("topics.csv"));
    let rows = cached(&out.path().join("embeddings"), texts.len());
    let n_features = rows.len() / texts.len();
    let [w1, b1, w2, b2] = ["dense.weight", "dense.bias", "out.weight", "out.bias"]
        .map(|name| tensor(&head, &format!("head.{name}")));
    let layer = |w: &[f32], b: &[f32], x: &[f64]| -> Vec<f64> {
        let dot = |w: &[f32]| w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
        let rows = w.chunks_exact(x.len()).zip(b);
        rows.map(|(w, &b)| dot(w) + f64::from(b)).collect()
    };
    let expected = rows.chunks_exact(n_features).map(|row| -> Vec<f32> {
        let x: Vec<f64> = direction(row).into_iter().map(f64::from).collect();
        let hidden = layer(&w1, &b1, &x).into_iter().map(|h| h.max(0.0));
        let logits = layer(&w2, &b2, &hidden.collect::<Vec<_>>());
        logits.into_iter().map(|x| x as f32).collect()
    });
    let expected: Vec<Vec<f32>> = expected.collect();
    let expected: Vec<&[f32]> = expected.iter().map(Vec::as_slice).collect();
    assert_close(&served_logits(&head, &texts), &expected);
}

/// `√d · x / ‖x‖`
fn direction(x: &[f32]) -> Vec<f32> {
    let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let factor = (x.len() as f64 / squares).sqrt();
    x.iter().map(|&x| (f64::from(x) * factor) as f32).collect()
}

/// Raw scores of each text, in the order of labels.
fn served_logits(head: &Path, texts: &[(String, String)]) -> Vec<Vec<f32>> {
    let server = Server::start(&["--head", text(head)]);
    let inputs: Vec<&str> = texts.iter().map(|(text, _)| text.as_str()).collect();
    let body = json!({ "inputs": inputs, "raw_scores": true });
    let answers = server.client().post("/classify", body).ok();
    let of = |answer: &Value| -> Vec<f32> {
        let scores = answer.as_array().expect("scores").iter();
        let mut scores: Vec<_> = scores
            .map(|s| (s["label"].as_str().expect("a label"), s["score"].as_f64()))
            .collect();
        scores.sort_by_key(|(label, _)| *label);
        scores
            .iter()
            .map(|(_, score)| score.expect("a number") as f32)
            .collect()
    };
    answers
        .as_array()
        .expect("answers")
        .iter()
        .map(of)
        .collect()
}

/// That no logit is further off than 1e-5 of the largest.
#[track_caller]
fn assert_close(found: &[Vec<f32>], expected: &[&[f32]]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected
        .iter()
        .flat_map(|row| *row)
        .fold(0f32, |m, x| m.max(x.abs()));
    let pairs = found
        .iter()
        .flatten()
        .zip(expected.iter().flat_map(|row| *row));
    let worst = pairs.fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    println!("largest logit {largest:.3}, largest difference {worst:.2e}");
    assert!(largest > 0.5, "{largest}");
    assert!(worst <= 1e-5 * largest.max(1.0), "{worst}");
}

/// A tensor of `head.safetensors`.
fn tensor(head: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(head.join("head.safetensors")).expect("weights");
    numbers(
        SafeTensors::deserialize(&bytes)
            .expect("tensors")
            .tensor(name)
            .expect(name)
            .data(),
    )
}

/// The embeddings of the set of `n_texts` in a cache.
fn cached(folder: &Path, n_texts: usize) -> Vec<f32> {
    let entries = fs::read_dir(folder).expect("a cache");
    let mut found = entries.filter_map(|entry| {
        let bytes = fs::read(entry.expect("an entry").path()).expect("embeddings");
        let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
        let tensor = tensors.tensor("embeddings").expect("embeddings");
        (tensor.shape()[0] == n_texts).then(|| numbers(tensor.data()))
    });
    found.next().expect("embeddings of as many texts")
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.as_chunks::<4>().0.iter();
    words.map(|&word| f32::from_le_bytes(word)).collect()
}

#[test]
fn texts_are_embedded_once() {
    let out = tempfile::tempdir().expect("a folder");
    let first = train_small(out.path(), &FEW, &["complete", "ring"]);
    let n = |ended: &Ended, what: &str| ended.stderr.matches(what).count();
    assert_eq!(n(&first, "texts embedded by"), 2, "{}", first.stderr);
    let head = fs::read(out.path().join("ring/head/head.safetensors")).expect("a head");
    for more in [&["--resume"][..], &[]] {
        let again = train_small(out.path(), &[&FEW, more].concat(), &["ring"]);
        assert_eq!(n(&again, "texts embedded by"), 0, "{}", again.stderr);
        assert_eq!(n(&again, "embeddings taken from"), 2, "{}", again.stderr);
        let same = fs::read(out.path().join("ring/head/head.safetensors")).expect("a head");
        assert_eq!(head, same);
    }
    let other = train_small(
        out.path(),
        &[&FEW[..], &["--pooling", "cls"]].concat(),
        &["ring"],
    );
    assert_eq!(n(&other, "texts embedded by"), 2, "{}", other.stderr);
}

#[test]
fn heads_that_cannot_be_served_are_refused_in_a_sentence() {
    let (out, head) = small_head(&FEW);
    let other = ModelDir::of_golden("nomic_moe");
    let model = text(other.path());
    let refused = |args: &[&str], fragments: &[&str]| {
        let line = [&["serve", "--hostname", "127.0.0.1", "--port", "0"], args].concat();
        let ended = run(&line);
        let sentence = ended.stderr.lines().last().unwrap_or_default();
        assert!(!ended.status.success(), "{line:?} was served");
        assert!(sentence.starts_with("moeshard: "), "{}", ended.stderr);
        for fragment in fragments {
            assert!(
                sentence.contains(fragment),
                "no {fragment:?} in {sentence:?}"
            );
        }
    };
    let nowhere = out.path().join("nowhere");
    refused(&["--head", text(&nowhere)], &["nowhere", "head.json"]);
    refused(
        &["--head", text(&head), "--model", model],
        &[
            "belongs to the encoder moeshard-mini (256-dimensional",
            "48-dimensional",
        ],
    );
    let weights = head.join("head.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("written");
    refused(
        &["--head", text(&head)],
        &["head.safetensors", "expected", "found"],
    );
}

/// The comparison on real queries; its table is in `benches/results/decentralized.md`.
#[test]
fn banking77_without_a_server_is_nearly_as_good_as_with_one() {
    let Some(data) = data::folder() else { return };
    let test = data::banking77_test(&data);
    let out = tempfile::tempdir().expect("a folder");
    let flags = |partition| {
        let flags = [
            ["--task", "banking77"],
            ["--data", text(&data)],
            ["--partition", partition],
            ["--evaluate-every", "100"],
            ["--checkpoint-every", "0"],
        ];
        flags.concat()
    };
    let topologies = ["d-cliques", "stl-fw:d=10", "random:d=10", "ring"];
    let skewed = out.path().join("skewed");
    let mut rows = compare(&skewed, &flags("shards:k=2"), &topologies, &test);
    let central = out.path().join("central");
    rows.extend(compare(&central, &flags("iid"), &["complete"], &test));
    show(&rows);
    let [d_cliques, stl_fw, random, ring, centralised] = &rows[..] else {
        panic!("{rows:?}");
    };
    let points = |row: &Row| 100.0 * (centralised.nodes[0] - row.nodes[0]);
    assert!(centralised.served >= 0.905, "{centralised:?}");
    assert!(
        points(stl_fw) <= 1.5 && stl_fw.nodes[0] > random.nodes[0],
        "{rows:?}"
    );
    // Ten nodes of a few of 77 intents cannot be a clique that has them all.
    assert!(points(d_cliques) <= 6.0, "{rows:?}");
    assert!(points(ring) >= 20.0, "{rows:?}");
    assert!(stl_fw.served >= centralised.served - 0.01, "{rows:?}");
    assert!(rows.iter().all(|row| row.head.join("head.json").is_file()));
}
