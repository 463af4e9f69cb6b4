//! The picture of a graph: nodes as discs and edges as lines, or its adjacency matrix if that is too
//! many of either.

use std::fmt::{self, Write as _};

use super::edges::{Edge, Graph};
use super::layout::{Place, circle_order, places};
use crate::classes::ClassCounts;
use moeshard_charts::svg::{Coord, Path};

/// More nodes or edges than this are an adjacency matrix: lines would be a filled disc, and heavy.
const MAX_NODES: usize = 200;
const MAX_EDGES: usize = 6_000;
/// More arrows than this would hide the lines.
const MAX_ARROWS: usize = 1_500;
/// Units of the picture's side.
const SIZE: f64 = 1_000.0;
/// Rows and columns of the picture of an adjacency matrix.
const MAX_BINS: usize = 200;
/// Shades of it.
const N_SHADES: usize = 4;

/// Whether the graph is drawn with a disc for each node.
pub(super) fn is_node_link(graph: &Graph) -> bool {
    graph.n_nodes <= MAX_NODES && graph.edges.len() <= MAX_EDGES
}

/// Whether some of its edges are drawn with an arrow.
pub(super) fn has_arrows(graph: &Graph) -> bool {
    let n_directed = graph.edges.iter().filter(|edge| edge.is_directed).count();
    is_node_link(graph) && (1..=MAX_ARROWS).contains(&n_directed)
}

/// Writes the picture of a graph; `n_colours` is how many colours there are for nodes.
pub(super) fn write_graph(
    graph: &Graph,
    classes: Option<&ClassCounts>,
    n_colours: usize,
    out: &mut String,
) -> fmt::Result {
    match is_node_link(graph) {
        true => write_node_link(graph, classes, n_colours, out),
        false => write_matrix(graph, out),
    }
}

fn write_node_link(
    graph: &Graph,
    classes: Option<&ClassCounts>,
    n_colours: usize,
    out: &mut String,
) -> fmt::Result {
    let radius = (SIZE / 9.0 / (graph.n_nodes as f64).sqrt()).clamp(7.0, 26.0);
    let margin = radius + 4.0;
    let scaled = |place: Place| {
        let scale = |value: f64| margin + value * (SIZE - 2.0 * margin);
        (scale(place.0), scale(place.1))
    };
    let places: Vec<Place> = places(graph).into_iter().map(scaled).collect();
    write!(
        out,
        "<svg class=\"graph\" viewBox=\"0 0 {SIZE} {SIZE}\" role=\"img\" aria-label=\"{} nodes, {} \
         edges\">",
        graph.n_nodes,
        graph.edges.len()
    )?;
    write_edges(graph, &places, radius, out)?;
    for (node, place) in places.into_iter().enumerate() {
        let (x, y) = (Coord(place.0.round()), Coord(place.1.round()));
        write!(
            out,
            "<circle{} cx=\"{x}\" cy=\"{y}\" r=\"{}\"><title>",
            colour(graph, node, n_colours),
            Coord(radius)
        )?;
        write_node(graph, classes, node, out)?;
        out.write_str("</title></circle>")?;
    }
    out.write_str("</svg>")
}

// By class where there is a colour for each, else by clique.
fn colour(graph: &Graph, node: usize, n_colours: usize) -> String {
    let of_class = graph.class_of[node].filter(|&class| class < n_colours);
    let all_classes = graph
        .class_of
        .iter()
        .flatten()
        .all(|&class| class < n_colours);
    match (of_class, graph.clique_of[node]) {
        (Some(class), _) if all_classes => format!(" class=\"k{class}\""),
        (_, Some(clique)) => format!(" class=\"k{}\"", clique % n_colours.max(1)),
        _ => String::new(),
    }
}

// Edges within cliques are a light ground on which those between them stand out.
fn write_edges(graph: &Graph, places: &[Place], radius: f64, out: &mut String) -> fmt::Result {
    let (mut within, mut between, mut arrows) = (Path::default(), Path::default(), Path::default());
    let has_arrows = has_arrows(graph);
    for edge in &graph.edges {
        let is_within = graph.is_within_clique(edge);
        let path = if is_within { &mut within } else { &mut between };
        let (from, to) = (places[edge.from], places[edge.to]);
        path.start((from.0.round(), from.1.round()));
        path.line((to.0.round(), to.1.round()));
        if edge.is_directed && has_arrows {
            add_arrow(&mut arrows, edge, places, radius);
        }
    }
    // The more edges the fainter, so that their crossings do not become a surface.
    let n_within = graph
        .edges
        .iter()
        .filter(|edge| graph.is_within_clique(edge))
        .count();
    let n_between = graph.edges.len() - n_within;
    if !within.is_empty() {
        write!(out, "<path class=\"within\" d=\"{within}\"/>")?;
    }
    if !between.is_empty() {
        let opacity = (6.0 / (n_between.max(1) as f64).sqrt()).clamp(0.07, 0.8);
        write!(
            out,
            "<path class=\"between\" opacity=\"{opacity:.2}\" d=\"{between}\"/>"
        )?;
    }
    if !arrows.is_empty() {
        write!(out, "<path class=\"arrows\" d=\"{arrows}\"/>")?;
    }
    Ok(())
}

// A small triangle whose tip touches the receiver's disc.
fn add_arrow(arrows: &mut Path, edge: &Edge, places: &[Place], radius: f64) {
    let (from, to) = (places[edge.from], places[edge.to]);
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy);
    if length < 4.0 * radius {
        return;
    }
    let (dx, dy) = (dx / length, dy / length);
    let at = |back: f64, aside: f64| {
        let (x, y) = (to.0 - back * dx - aside * dy, to.1 - back * dy + aside * dx);
        (x.round(), y.round())
    };
    arrows.start(at(radius + 1.0, 0.0));
    arrows.line(at(radius + 13.0, 4.0));
    arrows.line(at(radius + 13.0, -4.0));
    arrows.close();
}

// What a node tells under the pointer.
fn write_node(
    graph: &Graph,
    classes: Option<&ClassCounts>,
    node: usize,
    out: &mut String,
) -> fmt::Result {
    write!(out, "node {node}")?;
    if let Some(clique) = graph.clique_of[node] {
        write!(out, ", clique {clique}")?;
    }
    let n_neighbours = graph.neighbours[node].len();
    let plural = if n_neighbours == 1 { "" } else { "s" };
    write!(out, ", {n_neighbours} neighbour{plural}")?;
    if let Some(classes) = classes.filter(|classes| node < classes.n_nodes()) {
        out.write_str("; ")?;
        super::histogram::write_shares(&classes.proportions(node), out)?;
    }
    Ok(())
}

// A square of shades, nodes along their circle or in the order of cliques or classes: rows receive,
// columns send. Many nodes share a cell, whose shade says how many of its pairs are edges.
fn write_matrix(graph: &Graph, out: &mut String) -> fmt::Result {
    let n_bins = graph.n_nodes.min(MAX_BINS);
    let mut bin_of = vec![0; graph.n_nodes];
    let circle = circle_order(graph).filter(|_| graph.cliques.is_empty());
    let order = circle.unwrap_or_else(|| graph.order());
    for (position, node) in order.into_iter().enumerate() {
        bin_of[node] = position * n_bins / graph.n_nodes;
    }
    let mut n_edges = vec![0u32; n_bins * n_bins];
    for edge in &graph.edges {
        let (sender, receiver) = (bin_of[edge.from], bin_of[edge.to]);
        n_edges[receiver * n_bins + sender] += 1;
        if !edge.is_directed {
            n_edges[sender * n_bins + receiver] += 1;
        }
    }
    let most = f64::from(n_edges.iter().copied().max().unwrap_or(0).max(1));
    let shade = |n: u32| (N_SHADES as f64 * (f64::from(n) / most).sqrt()).ceil() as usize;
    let shades: Vec<usize> = n_edges.into_iter().map(shade).collect();
    write!(
        out,
        "<svg class=\"graph cells\" viewBox=\"0 0 {n_bins} {n_bins}\" role=\"img\" \
         aria-label=\"Adjacency matrix of {} nodes, {} edges\"><g>",
        graph.n_nodes,
        graph.edges.len()
    )?;
    write_cells(&shades, n_bins, N_SHADES, out)?;
    out.write_str("</g></svg>")
}

/// Writes a picture of cells, `shades` row by row, 0 for none and `n_shades` for the strongest: a path
/// a shade, in which neighbouring cells of a row are one line.
pub(super) fn write_cells(
    shades: &[usize],
    n_cols: usize,
    n_shades: usize,
    out: &mut String,
) -> fmt::Result {
    let mut paths = vec![Path::default(); n_shades];
    for (row, shades) in shades.chunks(n_cols.max(1)).enumerate() {
        let mut col = 0;
        for run in shades.chunk_by(|a, b| a == b) {
            if let Some(path) = run[0].checked_sub(1).and_then(|shade| paths.get_mut(shade)) {
                path.run((col as f64, row as f64 + 0.5), run.len());
            }
            col += run.len();
        }
    }
    for (shade, path) in paths
        .iter()
        .enumerate()
        .filter(|(_, path)| !path.is_empty())
    {
        let opacity = (shade + 1) as f64 / n_shades as f64;
        write!(out, "<path opacity=\"{opacity:.2}\" d=\"{path}\"/>")?;
    }
    Ok(())
}
