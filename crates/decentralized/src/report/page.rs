//! The page around the pictures.

use std::fmt::{self, Write as _};

use super::edges::Graph;
use super::graph::{has_arrows, is_node_link, write_graph};
use super::histogram::Histograms;
use super::{RunReport, plots, table};
use moeshard_charts::page::{write_head, write_legend};
use moeshard_charts::text::{self, Escaped};

const STYLE: &str = include_str!("style.css");

/// Colours of classes in the style sheet.
const N_CLASS_COLOURS: usize = 10;

/// Writes the whole page.
pub(super) fn write_page(title: &str, runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    write_head(title, STYLE, runs.len(), out)?;
    table::write_common(runs, out)?;
    out.write_str("</header><main>")?;
    if runs.is_empty() {
        out.write_str("<p>There are no runs.</p>")?;
    } else {
        write_sections(runs, out)?;
    }
    out.write_str("</main></body></html>\n")
}

fn write_sections(runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    out.write_str("<section><h2>Runs</h2>")?;
    table::write_table(runs, out)?;
    out.write_str("</section>")?;
    if runs.len() > 1 {
        let names = runs.iter().map(|run| run.header.name.as_str());
        write_legend("Runs shown", names, out)?;
    }
    if runs.iter().any(|run| !run.evaluations.is_empty()) {
        out.write_str("<section><h2>Training</h2><div class=\"charts\">")?;
        plots::write_plots(runs, out)?;
        out.write_str("</div></section>")?;
    } else if runs.iter().any(|run| run.header.epochs > 0.0) {
        out.write_str("<p class=\"note\">No run has been evaluated yet.</p>")?;
    }
    write_topologies(runs, out)
}

fn write_topologies(runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    let graph = |run: &RunReport<'_>| {
        let mixing = run.mixing?;
        Some(Graph::new(mixing, run.cliques, run.classes))
    };
    let graphs: Vec<Option<Graph>> = runs.iter().map(graph).collect();
    if graphs.iter().all(Option::is_none) {
        return Ok(());
    }
    out.write_str("<section><h2>Topologies</h2>")?;
    write_reading(&graphs, out)?;
    out.write_str("<div class=\"topologies\">")?;
    for (run_idx, (run, graph)) in runs.iter().zip(&graphs).enumerate() {
        if let Some(graph) = graph {
            write_topology(run_idx, run, graph, out)?;
        }
    }
    out.write_str("</div></section>")
}

// How to read the pictures: only what is on this page.
fn write_reading(graphs: &[Option<Graph>], out: &mut String) -> fmt::Result {
    let graphs = || graphs.iter().flatten();
    out.write_str("<p class=\"note\">")?;
    if graphs().any(|graph| is_node_link(graph) && !graph.cliques.is_empty()) {
        out.write_str("Edges within cliques are light, those between cliques strong. ")?;
    }
    if graphs().any(has_arrows) {
        out.write_str("Arrows point to the node that receives. ")?;
    }
    if graphs().any(|graph| !is_node_link(graph)) {
        out.write_str("Large graphs are adjacency matrices: rows receive, columns send. ")?;
    }
    let classes = graphs().flat_map(|graph| graph.class_of.iter().flatten());
    let n_classes = classes.max().map(|class| class + 1);
    if n_classes.is_some() {
        out.write_str(
            "Below each graph its label histograms: a column for each node, in the order of cliques or \
             main classes, a row for each class; the stronger the colour, the larger the share. Skew is \
             the mean L1 distance from the shares of all nodes together. ",
        )?;
    }
    out.write_str("</p>")?;
    let has_colours = |&n: &usize| n <= N_CLASS_COLOURS && graphs().any(is_node_link);
    let Some(n_classes) = n_classes.filter(has_colours) else {
        return Ok(());
    };
    out.write_str("<p class=\"classes\">Main class of a node: ")?;
    for class in 0..n_classes {
        write!(out, "<span><i class=\"dot k{class}\"></i>{class}</span> ")?;
    }
    out.write_str("</p>")
}

fn write_topology(
    run_idx: usize,
    run: &RunReport<'_>,
    graph: &Graph,
    out: &mut String,
) -> fmt::Result {
    write!(
        out,
        "<figure class=\"card topology r{run_idx}\"><figcaption><b><i class=\"swatch\"></i>{}</b>{}{} \
         nodes, {} edges",
        Escaped(&run.header.name),
        Escaped(&table::other_name(run.header).map_or_else(String::new, |name| name + " · ")),
        text::count(graph.n_nodes as u64),
        text::count(graph.edges.len() as u64),
    )?;
    if run.header.period > 1 {
        write!(out, ", round 1 of {}", run.header.period)?;
    }
    out.write_str("</figcaption>")?;
    write_graph(graph, run.classes, N_CLASS_COLOURS, out)?;
    let histograms = run
        .mixing
        .and_then(|mixing| Histograms::new(graph, mixing, run.classes));
    if let Some(histograms) = histograms {
        histograms.write(out)?;
    }
    out.write_str("</figure>")
}
