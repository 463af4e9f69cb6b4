//! The table of runs, and what they have in common.

use std::fmt::{self, Write as _};

use super::RunReport;
use super::svg::Coord;
use super::text::{self, Escaped};
use crate::record::{RunHeader, Spread};

/// Units of the picture of a spread.
const BAR_WIDTH: f64 = 130.0;
const BAR_HEIGHT: f64 = 16.0;

/// A fact of a run's settings; an empty text if it is not known.
type Fact = (&'static str, fn(&RunHeader) -> String);

/// Facts that are columns where runs differ and a line above the table where they do not.
const FACTS: [Fact; 10] = [
    ("Task", |h| h.task.clone()),
    ("Partition", |h| h.partition.clone()),
    ("Model", |h| h.model.clone()),
    ("Parameters", |h| positive(h.n_params)),
    ("Algorithm", |h| h.algorithm.clone()),
    ("Nodes", |h| positive(h.n_nodes)),
    ("Learning rate", |h| number(h.learning_rate)),
    ("Batch", |h| positive(h.batch_size)),
    ("Momentum", |h| number(h.momentum)),
    ("Seed", |h| h.seed.to_string()),
];

/// A column of numbers: its head, what the head tells under the pointer, and its cell.
struct Column {
    head: &'static str,
    title: &'static str,
    cell: fn(&RunReport<'_>) -> String,
}

const GRAPH_COLUMNS: [Column; 8] = [
    Column {
        head: "Edges",
        title: "Pairs of nodes that exchange models",
        cell: |run| text::count(run.header.n_edges),
    },
    Column {
        head: "Degree",
        title: "Most nodes that one node receives from or sends to in a round",
        cell: |run| run.header.max_degree.to_string(),
    },
    Column {
        head: "Parts",
        title: "Parts of the graph without an edge between them",
        cell: |run| run.header.n_components.to_string(),
    },
    Column {
        head: "Messages / round",
        title: "Directed, over all nodes",
        cell: |run| text::mean_count(run.header.messages_per_round),
    },
    Column {
        head: "Bytes / round",
        title: "Directed, over all nodes",
        cell: |run| text::bytes(run.header.bytes_per_round),
    },
    Column {
        head: "H",
        title: "Neighborhood heterogeneity of labels: bias + variance",
        cell: |run| match run.header.heterogeneity {
            Some(h) => {
                let terms = (text::number_text(h.bias), text::number_text(h.variance));
                format!(
                    "<span title=\"bias {} + variance {}\">{}</span>",
                    terms.0,
                    terms.1,
                    text::number_text(h.total())
                )
            }
            None => String::new(),
        },
    },
    Column {
        head: "Skew",
        title: "Mean over cliques of the L1 distance of their classes from everybody's",
        cell: |run| {
            run.header
                .mean_skew
                .map(text::number_text)
                .unwrap_or_default()
        },
    },
    Column {
        head: "Gap",
        title: "Spectral gap 1 − |λ₂(W)|",
        cell: |run| {
            run.header
                .spectral_gap
                .map(text::number_text)
                .unwrap_or_default()
        },
    },
];

const TRAINING_COLUMNS: [Column; 2] = [
    Column {
        head: "Sent",
        title: "Bytes sent over all nodes and rounds",
        cell: |run| {
            run.evaluations
                .last()
                .map(|e| text::bytes(e.bytes_sent as f64))
                .unwrap_or_default()
        },
    },
    Column {
        head: "Training",
        title: "Time of training, without evaluation",
        cell: |run| {
            run.evaluations
                .last()
                .map(|e| text::seconds(e.train_s))
                .unwrap_or_default()
        },
    },
];

/// Writes what all runs have in common, in one line.
pub(super) fn write_facts(runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    out.write_str("<p class=\"facts\">")?;
    for (name, fact) in FACTS {
        if let Some(value) = common(runs, fact).filter(|value| !value.is_empty()) {
            write!(out, "<span>{name} <b>{}</b></span> ", Escaped(&value))?;
        }
    }
    out.write_str("</p>")
}

/// Writes the table: a row a run; columns without anything to tell are left out.
pub(super) fn write_table(runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    let facts: Vec<Fact> = FACTS
        .into_iter()
        .filter(|(_, fact)| common(runs, *fact).is_none())
        .collect();
    let is_shown = |column: &&Column| {
        let has_any = runs.iter().any(|run| !(column.cell)(run).is_empty());
        // One part is what everybody expects.
        has_any && (column.head != "Parts" || runs.iter().any(|run| run.header.n_components > 1))
    };
    let graph: Vec<&Column> = GRAPH_COLUMNS.iter().filter(is_shown).collect();
    let training: Vec<&Column> = TRAINING_COLUMNS.iter().filter(is_shown).collect();
    let range = accuracy_range(runs);
    out.write_str("<div class=\"scroll\"><table><thead><tr><th>Run</th><th>Topology</th>")?;
    for (name, _) in &facts {
        write!(out, "<th>{name}</th>")?;
    }
    let write_heads = |columns: &[&Column], out: &mut String| -> fmt::Result {
        let mut columns = columns.iter();
        columns
            .try_for_each(|c| write!(out, "<th class=\"n\" title=\"{}\">{}</th>", c.title, c.head))
    };
    write_heads(&graph, out)?;
    if range.is_some() {
        out.write_str(
            "<th class=\"n\" title=\"Accuracy at the last evaluation\">Worst node</th>\
             <th class=\"n\">Mean</th><th class=\"n\">Best node</th><th></th>",
        )?;
    }
    write_heads(&training, out)?;
    out.write_str("</tr></thead><tbody>")?;
    for (run_idx, run) in runs.iter().enumerate() {
        write!(
            out,
            "<tr class=\"r{run_idx}\"><th scope=\"row\"><i class=\"swatch\"></i>{}</th><td>{}</td>",
            Escaped(&run.header.name),
            Escaped(&run.header.topology)
        )?;
        for (_, fact) in &facts {
            write!(out, "<td>{}</td>", Escaped(&fact(run.header)))?;
        }
        write_cells(&graph, run, out)?;
        if let Some(range) = range {
            write_accuracy(run, range, best_mean(runs), out)?;
        }
        write_cells(&training, run, out)?;
        out.write_str("</tr>")?;
    }
    out.write_str("</tbody></table></div>")
}

fn write_cells(columns: &[&Column], run: &RunReport<'_>, out: &mut String) -> fmt::Result {
    columns
        .iter()
        .try_for_each(|column| write!(out, "<td class=\"n\">{}</td>", (column.cell)(run)))
}

// Three numbers and their picture, on one scale for all runs.
fn write_accuracy(
    run: &RunReport<'_>,
    range: (f64, f64),
    best: f64,
    out: &mut String,
) -> fmt::Result {
    let Some(accuracy) = final_accuracy(run) else {
        return out.write_str(
            "<td class=\"n\">–</td><td class=\"n\">–</td><td class=\"n\">–</td><td></td>",
        );
    };
    let class = if accuracy.mean == best { "n best" } else { "n" };
    write!(
        out,
        "<td class=\"n\">{}</td><td class=\"{class}\">{}</td><td class=\"n\">{}</td><td>",
        text::percent(accuracy.min, 2),
        text::percent(accuracy.mean, 2),
        text::percent(accuracy.max, 2)
    )?;
    write_bar(&accuracy, range, out)?;
    out.write_str("</td>")
}

// From the worst to the best node, thick between the quartiles, with the mean as a dot.
fn write_bar(accuracy: &Spread, (low, high): (f64, f64), out: &mut String) -> fmt::Result {
    let span = (high - low).max(1e-9);
    let at = |value: f64| Coord(4.0 + (value - low) / span * (BAR_WIDTH - 8.0));
    let middle = BAR_HEIGHT / 2.0;
    write!(
        out,
        "<svg class=\"bar\" width=\"{BAR_WIDTH}\" height=\"{BAR_HEIGHT}\" role=\"img\" \
         aria-label=\"Spread over nodes\"><title>worst {}, lower quartile {}, median {}, upper quartile {}, best {}</title>\
         <path class=\"whole\" d=\"M{} {middle}H{}\"/><path class=\"half\" d=\"M{} {middle}H{}\"/>\
         <circle cx=\"{}\" cy=\"{middle}\" r=\"3.5\"/></svg>",
        text::percent(accuracy.min, 2),
        text::percent(accuracy.lower_quartile, 2),
        text::percent(accuracy.median, 2),
        text::percent(accuracy.upper_quartile, 2),
        text::percent(accuracy.max, 2),
        at(accuracy.min),
        at(accuracy.max),
        at(accuracy.lower_quartile),
        at(accuracy.upper_quartile),
        at(accuracy.mean)
    )
}

fn final_accuracy(run: &RunReport<'_>) -> Option<Spread> {
    let accuracy = run.evaluations.last()?.accuracy;
    let is_number = [accuracy.min, accuracy.mean, accuracy.max]
        .iter()
        .all(|value| value.is_finite());
    is_number.then_some(accuracy)
}

// From the worst to the best node of all runs.
fn accuracy_range(runs: &[RunReport<'_>]) -> Option<(f64, f64)> {
    let ends = runs
        .iter()
        .filter_map(final_accuracy)
        .map(|accuracy| (accuracy.min, accuracy.max));
    ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

fn best_mean(runs: &[RunReport<'_>]) -> f64 {
    runs.iter()
        .filter_map(final_accuracy)
        .map(|accuracy| accuracy.mean)
        .fold(f64::MIN, f64::max)
}

// The fact if it is the same for all runs.
fn common(runs: &[RunReport<'_>], fact: fn(&RunHeader) -> String) -> Option<String> {
    let mut values = runs.iter().map(|run| fact(run.header));
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

fn positive(number: usize) -> String {
    match number {
        0 => String::new(),
        number => text::count(number as u64),
    }
}

fn number(number: f64) -> String {
    match number == 0.0 {
        true => String::new(),
        false => text::number_text(number),
    }
}
