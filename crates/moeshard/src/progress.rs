//! Progress of something long: a bar on a terminal, a log line now and then elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// How often a log line is written where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Rounds of training.
    Rounds,
    /// Texts.
    Texts,
    /// Neighbours of a node.
    Neighbours,
}

impl Unit {
    fn text(self, n: u64) -> String {
        match self {
            Unit::Bytes => HumanBytes(n).to_string(),
            Unit::Rounds => format!("{} rounds", HumanCount(n)),
            Unit::Texts => format!("{} texts", HumanCount(n)),
            Unit::Neighbours => format!("{} neighbours", HumanCount(n)),
        }
    }
}

/// Progress of one task.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: Unit,
    bar: ProgressBar,
    started: Instant,
    /// Units that were done before it.
    before: u64,
    /// When the last log line was written.
    logged: Mutex<Instant>,
}

impl Progress {
    /// Starts a task of `total` bytes, if that is known.
    #[must_use]
    pub fn new(label: impl Into<String>, total: Option<u64>) -> Self {
        Self::of(Unit::Bytes, label, total)
    }

    /// Starts a task of `total` units, if that is known.
    #[must_use]
    pub fn of(unit: Unit, label: impl Into<String>, total: Option<u64>) -> Self {
        let label = label.into();
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        bar.set_style(style(unit, total.is_some()));
        bar.set_message(label.clone());
        let now = Instant::now();
        Self {
            label,
            unit,
            bar,
            started: now,
            before: 0,
            logged: Mutex::new(now),
        }
    }

    /// The task goes on from where it was interrupted: what was done before says nothing of its pace.
    #[must_use]
    pub fn from(mut self, done: u64) -> Self {
        self.before = done;
        self.bar.set_position(done);
        self.bar.reset_eta();
        self
    }

    /// Some more units are done.
    pub fn add(&self, n_bytes: u64) {
        self.bar.inc(n_bytes);
        self.log();
    }

    /// So many units are done, and this is worth saying besides.
    pub fn set(&self, n_bytes: u64, note: &str) {
        self.bar.set_position(n_bytes);
        if !note.is_empty() {
            self.bar.set_message(format!("{} · {note}", self.label));
        }
        self.log();
    }

    /// Everything is done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        let done = self.unit.text(self.bar.position());
        let took = self.started.elapsed();
        tracing::debug!("{}: {done} in {:.1} s", self.label, took.as_secs_f64());
    }

    fn log(&self) {
        if !self.bar.is_hidden() {
            return;
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.elapsed() < LOG_EVERY {
            return;
        }
        *logged = Instant::now();
        drop(logged);
        tracing::info!("{}", self.line());
    }

    fn line(&self) -> String {
        let done = self.bar.position();
        let now_done = done.saturating_sub(self.before);
        let rate = now_done as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let message = self.bar.message();
        let unit = self.unit;
        let (so_far, per_second) = (unit.text(done), unit.text(rate as u64));
        match self.bar.length().filter(|&total| total > 0) {
            None => format!("{message}: {so_far}, {per_second}/s"),
            Some(total) => {
                let percent = 100.0 * done as f64 / total as f64;
                let rest = total.saturating_sub(done) as f64 / rate.max(1.0);
                format!(
                    "{message}: {percent:.0} %, {so_far} of {}, {per_second}/s, {} left",
                    unit.text(total),
                    HumanDuration(Duration::from_secs_f64(rest.min(1e9))),
                )
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(unit: Unit, has_total: bool) -> ProgressStyle {
    let template = match has_total {
        _ if unit != Unit::Bytes => "{msg} [{bar:30}] {percent} % {pos}/{len} {per_sec} ETA {eta}",
        true => "{msg} [{bar:30}] {percent} % {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
        false => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
