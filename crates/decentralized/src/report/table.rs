//! The table of runs, and what they have in common.

use std::fmt::{self, Write as _};

use super::RunReport;
use super::columns::{COLUMNS, Column, SETTINGS, Setting};
use crate::record::{RunHeader, Spread};
use moeshard_charts::svg::Coord;
use moeshard_charts::text::{self, Escaped};

/// Units of the picture of a spread.
const BAR_WIDTH: f64 = 110.0;
const BAR_HEIGHT: f64 = 16.0;

/// Writes what all runs have in common, in one line.
pub(super) fn write_common(runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    out.write_str("<p class=\"common\">")?;
    for Setting { name, value, .. } in SETTINGS {
        if let Some(value) = common(runs, value).filter(|value| !value.is_empty()) {
            write!(out, "<span>{name} <b>{}</b></span> ", Escaped(&value))?;
        }
    }
    out.write_str("</p>")
}

/// Writes the table: a row a run; columns without anything to tell are left out.
pub(super) fn write_table(runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    let is_shown = |column: &&Column| runs.iter().any(|run| !(column.cell)(run).is_empty());
    let columns: Vec<&Column> = COLUMNS.iter().filter(is_shown).collect();
    let range = accuracy_range(runs);
    out.write_str("<div class=\"scroll\"><table><thead><tr><th>Run</th>")?;
    if range.is_some() {
        out.write_str(
            "<th class=\"n\">Worst node</th><th class=\"n\">Mean accuracy</th>\
             <th class=\"n\">Best node</th><th></th>",
        )?;
    }
    for Column { head, title, .. } in &columns {
        write!(out, "<th class=\"n\" title=\"{title}\">{head}</th>")?;
    }
    out.write_str("</tr></thead><tbody>")?;
    for (run_idx, run) in runs.iter().enumerate() {
        write!(out, "<tr class=\"r{run_idx}\">")?;
        write_name(run, runs, out)?;
        if let Some(range) = range {
            write_accuracy(run, range, best_mean(runs), out)?;
        }
        for column in &columns {
            write!(out, "<td class=\"n\">{}</td>", (column.cell)(run))?;
        }
        out.write_str("</tr>")?;
    }
    out.write_str("</tbody></table></div>")
}

/// The topology of a run that is called something else.
pub(super) fn other_name(header: &RunHeader) -> Option<String> {
    (header.name != header.topology).then(|| header.topology.clone())
}

// The name, and below it the topology and the settings in which runs differ.
fn write_name(run: &RunReport<'_>, runs: &[RunReport<'_>], out: &mut String) -> fmt::Result {
    let mut below: Vec<String> = other_name(run.header).into_iter().collect();
    let is_different = |setting: &Setting| common(runs, setting.value).is_none();
    for setting in SETTINGS.into_iter().filter(is_different) {
        let value = (setting.value)(run.header);
        match (value.is_empty(), setting.is_plain) {
            (true, _) => {}
            (false, true) => below.push(value),
            (false, false) => below.push(format!("{} {value}", setting.name)),
        }
    }
    write!(
        out,
        "<th scope=\"row\"><i class=\"swatch\"></i>{}<small>{}</small></th>",
        Escaped(&run.header.name),
        Escaped(&below.join(" · "))
    )
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

// The setting if it is the same for all runs.
fn common(runs: &[RunReport<'_>], value: fn(&RunHeader) -> String) -> Option<String> {
    let mut values = runs.iter().map(|run| value(run.header));
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}
