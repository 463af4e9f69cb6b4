//! `moeshard topology`, and training on what it writes.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{fails, program, shown, succeeds, text};

/// What `moeshard topology` shows.
#[track_caller]
fn topology(args: &[&str]) -> String {
    shown(&succeeds(&[&["topology"], args].concat()))
}

#[track_caller]
fn json(args: &[&str]) -> Value {
    let shown = topology(&[args, &["--json"]].concat());
    serde_json::from_str(&shown).expect(&shown)
}

#[track_caller]
fn refused(args: &[&str], expect: &str) {
    fails(&[&["topology"], args].concat(), expect);
}

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

/// A file of that content in `folder`.
fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    fs::write(&path, content).expect("written");
    text(&path).to_owned()
}

fn path(folder: &TempDir, name: &str) -> String {
    text(&folder.path().join(name)).to_owned()
}

#[test]
fn list_has_every_topology() {
    let listed = topology(&["list"]);
    for rule in moeshard_decentralized::topology::known() {
        let line = listed.lines().find(|line| {
            let name = line.split_whitespace().next();
            name == Some(rule.name) && !line.starts_with(' ')
        });
        assert!(line.expect(rule.name).ends_with(rule.summary));
        for parameter in rule.parameters {
            assert!(listed.contains(parameter.summary), "{}", parameter.name);
        }
    }
}

/// The table of the D-Cliques paper; of small-world, which it draws at random, within 2 %.
#[test]
fn compare_counts_edges_as_the_paper_does() {
    let specs = [
        "complete",
        "d-cliques:steps=0,inter=ring",
        "d-cliques:steps=0,inter=fractal",
        "d-cliques:steps=0,inter=full",
        "d-cliques:steps=0,inter=small-world",
    ];
    for (n_nodes, expect, small_world) in [
        ("100", [4_950, 460, 495, 495], 608.0),
        ("1000", [499_500, 4_600, 4_995, 9_450], 7_291.0),
    ] {
        let args = [&["compare", "--nodes", n_nodes], &specs[..]].concat();
        let rows = json(&args);
        let edges = |row: usize| rows[row]["n_edges"].as_u64().expect("edges");
        assert_eq!([0, 1, 2, 3].map(edges), expect);
        assert!((edges(4) as f64 / small_world - 1.0).abs() < 0.02);
        // Rows are in the order given, under the names that the rules give themselves.
        assert_eq!(rows[0]["name"], "complete");
        assert_eq!(rows[2]["name"], "d-cliques:size=10,inter=fractal,steps=0");
        let table = topology(&args);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 6, "{table}");
        assert!(lines[4].starts_with("d-cliques:size=10,inter=full,steps=0"));
        for expect in [" 495 ", "9,450"] {
            assert!(lines[4].contains(expect) == (expect.contains(',') == (n_nodes == "1000")));
        }
    }
}

#[test]
fn measures_are_those_of_closed_forms() {
    let ring = json(&["inspect", "ring", "--nodes", "12", "--n-params", "10"]);
    let number = |pointer: &str| {
        ring.pointer(pointer)
            .and_then(Value::as_f64)
            .expect(pointer)
    };
    let eigenvalue = (1.0 + 2.0 * (std::f64::consts::TAU / 12.0).cos()) / 3.0;
    for (pointer, expect) in [
        ("/n_nodes", 12.0),
        ("/n_edges", 12.0),
        ("/n_links", 24.0),
        ("/mean_degree", 2.0),
        ("/n_components", 1.0),
        ("/contraction_per_round", eigenvalue),
        ("/spectral_gap", 1.0 - eigenvalue),
        ("/smallest_eigenvalue", -1.0 / 3.0),
        ("/heterogeneity/variance", 1.0 / 3.0 - 1.0 / 12.0),
        ("/traffic/messages_per_round", 24.0),
        ("/traffic/bytes_per_round", 24.0 * 40.0),
        ("/traffic/max_bytes_sent_per_round", 80.0),
    ] {
        assert!((number(pointer) - expect).abs() < 1e-9, "{pointer}: {ring}");
    }
    // One class of ten a node: 1 − 1/10 too much of it, 9/10 too little of the others.
    let one_class = [
        "inspect",
        "complete",
        "--partition",
        "one-class",
        "--nodes",
        "50",
    ];
    let complete = json(&one_class);
    let skew = &complete["label_skew"];
    assert!((skew["nodes"]["mean"].as_f64().expect("a skew") - 1.8).abs() < 1e-9);
    assert!(skew["neighbourhoods"]["max"].as_f64().expect("a skew") < 1e-9);
    assert!(skew["cliques"].is_null());
    let table = topology(&one_class);
    assert!(table.contains("10 equal classes, one-class"), "{table}");
    assert!(table.contains("1: connected") && table.contains("1.8000 in the mean"));
    let alone = ["inspect", "random:d=1", "--nodes", "8", "--n-classes", "2"];
    let table = topology(&alone);
    assert!(table.contains("4: disconnected"), "{table}");
}

#[test]
fn clique_averaging_doubles_messages_within_cliques() {
    let args = ["inspect", "d-cliques", "--nodes", "100"];
    let d_cliques = json(&args);
    assert_eq!(d_cliques["traffic"]["messages_per_round"], 990.0);
    let both = &d_cliques["traffic_with_clique_averaging"];
    assert_eq!(both["messages_per_round"], 1890.0);
    assert_eq!(both["bytes_per_round"], 1890.0 * 31_400.0);
    let of_cliques = &d_cliques["label_skew"]["cliques"]["mean"];
    let of_nodes = &d_cliques["label_skew"]["nodes"]["mean"];
    assert!(of_cliques.as_f64() < of_nodes.as_f64());
    let table = topology(&args);
    assert!(table.contains("  of 10 cliques") && table.contains("  with clique averaging"));
}

#[test]
fn what_build_writes_is_what_inspect_reads() {
    let folder = folder();
    let file = path(&folder, "built.json");
    let nodes = [
        "--nodes",
        "40",
        "--partition",
        "dirichlet:alpha=0.1",
        "--seed",
        "3",
    ];
    for spec in [
        "d-cliques:size=7,inter=ring",
        "stl-fw:d=4",
        "base",
        "random:d=3",
    ] {
        let built =
            topology(&[&["build", "--topology", spec, "--out", &file], &nodes[..]].concat());
        assert!(built.contains("10 equal classes, dirichlet:alpha=0.1"));
        // The file knows its nodes and what they hold.
        let mut read = json(&["inspect", &file]);
        let mut made = json(&[&["inspect", spec], &nodes[..]].concat());
        assert_eq!(read["name"], Value::from(file.as_str()));
        for of in [&mut read, &mut made] {
            of["name"] = Value::Null;
            of["partition"] = Value::Null;
        }
        assert_eq!(read, made, "{spec}");
        // Others may be asked about.
        let other = json(&["inspect", &file, "--partition", "iid"]);
        assert_ne!(other["heterogeneity"], made["heterogeneity"]);
        assert_eq!(other["n_edges"], made["n_edges"]);
    }
    // A ring of as many nodes as the file has.
    let rows = json(&["compare", "ring", &file]);
    assert_eq!(
        (&rows[0]["n_edges"], &rows[1]["n_nodes"]),
        (&40.into(), &40.into())
    );
}

/// Table A, and the file that is learned.
#[test]
fn learn_shows_every_iteration() {
    let folder = folder();
    let (trace, out) = (path(&folder, "trace.jsonl"), path(&folder, "learned.json"));
    for oracle in [&[][..], &["--dense"]] {
        let args = [
            "learn",
            "--nodes",
            "100",
            "--partition",
            "one-class",
            "--d-max",
            "9",
        ];
        let files = ["--lambda", "0.5", "--trace", &trace, "--out", &out];
        let table = topology(&[&args[..], &files, oracle].concat());
        assert_eq!(table.lines().count(), 12, "{table}");
        assert!(table.contains("g = bias + 0.5 · variance"), "{table}");
        let lines = fs::read_to_string(&trace).expect("a trace");
        let lines: Vec<Value> = (lines.lines())
            .map(|line| serde_json::from_str(line).expect(line))
            .collect();
        for (l, line) in lines.iter().enumerate() {
            let share = 1.0 / (l + 1) as f64;
            let bias = line["heterogeneity"]["bias"].as_f64().expect("a bias");
            assert!((bias - (share - 0.1)).abs() < 1e-9);
            assert_eq!((line["iteration"].as_u64(), line["max_degree"].as_u64()), {
                let l = Some(l as u64);
                (l, l)
            });
        }
        let inspected = json(&["inspect", &out]);
        assert_eq!(inspected["topology"], "stl-fw:d=9,lambda=0.5");
        assert_eq!(
            (lines.len(), inspected["max_degree"].as_u64()),
            (10, Some(9))
        );
        assert!(inspected["heterogeneity"]["bias"].as_f64().expect("a bias") < 1e-9);
    }
    // λ = noise / (classes · B).
    let derived = ["learn", "--nodes", "30", "--d-max", "3", "--undirected"];
    let table = topology(&[&derived[..], &["--class-distance", "4", "--noise", "8"]].concat());
    assert!(table.contains("g = bias + 0.2 · variance"), "{table}");
}

#[test]
fn classes_may_be_a_file() {
    let folder = folder();
    // By turns of one class and of the other.
    let classes = write(&folder, "classes.csv", "cat,dog\n4,0\n0,4\n4,0\n0,4\n");
    let ring = json(&["inspect", "ring", "--classes", &classes]);
    assert_eq!(
        (ring["n_nodes"].as_u64(), ring["n_edges"].as_u64()),
        (Some(4), Some(4))
    );
    // A node and its two neighbours are a third and two thirds.
    let bias = ring["heterogeneity"]["bias"].as_f64().expect("a bias");
    assert!((bias - 2.0 * (1.0f64 / 6.0).powi(2)).abs() < 1e-12);
    refused(
        &["inspect", "ring", "--classes", &classes, "--nodes", "5"],
        &format!("--nodes must be 4, the nodes of {classes}, got 5"),
    );
    refused(
        &[
            "inspect",
            "ring",
            "--classes",
            &classes,
            "--partition",
            "iid",
        ],
        "--classes says what nodes hold, so that no --partition",
    );
    let odd = write(&folder, "odd.csv", "cat,dog\n4,0\n0,many\n");
    refused(
        &["inspect", "ring", "--classes", &odd],
        &format!("{odd}: line 3: expected a number of examples, 0 to 4294967295, found \"many\""),
    );
}

#[test]
fn variables_reach_the_commands_inside() {
    let mut inspect = program(&["topology", "inspect", "ring", "--json"]);
    let output = inspect.env("MOESHARD_NODES", "12").output().expect("runs");
    assert!(shown(&output).contains("\"n_nodes\": 12"), "{output:?}");
}

#[test]
fn a_page_draws_what_is_compared() {
    let folder = folder();
    let page = path(&folder, "page.html");
    let args = [
        "compare",
        "ring",
        "d-cliques",
        "--nodes",
        "30",
        "--html",
        &page,
    ];
    topology(&args);
    let html = fs::read_to_string(&page).expect("a page");
    assert!(html.contains("Topologies of 30 nodes") && html.contains("<svg"));
    assert!(html.contains("d-cliques:size=10,inter=full") && !html.contains("Accuracy"));
    refused(
        &["inspect", "ring", "--html", "/nowhere/page.html"],
        "cannot write /nowhere/page.html: No such file or directory",
    );
}

#[test]
fn impossible_arguments_are_refused_in_a_sentence() {
    let learn = ["learn", "--nodes", "20", "--d-max"];
    refused(
        &[&learn[..], &["0"]].concat(),
        "--d-max must be at least 1, got 0",
    );
    refused(
        &[&learn[..], &["20"]].concat(),
        "--d-max must be less than the 20 nodes, got 20",
    );
    refused(
        &[&learn[..], &["3", "--lambda=-1"]].concat(),
        "stl-fw: lambda is -1, expected a non-negative number",
    );
    refused(
        &[&learn[..], &["3", "--noise", "1"]].concat(),
        "--noise has no effect without --class-distance",
    );
    refused(
        &[&learn[..], &["3", "--noise", "1", "--lambda", "1"]].concat(),
        "--lambda follows from --class-distance and --noise",
    );
    refused(
        &["inspect", "stl-fw:d=0", "--nodes", "20"],
        "stl-fw: d is 0, expected at least 1 and less than the 20 nodes",
    );
    refused(
        &["inspect", "rings"],
        "there is no topology `rings`, expected one of complete, ring,",
    );
    refused(
        &["inspect", "random:degree=3"],
        "random has no parameter `degree`, expected one of d",
    );
    refused(
        &["inspect", "ring", "--nodes", "0"],
        "--nodes must be at least 1, got 0",
    );
    refused(
        &["inspect", "ring", "--n-params", "0"],
        "--n-params must be at least 1, got 0",
    );
    refused(
        &["inspect", "ring", "--n-classes", "0"],
        "--n-classes must be at least 1, got 0",
    );
    refused(
        &["inspect", "ring", "--partition", "shard:k=2"],
        "partition \"shard:k=2\": expected one of iid, shards:k=2",
    );
    refused(
        &["inspect", "ring", "--task", "mnist"],
        "--task mnist needs the folder of its files: --data DIR",
    );
    refused(
        &["inspect", "ring", "--task", "imagenet"],
        "--task must be none, mnist, fashion-mnist, cifar10, banking77 or a .csv, .tsv or .jsonl file, \
         got `imagenet`",
    );
}

#[test]
fn hopeless_sizes_are_refused() {
    refused(
        &["inspect", "ring", "--nodes", "10000000"],
        "--nodes must be at most 100000, got 10000000",
    );
    refused(
        &["inspect", "complete", "--nodes", "100000"],
        "complete over 100000 nodes has some 10000000000 links, expected at most 67108864",
    );
    refused(
        &["learn", "--nodes", "100000", "--d-max", "50000"],
        "stl-fw over 100000 nodes has some 5000100000 links, expected at most 67108864",
    );
    refused(
        &["learn", "--nodes", "5000", "--d-max", "3", "--dense"],
        "--dense is for at most 4000 nodes, got 5000",
    );
    refused(
        &[
            "inspect",
            "ring",
            "--nodes",
            "1000",
            "--n-classes",
            "100000000",
        ],
        "the number of classes must be at most 67108, got 100000000",
    );
}

#[test]
fn files_that_are_no_topologies_are_named() {
    let folder = folder();
    let check = |content: &str, expect: &str| {
        let file = write(&folder, "t.json", content);
        let expect = format!("moeshard: {file}: {expect}");
        for args in [["inspect", &file], ["compare", &format!("file:{file}")]] {
            refused(&args, &expect);
        }
    };
    check(
        r#"{"topology": "", "rounds": [[[[0, 0.5], [1, 0.5]], [[0, 0.4], [1, 0.6]]]]}"#,
        "round 0: column 0 of the mixing matrix sums to 0.9, expected 1 (within 1e-9)",
    );
    check(
        r#"{"topology": "", "rounds": [[[[0, 0.5], [1, 0."#,
        "expected a topology as JSON, found EOF while parsing",
    );
    check(
        "",
        "expected a topology as JSON, found EOF while parsing a value",
    );
    refused(
        &["inspect", "/nowhere/t.json"],
        "moeshard: /nowhere/t.json: No such file or directory (os error 2)",
    );
    let apart = r#"{"topology": "apart", "rounds": [[[[0, 1]], [[1, 1]]]]}"#;
    let apart = write(&folder, "apart.json", apart);
    let table = topology(&["inspect", &apart]);
    assert!(
        table.contains("2: disconnected") && table.contains("not known"),
        "{table}"
    );
    refused(
        &["inspect", &apart, "--nodes", "3"],
        &format!("{apart}: the topology has 2 nodes, expected 3"),
    );
    refused(
        &["inspect", &apart, "--partition", "one-class"],
        "one-class: the number of nodes is 2, expected at least 10",
    );
}

/// IDX files of images whose labels are those of their brightest pixels.
fn tiny_mnist() -> TempDir {
    let folder = folder();
    for (part, n) in [("train", 200u32), ("t10k", 50)] {
        let header = |magic: u32, sizes: &[u32]| -> Vec<u8> {
            let words = [magic].into_iter().chain(sizes.iter().copied());
            words.flat_map(u32::to_be_bytes).collect()
        };
        let mut images = header(0x803, &[n, 28, 28]);
        let mut labels = header(0x801, &[n]);
        for example in 0..n {
            let label = (example % 10) as usize;
            images.extend((0..784).map(|pixel| u8::from(pixel == label) * 255));
            labels.push(label as u8);
        }
        write(&folder, &format!("{part}-images-idx3-ubyte"), images);
        write(&folder, &format!("{part}-labels-idx1-ubyte"), labels);
    }
    folder
}

#[test]
fn texts_are_dealt_out_as_for_training() {
    let folder = folder();
    let (file, out) = (path(&folder, "built.json"), path(&folder, "run"));
    let texts =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/end_to_end/data/topics.csv");
    let spec = "stl-fw:d=3";
    let shared = ["--task", text(&texts), "--nodes", "8", "--topology", spec];
    succeeds(&[&["topology", "build", "--out", &file][..], &shared].concat());
    succeeds(&[&["train", "--epochs", "1", "--out", &out][..], &shared].concat());
    let written = Path::new(&out).join("stl-fw-d-3/topology.json");
    let same = fs::read(written).expect("a topology") == fs::read(&file).expect("a topology");
    assert!(same, "training and building make different topologies");
}

#[test]
fn training_takes_topologies_of_files() {
    let data = tiny_mnist();
    let folder = folder();
    let (file, out) = (path(&folder, "a:b,c.json"), path(&folder, "run"));
    let shared = [
        "--data",
        text(data.path()),
        "--task",
        "mnist",
        "--partition",
        "shards:k=2",
    ];
    let nodes = ["--nodes", "10", "--seed", "5"];
    let spec = "d-cliques:size=5,inter=ring";
    let build = ["topology", "build", "--topology", spec, "--out", &file];
    succeeds(&[&build[..], &shared, &nodes].concat());
    let train = |args: &[&'static str], topology: &str| {
        let train = [
            "train",
            "--epochs",
            "1",
            "--batch-size",
            "10",
            "--out",
            &out,
        ];
        let topology = ["--topology", topology];
        let args = [&train[..], &shared, args, &topology].concat();
        args.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    fn run(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    // Training by the rule writes the very file.
    succeeds(&run(&train(&nodes, spec)));
    let written = Path::new(&out).join("d-cliques-size-5-inter-ring/topology.json");
    let same = fs::read(written).expect("a topology") == fs::read(&file).expect("a topology");
    assert!(same, "training and building make different topologies");
    let of_file = format!("file:{file}");
    succeeds(&run(&train(&nodes, &of_file)));
    fails(
        &run(&train(&["--nodes", "9"], &of_file)),
        &format!("moeshard: {file}: the topology has 10 nodes, expected 9"),
    );
    let alone: Vec<String> = (0..10).map(|node| format!("[[{node}, 1]]")).collect();
    let alone = format!(
        r#"{{"topology": "alone", "rounds": [[{}]]}}"#,
        alone.join(",")
    );
    let alone = write(&folder, "alone.json", alone);
    fails(
        &run(&train(&nodes, &format!("file:{alone}"))),
        "falls into 10 components",
    );
}
