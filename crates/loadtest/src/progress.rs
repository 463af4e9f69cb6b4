use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::args::Rate;

const TICK: Duration = Duration::from_millis(500);
/// Back to the first column, and clear the line.
const CLEAR_LINE: &str = "\r\x1b[2K";

/// A line on stderr that follows one rate, if stderr is a terminal; it goes away when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    counts: Arc<Counts>,
    ticker: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
}

impl Progress {
    /// Begins to follow `rate`.
    pub(crate) fn start(rate: Rate) -> Self {
        let counts = Arc::<Counts>::default();
        let ticker = io::stderr()
            .is_terminal()
            .then(|| tokio::spawn(tick(rate, Instant::now(), Arc::clone(&counts))));
        Self { counts, ticker }
    }

    /// One more request is on its way.
    pub(crate) fn sent(&self) {
        self.counts.sent.fetch_add(1, Relaxed);
    }

    /// One more request is over.
    pub(crate) fn landed(&self, ok: bool) {
        let count = if ok {
            &self.counts.completed
        } else {
            &self.counts.failed
        };
        count.fetch_add(1, Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(ticker) = &self.ticker {
            ticker.abort();
            show(CLEAR_LINE);
        }
    }
}

async fn tick(rate: Rate, start: Instant, counts: Arc<Counts>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        show(&format!(
            "{CLEAR_LINE}{}",
            counts.line(rate, start.elapsed())
        ));
    }
}

impl Counts {
    fn line(&self, rate: Rate, elapsed: Duration) -> String {
        let [sent, completed, failed] =
            [&self.sent, &self.completed, &self.failed].map(|count| count.load(Relaxed));
        let waiting = sent.saturating_sub(completed + failed);
        let seconds = elapsed.as_secs();
        format!(
            "rate {rate}: {seconds} s, {sent} sent, {completed} ok, {failed} failed, {waiting} waiting"
        )
    }
}

/// A terminal that cannot be written to is no reason to fail a measurement.
fn show(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}
