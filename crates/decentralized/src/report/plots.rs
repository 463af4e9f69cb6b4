//! Which charts a page has.

use std::fmt::{self, Write as _};

use super::RunReport;
use crate::record::{Evaluation, Heterogeneity};
use moeshard_charts::chart::{Chart, Line, Point};
use moeshard_charts::scale::{Scale, Unit};
use moeshard_charts::text;

/// The share of a run after which the axis of accuracy must hold everything: before that models are
/// hardly trained, and would leave no room for the differences that matter.
const WARM_UP: f64 = 0.1;

struct Plot {
    title: &'static str,
    note: &'static str,
    across: Across,
    value: fn(&Evaluation) -> Option<Value>,
}

#[derive(Clone, Copy)]
enum Across {
    Epochs,
    Bytes,
}

enum Value {
    /// A share: its mean over nodes, the worst and the best.
    Accuracy(f64, f64, f64),
    /// Any other number, on a logarithmic axis.
    Number(f64),
}

const PLOTS: [Plot; 6] = [
    Plot {
        title: "Accuracy by epoch",
        note: "Mean over nodes; the band is from the worst to the best.",
        across: Across::Epochs,
        value: accuracy,
    },
    Plot {
        title: "Accuracy by bytes sent",
        note: "Every message of every round, of all nodes together.",
        across: Across::Bytes,
        value: accuracy,
    },
    Plot {
        title: "Test loss",
        note: "Mean over nodes.",
        across: Across::Epochs,
        value: |e| Some(Value::Number(e.test_loss)),
    },
    Plot {
        title: "Consensus distance",
        note: "How far models are from their mean: (1/n) Σ ‖θᵢ − θ̄‖².",
        across: Across::Epochs,
        value: |e| Some(Value::Number(e.consensus_distance)),
    },
    Plot {
        title: "Neighborhood heterogeneity: bias",
        note: "How far averages over neighbours are from that over all.",
        across: Across::Epochs,
        value: |e| heterogeneity(e, |h| h.bias),
    },
    Plot {
        title: "Neighborhood heterogeneity: variance",
        note: "What such averages keep of the noise of single nodes.",
        across: Across::Epochs,
        value: |e| heterogeneity(e, |h| h.variance),
    },
];

fn accuracy(evaluation: &Evaluation) -> Option<Value> {
    let accuracy = &evaluation.accuracy;
    Some(Value::Accuracy(accuracy.mean, accuracy.min, accuracy.max))
}

fn heterogeneity(evaluation: &Evaluation, term: fn(&Heterogeneity) -> f64) -> Option<Value> {
    evaluation
        .heterogeneity
        .as_ref()
        .map(|h| Value::Number(term(h)))
}

/// Writes all charts that have something to show.
pub(super) fn write_plots(runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    for plot in &PLOTS {
        let (Some(x), Some(y)) = (x_scale(plot.across, runs), y_scale(plot, runs)) else {
            continue;
        };
        let lines = runs.iter().enumerate().map(|(run_idx, run)| Line {
            run_idx,
            name: &run.header.name,
            points: run
                .evaluations
                .iter()
                .filter_map(|e| point(plot, e))
                .collect(),
        });
        let chart = Chart {
            title: plot.title,
            x_label: plot.across.label(),
            x,
            y,
            lines: lines.filter(|line| !line.points.is_empty()).collect(),
        };
        let (title, note) = (plot.title, plot.note);
        write!(
            out,
            "<figure class=\"card\"><figcaption><b>{title}</b>{note}</figcaption>"
        )?;
        chart.write(out)?;
        out.write_str("</figure>")?;
    }
    Ok(())
}

fn point(plot: &Plot, evaluation: &Evaluation) -> Option<Point> {
    let (y, band, value) = match (plot.value)(evaluation)? {
        Value::Accuracy(mean, worst, best) => {
            let ends = (text::percent(worst, 2), text::percent(best, 2));
            let value = format!("{} ({} to {})", text::percent(mean, 2), ends.0, ends.1);
            (mean, Some((worst, best)), value)
        }
        Value::Number(number) => (number, None, text::number_text(number)),
    };
    let epoch = text::number_text(evaluation.epoch);
    let title = match plot.across {
        Across::Epochs => format!("epoch {epoch}, {value}"),
        Across::Bytes => format!(
            "{} by epoch {epoch}, {value}",
            text::bytes(evaluation.bytes_sent as f64)
        ),
    };
    Some(Point {
        x: plot.across.of(evaluation),
        y,
        band,
        title,
    })
}

impl Across {
    fn of(self, evaluation: &Evaluation) -> f64 {
        match self {
            Self::Epochs => evaluation.epoch,
            Self::Bytes => evaluation.bytes_sent as f64,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Epochs => "epoch",
            Self::Bytes => "bytes sent",
        }
    }
}

fn all<'a>(runs: &'a [RunReport<'_>]) -> impl Iterator<Item = &'a Evaluation> {
    runs.iter().flat_map(|run| run.evaluations)
}

fn x_scale(across: Across, runs: &[RunReport<'_>]) -> Option<Scale> {
    let values = all(runs).map(|evaluation| across.of(evaluation));
    match across {
        // From the start, whenever the first evaluation was; None without any.
        Across::Epochs => Scale::tight(Unit::Number, values.flat_map(|value| [0.0, value])),
        Across::Bytes => Scale::log(Unit::Bytes, values),
    }
}

fn y_scale(plot: &Plot, runs: &[RunReport<'_>]) -> Option<Scale> {
    let end = all(runs)
        .map(|evaluation| evaluation.epoch)
        .fold(0.0, f64::max);
    let (mut shares, mut numbers) = (Vec::new(), Vec::new());
    for evaluation in all(runs) {
        match (plot.value)(evaluation) {
            Some(Value::Accuracy(..)) if evaluation.epoch < WARM_UP * end => {}
            Some(Value::Accuracy(mean, worst, best)) => shares.extend([mean, worst, best]),
            Some(Value::Number(number)) => numbers.push(number),
            None => {}
        }
    }
    Scale::linear(Unit::Percent, shares.into_iter())
        .or_else(|| Scale::log(Unit::Number, numbers.into_iter()))
}
