//! How long each part of a run took.

use std::time::{Duration, Instant};

/// The parts done so far.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    done: Vec<(&'static str, Duration)>,
}

impl Parts {
    /// Announces a part, does it, and notes its time.
    pub(crate) fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        println!("== {name}");
        let started = Instant::now();
        let result = work();
        self.done.push((name, started.elapsed()));
        result
    }

    /// Prints one line per part and their sum.
    pub(crate) fn print(&self) {
        println!("\ntime of each part:");
        for (name, took) in &self.done {
            println!("{:>9.1} s  {name}", took.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, took)| took).sum();
        println!("{:>9.1} s  in all", total.as_secs_f64());
    }
}
