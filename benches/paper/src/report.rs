//! What was found, as JSON and as tables.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::page;
use crate::tables::Group;
use crate::work::Exchanged;

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// Seconds since 1970.
    pub time: u64,
    /// As it was called.
    pub command: String,
    /// Of the CPU or the GPUs.
    pub processor: String,
    /// `4 layers, d_model 128, …`
    pub model: String,
    /// In the order in which they were run.
    pub rows: Vec<Row>,
}

/// One strategy at one skew.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// With its capacity factor, if it has one.
    pub strategy: String,
    /// Experts of a layer.
    pub n_experts: usize,
    /// Ranks.
    pub n_ranks: usize,
    /// Sequences of each rank.
    pub batch: usize,
    /// Tokens of each.
    pub length: usize,
    /// α of the router.
    pub skew: f64,
    /// Experts that the router prefers.
    pub n_popular: usize,
    /// Of one pass.
    pub work: Work,
    /// `None` if nothing was timed.
    pub times: Option<Times>,
}

/// What one pass does, as the ranks counted it, beside the closed form.
#[derive(Clone, Debug, Serialize)]
pub struct Work {
    /// In expert matrices, `[n_ranks]`.
    pub multiply_adds: Vec<u64>,
    /// What follows from the probabilities of the router, `[n_ranks]`.
    pub closed_form: Vec<f64>,
    /// The largest share by which a rank is off its closed form.
    pub off: f64,
    /// Of the multiply-adds of ranks.
    pub max_over_mean: Option<f64>,
    /// Of the closed form.
    pub closed_form_max_over_mean: Option<f64>,
    /// Bytes between ranks, `[n_ranks]`.
    pub exchanged: Vec<Exchanged>,
    /// Token-expert assignments that a capacity dropped.
    pub n_dropped: u64,
    /// All of them.
    pub n_assignments: u64,
    /// Of all ranks together, if slots of a capacity that no token fills were computed too; here none is.
    pub padded_multiply_adds: Option<f64>,
}

/// How long passes took, end to end.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    /// Over rounds.
    pub median_ms: f64,
    /// Median over rounds of the time over that of the same strategy at skew 0 in the same round.
    pub over_uniform: Option<f64>,
    /// Each round.
    pub rounds_ms: Vec<f64>,
}

impl Report {
    /// Nothing yet.
    pub fn new(processor: String, model: String) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            time: time.map_or(0, |time| time.as_secs()),
            command: format!(
                "cargo run --release -p moeshard-paper -- {}",
                arguments.join(" ")
            ),
            processor,
            model,
            rows: Vec::new(),
        }
    }

    /// Writes paper.json, paper.md and paper.html.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let files = [
            ("paper.json", serde_json::to_string_pretty(self)?),
            ("paper.md", self.markdown()),
            ("paper.html", page::html(self)?),
        ];
        for (name, text) in files {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    pub(crate) fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for row in &self.rows {
            let title = format!(
                "{} experts, {} ranks, {} × {} tokens each",
                row.n_experts, row.n_ranks, row.batch, row.length
            );
            match groups.iter_mut().find(|group| group.title == title) {
                Some(group) => group.rows.push(row),
                None => groups.push(Group {
                    title,
                    rows: vec![row],
                }),
            }
        }
        groups
    }

    /// All tables.
    pub fn markdown(&self) -> String {
        let mut text = format!("`{}`\n\n{}; {}\n", self.command, self.processor, self.model);
        for group in self.groups() {
            let _ = write!(text, "\n## {}\n", group.title);
            for table in group.tables() {
                let _ = write!(text, "\n{table}");
            }
        }
        text
    }
}
