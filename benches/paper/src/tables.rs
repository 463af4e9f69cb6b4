//! What was found, side by side: a row for each strategy, a column for each skew.

use std::fmt;

use moeshard_charts::text::{bytes, count};

use crate::report::{Row, Work};

/// Rows of one model on one number of ranks with one batch.
pub(crate) struct Group<'a> {
    /// `8 experts, 4 ranks, 8 × 120 tokens each`
    pub(crate) title: String,
    pub(crate) rows: Vec<&'a Row>,
}

/// Cells as text.
pub(crate) struct Table {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Group<'_> {
    /// In the order of the rows.
    pub(crate) fn strategies(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !names.contains(&row.strategy.as_str()) {
                names.push(&row.strategy);
            }
        }
        names
    }

    /// In the order of the rows.
    pub(crate) fn skews(&self) -> Vec<f64> {
        let mut skews = Vec::new();
        for row in &self.rows {
            if !skews.contains(&row.skew) {
                skews.push(row.skew);
            }
        }
        skews
    }

    /// All tables that have something to tell.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let ratio = |ratio: Option<f64>| ratio.map_or("–".to_owned(), |r| format!("{r:.3}"));
        let mut tables = vec![
            self.by_skew("work per rank, max/mean (closed form)", |row| {
                let Work {
                    max_over_mean,
                    closed_form_max_over_mean,
                    ..
                } = row.work;
                let (found, closed) = (ratio(max_over_mean), ratio(closed_form_max_over_mean));
                Some(format!("{found} ({closed})"))
            }),
        ];
        if self.rows.iter().any(|row| row.times.is_some()) {
            tables.push(self.by_skew("ms, median of rounds", |row| {
                let times = row.times.as_ref()?;
                Some(format!("{:.2}", times.median_ms))
            }));
            tables.push(
                self.by_skew("time over that at α = 0, median of rounds", |row| {
                    Some(ratio(row.times.as_ref()?.over_uniform))
                }),
            );
        }
        if self.rows.iter().any(|row| row.work.n_dropped > 0) {
            tables.push(self.by_skew("dropped", |row| {
                let share = row.work.n_dropped as f64 / row.work.n_assignments as f64;
                Some(format!("{:.1} %", 100.0 * share))
            }));
        }
        tables.push(self.totals());
        tables
    }

    fn by_skew(&self, what: &str, cell: impl Fn(&Row) -> Option<String>) -> Table {
        let skews = self.skews();
        let head = skews.iter().map(|skew| format!("α = {skew}"));
        let row = |strategy: &&str| {
            let found = |skew: &f64| {
                let mut rows = self.rows.iter();
                let row = rows.find(|row| row.strategy == *strategy && row.skew == *skew);
                row.and_then(|row| cell(row))
                    .unwrap_or_else(|| "–".to_owned())
            };
            let cells = skews.iter().map(found);
            std::iter::once((*strategy).to_owned())
                .chain(cells)
                .collect()
        };
        Table {
            head: std::iter::once(what.to_owned()).chain(head).collect(),
            rows: self.strategies().iter().map(row).collect(),
        }
    }

    /// Sums at the largest skew that there is.
    fn totals(&self) -> Table {
        let most = self.skews().into_iter().fold(0.0, f64::max);
        let head = [
            &format!("one pass at α = {most}"),
            "multiply-adds of all ranks",
            "of the busiest",
            "received by a rank",
            "if padded to the capacity",
        ];
        let row = |row: &&Row| {
            let work = &row.work;
            let all: u64 = work.multiply_adds.iter().sum();
            let busiest = work.multiply_adds.iter().max().copied().unwrap_or(0);
            let received = work.exchanged.iter().map(|e| e.received).max();
            let padded = work.padded_multiply_adds;
            vec![
                row.strategy.clone(),
                count(all),
                count(busiest),
                bytes(received.unwrap_or(0) as f64),
                padded.map_or("–".to_owned(), |padded| {
                    format!("{:.1} × all", padded / all as f64)
                }),
            ]
        };
        let rows = self.rows.iter().copied();
        Table {
            head: head.map(str::to_owned).to_vec(),
            rows: rows
                .filter(|row| row.skew == most)
                .map(|r| row(&r))
                .collect(),
        }
    }
}

/// As Markdown.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", self.head.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(self.head.len()))?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        Ok(())
    }
}
