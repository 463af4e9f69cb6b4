//! What the table of runs says: settings, and columns of numbers.

use super::RunReport;
use crate::record::{Evaluation, RunHeader};
use moeshard_charts::text;

/// A setting of a run.
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// Its value says what it is, where there is little room.
    pub(super) is_plain: bool,
    /// An empty text if it is not known.
    pub(super) value: fn(&RunHeader) -> String,
}

const fn plain(name: &'static str, value: fn(&RunHeader) -> String) -> Setting {
    Setting {
        name,
        is_plain: true,
        value,
    }
}

const fn named(name: &'static str, value: fn(&RunHeader) -> String) -> Setting {
    Setting {
        name,
        is_plain: false,
        value,
    }
}

/// Settings that are told of each run where runs differ, and above the table where they do not.
pub(super) const SETTINGS: [Setting; 10] = [
    plain("task", |h| h.task.clone()),
    plain("partition", |h| h.partition.clone()),
    plain("model", |h| h.model.clone()),
    named("parameters", |h| positive(h.n_params)),
    plain("algorithm", |h| h.algorithm.clone()),
    named("nodes", |h| positive(h.n_nodes)),
    named("learning rate", |h| number(h.learning_rate)),
    named("batch", |h| positive(h.batch_size)),
    named("momentum", |h| number(h.momentum)),
    named("seed", |h| h.seed.to_string()),
];

/// A column: its head, what the head tells under the pointer, and its cell as markup (empty if there is
/// nothing to tell).
pub(super) struct Column {
    pub(super) head: &'static str,
    pub(super) title: &'static str,
    pub(super) cell: fn(&RunReport<'_>) -> String,
}

/// The columns of numbers, those of training first.
pub(super) const COLUMNS: [Column; 11] = [
    Column {
        head: "Bytes sent",
        title: "Over all nodes and rounds",
        cell: |run| last(run, |e| text::bytes(e.bytes_sent as f64)),
    },
    Column {
        head: "Training time",
        title: "Without evaluation",
        cell: |run| last(run, |e| text::seconds(e.train_s)),
    },
    Column {
        head: "Absence bias",
        title: "Mean absolute deviation from one of the columns of W, over rounds: what absent nodes do to it",
        cell: |run| last(run, |e| optional(e.absence_bias)),
    },
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
        // One part is what everybody expects.
        cell: |run| match run.header.n_components {
            0 | 1 => String::new(),
            n_components => n_components.to_string(),
        },
    },
    Column {
        head: "Messages a round",
        title: "Directed, over all nodes",
        cell: |run| text::mean_count(run.header.messages_per_round),
    },
    Column {
        head: "Bytes a round",
        title: "Directed, over all nodes",
        cell: |run| text::bytes(run.header.bytes_per_round),
    },
    Column {
        head: "H",
        title: "Neighborhood heterogeneity of labels: bias + variance",
        cell: heterogeneity,
    },
    Column {
        head: "Skew",
        title: "Mean over cliques of the L1 distance of their classes from everybody's",
        cell: |run| optional(run.header.mean_skew),
    },
    Column {
        head: "Gap",
        title: "Spectral gap 1 − |λ₂(W)|",
        cell: |run| optional(run.header.spectral_gap),
    },
];

fn heterogeneity(run: &RunReport<'_>) -> String {
    let Some(h) = run.header.heterogeneity else {
        return String::new();
    };
    let [bias, variance, total] = [h.bias, h.variance, h.total()].map(measured);
    format!("<span title=\"bias {bias} + variance {variance}\">{total}</span>")
}

fn last(run: &RunReport<'_>, cell: fn(&Evaluation) -> String) -> String {
    run.evaluations.last().map(cell).unwrap_or_default()
}

fn optional(number: Option<f64>) -> String {
    number.map(measured).unwrap_or_default()
}

// What rounding leaves of zero is zero.
fn measured(number: f64) -> String {
    match number.abs() < 1e-12 {
        true => "0".to_owned(),
        false => text::number_text(number),
    }
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
