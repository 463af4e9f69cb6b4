//! One page of HTML: charts of time and balance by skew, and the tables.

use std::fmt::{self, Write as _};

use moeshard_charts::chart::{Chart, Line, Point};
use moeshard_charts::page::{write_head, write_legend};
use moeshard_charts::scale::{Scale, Unit};
use moeshard_charts::text::Escaped;

use crate::report::{Report, Row};
use crate::tables::{Group, Table};

const TITLE: &str = "Strategies of experts by skew of the router";
/// Charts are narrower than on other pages, three in a row.
const STYLE: &str = ".wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,370px),1fr))}\
                     .scroll{margin-top:12px}";

/// What is plotted by skew.
struct Plot {
    title: &'static str,
    note: &'static str,
    /// A value that the axis shows in any case.
    least: f64,
    value: fn(&Row) -> Option<f64>,
    told: fn(&Row) -> String,
}

const PLOTS: [Plot; 3] = [
    Plot {
        title: "Work per rank, max/mean",
        note: "Multiply-adds in experts, as the ranks counted them.",
        least: 1.0,
        value: |row| row.work.max_over_mean,
        told: |row| {
            let ratio = |ratio: Option<f64>| ratio.map_or("–".to_owned(), |r| format!("{r:.4}"));
            let (found, closed) = (row.work.max_over_mean, row.work.closed_form_max_over_mean);
            format!("{}, closed form {}", ratio(found), ratio(closed))
        },
    },
    Plot {
        title: "Time of a pass, ms",
        note: "From ids to pooled vectors, the slowest rank; median of rounds.",
        least: 0.0,
        value: |row| Some(row.times.as_ref()?.median_ms),
        told: |row| {
            let times = row.times.as_ref();
            times.map_or(String::new(), |times| format!("{:.2} ms", times.median_ms))
        },
    },
    Plot {
        title: "Time over that at α = 0",
        note: "Of the same strategy in the same round; median of rounds.",
        least: 1.0,
        value: |row| row.times.as_ref()?.over_uniform,
        told: |row| {
            let over = row.times.as_ref().and_then(|times| times.over_uniform);
            over.map_or(String::new(), |over| format!("{over:.3}"))
        },
    },
];

/// The whole page.
pub(crate) fn html(report: &Report) -> Result<String, fmt::Error> {
    let mut out = String::new();
    let groups = report.groups();
    let mut names: Vec<&str> = Vec::new();
    for name in groups.iter().flat_map(Group::strategies) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    write_head(TITLE, STYLE, names.len(), &mut out)?;
    write!(
        out,
        "<p class=\"common\"><span>{}</span> <span>{}</span> <span><code>{}</code></span></p></header><main>",
        Escaped(&report.processor),
        Escaped(&report.model),
        Escaped(&report.command)
    )?;
    write_legend("Strategies shown", names.iter().copied(), &mut out)?;
    for group in &groups {
        write_group(group, &names, &mut out)?;
    }
    out.write_str("</main></body></html>\n")?;
    Ok(out)
}

fn write_group(group: &Group<'_>, names: &[&str], out: &mut String) -> fmt::Result {
    let title = Escaped(&group.title);
    write!(out, "<section><h2>{title}</h2><div class=\"charts wide\">")?;
    for plot in &PLOTS {
        write_plot(plot, group, names, out)?;
    }
    out.write_str("</div>")?;
    for table in group.tables() {
        write_table(&table, out)?;
    }
    out.write_str("</section>")
}

fn write_plot(plot: &Plot, group: &Group<'_>, names: &[&str], out: &mut String) -> fmt::Result {
    let values = group.rows.iter().filter_map(|row| (plot.value)(row));
    let values: Vec<f64> = values.collect();
    if values.is_empty() {
        return Ok(());
    }
    let skews = group.rows.iter().map(|row| row.skew);
    let with_least = values.into_iter().chain([plot.least]);
    let axes = (
        Scale::tight(Unit::Number, skews),
        Scale::linear(Unit::Number, with_least),
    );
    let (Some(x), Some(y)) = axes else {
        return Ok(());
    };
    let lines = names.iter().enumerate().map(|(run_idx, name)| Line {
        run_idx,
        name,
        points: points(plot, group, name),
    });
    let chart = Chart {
        title: plot.title,
        x_label: "skew α of the router",
        x,
        y,
        lines: lines.filter(|line| !line.points.is_empty()).collect(),
    };
    let Plot { title, note, .. } = plot;
    write!(
        out,
        "<figure class=\"card\"><figcaption><b>{title}</b>{note}</figcaption>"
    )?;
    chart.write(out)?;
    out.write_str("</figure>")
}

/// Of one strategy, from left to right.
fn points(plot: &Plot, group: &Group<'_>, name: &str) -> Vec<Point> {
    let rows = group.rows.iter().filter(|row| row.strategy == name);
    let point = |row: &&Row| {
        Some(Point {
            x: row.skew,
            y: (plot.value)(row)?,
            band: None,
            title: format!("α = {}: {}", row.skew, (plot.told)(row)),
        })
    };
    let mut points: Vec<Point> = rows.filter_map(point).collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    points
}

fn write_table(table: &Table, out: &mut String) -> fmt::Result {
    out.write_str("<div class=\"scroll\"><table><thead><tr>")?;
    for (i, cell) in table.head.iter().enumerate() {
        let class = if i == 0 { "" } else { " class=\"n\"" };
        write!(out, "<th{class}>{}</th>", Escaped(cell))?;
    }
    out.write_str("</tr></thead><tbody>")?;
    for row in &table.rows {
        out.write_str("<tr>")?;
        for (i, cell) in row.iter().enumerate() {
            let cell = Escaped(cell);
            match i {
                0 => write!(out, "<th>{cell}</th>")?,
                _ => write!(out, "<td class=\"n\">{cell}</td>")?,
            }
        }
        out.write_str("</tr>")?;
    }
    out.write_str("</tbody></table></div>")
}
