//! Pages made of made-up runs.

mod sample;

use std::path::Path;

use moeshard_decentralized::report::{RunReport, write_html};
use sample::samples;

fn page(title: &str, runs: &[RunReport<'_>]) -> String {
    let mut page = Vec::new();
    write_html(title, runs, &mut page).expect("memory");
    String::from_utf8(page).expect("text")
}

fn save(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(path, page).expect("a folder for files of tests");
}

#[test]
fn a_sample_to_look_at() {
    let samples = samples(100, 100);
    let runs: Vec<RunReport<'_>> = samples.iter().map(sample::Sample::report).collect();
    let page = page("Topologies on MNIST, two shards a node", &runs);
    save("report.html", &page);
    eprintln!("{} bytes", page.len());
}
