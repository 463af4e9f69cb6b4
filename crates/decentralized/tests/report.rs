//! Pages made of made-up runs. The one to look at is `report.html` in Cargo's folder for files of
//! tests (`target/tmp`).

mod sample;

use std::path::Path;
use std::time::{Duration, Instant};

use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::mixing::MixingMatrix;
use moeshard_decentralized::record::{Evaluation, Heterogeneity, RunHeader, Spread};
use moeshard_decentralized::report::{RunReport, write_html};
use sample::{Sample, metropolis_hastings, samples};

fn page(title: &str, runs: &[RunReport<'_>]) -> String {
    let mut page = Vec::new();
    write_html(title, runs, &mut page).expect("memory");
    let page = String::from_utf8(page).expect("text");
    check_markup(&page);
    page
}

fn page_of(samples: &[Sample]) -> String {
    let runs: Vec<RunReport<'_>> = samples.iter().map(Sample::report).collect();
    page("Topologies on MNIST, two shards a node", &runs)
}

fn save(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(path, page).expect("a folder for files of tests");
}

/// Tags are closed in the order in which they were opened, attributes are quoted, coordinates are
/// numbers, and nothing comes from elsewhere.
fn check_markup(page: &str) {
    let (head, rest) = page.split_once("<style>").expect("a style sheet");
    let (style, body) = rest.split_once("</style>").expect("its end");
    assert_eq!(style.matches('{').count(), style.matches('}').count());
    assert!(!style.contains("url(") && !style.contains("@import"));
    let mut open = Vec::new();
    for part in [head, body] {
        let mut pieces = part.split('<');
        let before = pieces.next().expect("text before the first tag");
        assert!(!before.contains('>'), "{before}");
        for piece in pieces {
            let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("<{piece}"));
            assert!(!text.contains('>'), "stray > in {text}");
            check_tag(tag, &mut open);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

fn check_tag<'a>(tag: &'a str, open: &mut Vec<&'a str>) {
    let name = tag
        .split([' ', '/'])
        .find(|name| !name.is_empty())
        .expect("a name");
    assert!(
        !["script", "link", "img", "iframe"].contains(&name),
        "<{tag}>"
    );
    if tag.starts_with('/') {
        let opened = open.pop();
        assert_eq!(opened, Some(name), "{open:?}");
        return;
    }
    let is_alone = tag.ends_with('/') || ["!doctype", "meta", "input"].contains(&name);
    if !is_alone {
        open.push(name);
    }
    assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
    for (i, value) in tag.split('"').enumerate() {
        let is_drawn = ["svg", "path", "circle", "rect", "text"].contains(&name);
        if i % 2 == 0 {
            let is_loaded = value.contains("src=") || value.contains("href=");
            assert!(!is_loaded && !value.contains(" on"), "<{tag}>");
        } else if is_drawn {
            assert!(!value.contains("NaN") && !value.contains("inf"), "<{tag}>");
        }
    }
}

fn identity(n_nodes: usize) -> MixingMatrix {
    metropolis_hastings(n_nodes, &[])
}

fn run<'a>(
    header: &'a RunHeader,
    evaluations: &'a [Evaluation],
    mixing: &'a MixingMatrix,
) -> RunReport<'a> {
    RunReport {
        header,
        evaluations,
        mixing: Some(mixing),
        cliques: &[],
        classes: None,
    }
}

fn header(name: &str) -> RunHeader {
    RunHeader {
        name: name.into(),
        epochs: 1.0,
        ..RunHeader::default()
    }
}

fn evaluation(epoch: f64, accuracy: f64) -> Evaluation {
    Evaluation {
        epoch,
        round: epoch as u64,
        accuracy: Spread::of(&[accuracy; 3]).expect("values"),
        test_loss: 0.5,
        consensus_distance: 0.25,
        bytes_sent: (epoch * 1e6) as u64,
        ..Evaluation::default()
    }
}

#[test]
fn a_page_shows_every_run_in_the_table_the_charts_and_its_graph() {
    let samples = samples(100, 100);
    let page = page_of(&samples);
    save("report.html", &page);
    for (run_idx, sample) in samples.iter().enumerate() {
        assert!(page.contains(&format!("<tr class=\"r{run_idx}\">")));
        // Two charts have bands, all six lines.
        assert_eq!(page.matches(&format!("run band r{run_idx}\"")).count(), 2);
        assert_eq!(
            page.matches(&format!("<g class=\"run r{run_idx}\"><path class=\"line\""))
                .count(),
            6
        );
        assert_eq!(
            page.matches(&format!("card topology r{run_idx}\"")).count(),
            1
        );
        let last = sample.evaluations.last().expect("evaluations");
        let mean = format!(">{:.2} %</td>", last.accuracy.mean * 100.0);
        assert!(page.contains(&mean), "{mean}");
    }
    // Every node of every graph.
    assert_eq!(
        page.matches(" neighbour").count() - page.matches(" neighbours").count(),
        0
    );
    assert_eq!(page.matches("<title>node 17, ").count(), 8);
    assert_eq!(page.matches("After mixing").count(), 8);
    assert_eq!(page.matches("Its clique").count(), 2);
}

#[test]
fn the_same_runs_give_the_same_page() {
    assert_eq!(page_of(&samples(40, 10)), page_of(&samples(40, 10)));
}

#[test]
fn large_reports_are_small_and_quick() {
    let samples = samples(200, 100);
    let start = Instant::now();
    let page = page_of(&samples);
    let time = start.elapsed();
    save("report-200.html", &page);
    println!("{} bytes in {time:?}", page.len());
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert!(time < Duration::from_secs(1), "{time:?}");
}

#[test]
fn a_thousand_nodes_are_a_matrix() {
    let samples = samples(1000, 3);
    let page = page_of(&samples);
    save("report-1000.html", &page);
    assert_eq!(page.matches("Adjacency matrix of 1000 nodes").count(), 8);
    // Whole cliques, or nodes of every class.
    assert_eq!(page.matches("The first 200 of 1,000 nodes").count(), 2);
    assert_eq!(page.matches("One of 5 of the 1,000 nodes").count(), 6);
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
}

#[test]
fn topologies_alone_have_no_charts() {
    let mut samples = samples(100, 1);
    for sample in &mut samples {
        sample.evaluations.clear();
        let header = &mut sample.header;
        (header.epochs, header.learning_rate, header.batch_size) = (0.0, 0.0, 0);
        header.algorithm.clear();
        header.model.clear();
    }
    let page = page_of(&samples);
    save("topologies.html", &page);
    assert!(!page.contains("class=\"plot\"") && !page.contains("<h2>Training"));
    assert!(!page.contains("learning rate") && !page.contains("Worst node"));
    assert_eq!(page.matches("card topology").count(), 8);
}

#[test]
fn text_is_never_markup() {
    let hostile = "<script>alert(1)</script>\"'&\u{1}";
    let header = RunHeader {
        topology: hostile.into(),
        algorithm: hostile.into(),
        model: hostile.into(),
        task: hostile.into(),
        partition: hostile.into(),
        ..header(hostile)
    };
    let other = self::header("other");
    let (evaluations, mixing) = ([evaluation(0.0, 0.1), evaluation(1.0, 0.5)], identity(3));
    let runs = [
        run(&header, &evaluations, &mixing),
        run(&other, &evaluations, &mixing),
    ];
    let page = page(hostile, &runs);
    assert!(!page.contains("<script") && !page.contains('\u{1}'));
    assert!(page.contains("<h1>&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp; </h1>"));
}

#[test]
fn runs_of_little_are_pages_too() {
    let header = header("a");
    let one = identity(1);
    let none = page("nothing", &[]);
    assert!(none.contains("There are no runs."));
    let unevaluated = page("no evaluations", &[run(&header, &[], &one)]);
    assert!(unevaluated.contains("No run has been evaluated yet."));
    for evaluations in [vec![evaluation(0.0, 0.1)], vec![evaluation(1.0, 0.1)]] {
        let single = page("one evaluation", &[run(&header, &evaluations, &one)]);
        assert!(single.contains("pt last"));
    }
    let equal = [0.0, 1.0, 2.0].map(|epoch| evaluation(epoch, 1.0));
    let equal = page("all equal", &[run(&header, &equal, &one)]);
    assert!(equal.contains(">100 %</text>") && !equal.contains(">105 %"));
    let empty = MixingMatrix::new(Vec::new()).expect("no nodes");
    page("no nodes", &[run(&header, &[], &empty)]);
    let no_graph = RunReport {
        mixing: None,
        ..run(&header, &[], &one)
    };
    assert!(!page("no graph", &[no_graph]).contains("<h2>Topologies"));
}

#[test]
fn a_run_that_diverged_leaves_gaps() {
    let header = header("diverged");
    let numbers = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        -1.0,
        0.0,
        f64::MAX,
        f64::MIN_POSITIVE,
    ];
    let all: Vec<Evaluation> = numbers
        .iter()
        .enumerate()
        .map(|(i, &number)| Evaluation {
            accuracy: Spread::of(&[number, 0.5]).expect("values"),
            test_loss: number,
            consensus_distance: number,
            heterogeneity: Some(Heterogeneity {
                bias: number,
                variance: number,
            }),
            train_s: number,
            ..evaluation(i as f64, 0.5)
        })
        .collect();
    let mixing = identity(2);
    for n_evaluations in 0..=all.len() {
        page("diverged", &[run(&header, &all[..n_evaluations], &mixing)]);
    }
}

#[test]
fn cliques_and_classes_that_do_not_fit_are_left_out() {
    let (header, mixing) = (header("a"), identity(4));
    let classes = ClassCounts::new(3, vec![1; 9]);
    let report = RunReport {
        cliques: &[vec![0, 1, 7], vec![2, 3], vec![]],
        classes: Some(&classes),
        ..run(&header, &[], &mixing)
    };
    let page = page("misfits", &[report]);
    assert_eq!(page.matches("<title>node ").count(), 4);
    assert!(!page.contains("After mixing"));
}

#[test]
fn many_runs_have_colours_and_dashes() {
    let headers: Vec<RunHeader> = (0..30).map(|i| header(&format!("run {i}"))).collect();
    let evaluations = [0.0, 1.0, 2.0].map(|epoch| evaluation(epoch, 0.3 * epoch));
    let mixing = identity(2);
    let runs: Vec<RunReport<'_>> = headers
        .iter()
        .map(|header| run(header, &evaluations, &mixing))
        .collect();
    let page = page("many", &runs);
    assert!(page.contains(".r29{--c:var(--c5);--dash:none}") && page.contains("--dash:7 3"));
}
