//! Reads what `cargo test -- --show-output` prints.

use std::collections::BTreeSet;

/// What the tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that ran and held.
    pub(crate) n_passed: usize,
    /// Tests that ran and did not.
    pub(crate) n_failed: usize,
    /// Tests that said `skipped: …`, and those that the harness ignored.
    pub(crate) n_skipped: usize,
    /// Those among them that lacked real data.
    pub(crate) n_without_data: usize,
    /// The different reasons, as the tests gave them.
    pub(crate) reasons: BTreeSet<String>,
    /// Names of the tests that failed.
    pub(crate) failed: Vec<String>,
    section: Section,
    test_has_skipped: bool,
}

/// Where in the output of one test binary the reader is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    /// Names of tests with their results; failures with their output.
    #[default]
    Shown,
    /// What passing tests printed: read for skips, and not shown.
    Successes,
}

impl Tally {
    /// Takes the next line; whether it is worth showing.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        if line == "successes:" {
            self.section = Section::Successes;
        } else if line == "failures:" {
            self.section = Section::Shown;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.section = Section::Shown;
            self.count(counts);
        } else if self.section == Section::Successes {
            self.read_success(line);
        } else if let Some(name) = failed_test(line) {
            self.failed.push(name.to_owned());
        }
        self.section == Section::Shown
    }

    /// The last line of a run.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.n_passed, self.n_failed, self.n_skipped
        )
    }

    /// Whether no test ran at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.n_passed + self.n_failed + self.n_skipped == 0
    }

    /// `ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s`
    fn count(&mut self, counts: &str) {
        let n = |what: &str| -> usize {
            let mut parts = counts.split(['.', ';']);
            let number = parts.find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
            number.unwrap_or(0)
        };
        self.n_passed += n("passed");
        self.n_failed += n("failed");
        self.n_skipped += n("ignored");
    }

    fn read_success(&mut self, line: &str) {
        if line.starts_with("---- ") {
            self.test_has_skipped = false;
        }
        let Some(reason) = line.strip_prefix("skipped: ") else {
            return;
        };
        self.reasons.insert(reason.to_owned());
        // A test may say so once per case: it is one test all the same.
        if !self.test_has_skipped {
            self.test_has_skipped = true;
            self.n_skipped += 1;
            self.n_passed = self.n_passed.saturating_sub(1);
            self.n_without_data += usize::from(reason.starts_with("no data at"));
        }
    }
}

/// `test NAME ... FAILED`
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 3 tests
test a ... ok
test b ... ok
test c ... FAILED

successes:

---- a stdout ----
skipped: no data at nowhere
skipped: no data at nowhere/else
---- b stdout ----
some noise

successes:
    a
    b

failures:

---- c stdout ----
skipped: this test failed
assertion failed

failures:
    c

test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; 5 filtered out; finished in 0.01s
";

    #[test]
    fn results_are_summed_and_skips_are_no_passes() {
        let mut tally = Tally {
            n_passed: 10,
            ..Tally::default()
        };
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| tally.read(line)).collect();
        assert_eq!(tally.line(), "11 passed, 1 failed, 5 skipped");
        assert_eq!(tally.n_without_data, 1);
        assert_eq!(tally.reasons.len(), 2);
        assert_eq!(tally.failed, ["c"]);
        assert!(shown.contains(&"assertion failed"));
        assert!(!shown.contains(&"some noise"));
    }
}
