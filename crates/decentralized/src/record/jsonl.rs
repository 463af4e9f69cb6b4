//! Metrics files read back.

use std::io;
use std::path::{Path, PathBuf};

use super::{Evaluation, Record, RunEnd, RunHeader};

/// The records of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its first line.
    pub header: RunHeader,
    /// In the order of their rounds.
    pub evaluations: Vec<Evaluation>,
    /// None if the run is still going on or was stopped.
    pub end: Option<RunEnd>,
}

/// Why a metrics file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file itself.
    #[error("{} could not be read: {source}", file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that is no record.
    #[error("{}, line {line} is no record of a run: {source}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// An evaluation or an end of no run.
    #[error("{}, line {line} comes before the header of a run", file.display())]
    NoHeader {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// No line at all, or only one that is incomplete.
    #[error("{} holds no run", file.display())]
    Empty {
        /// Which file.
        file: PathBuf,
    },
}

/// The runs of a metrics file.
///
/// # Errors
/// As [`parse_runs`], or if the file cannot be read.
pub fn read_runs(file: &Path) -> Result<Vec<Run>, RecordError> {
    let text = std::fs::read(file).map_err(|source| RecordError::Io {
        file: file.to_owned(),
        source,
    })?;
    parse_runs(&text, file)
}

/// The runs of the text of a metrics file; `file` is what errors name.
///
/// A header begins a run. A last line that nothing ended is left out if it is incomplete: the run may
/// have been killed as it wrote. A run that was resumed repeats the rounds since its checkpoint; what
/// it says later counts.
///
/// # Errors
/// If another line is no record, comes before the first header, or there is no run at all.
pub fn parse_runs(text: &[u8], file: &Path) -> Result<Vec<Run>, RecordError> {
    let mut runs = Vec::new();
    for (line_idx, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let (file, line_number) = (file.to_owned(), line_idx + 1);
        match serde_json::from_slice(line) {
            Ok(record) => add(record, &mut runs).ok_or(RecordError::NoHeader {
                file,
                line: line_number,
            })?,
            Err(_) if !line.ends_with(b"\n") => break,
            Err(source) => {
                return Err(RecordError::Line {
                    file,
                    line: line_number,
                    source,
                });
            }
        }
    }
    match runs.is_empty() {
        true => Err(RecordError::Empty {
            file: file.to_owned(),
        }),
        false => Ok(runs),
    }
}

// None if the record belongs to no run.
fn add(record: Record, runs: &mut Vec<Run>) -> Option<()> {
    match record {
        Record::Header(header) => runs.push(Run {
            header: *header,
            evaluations: Vec::new(),
            end: None,
        }),
        Record::Evaluation(evaluation) => {
            let run = runs.last_mut()?;
            let earlier = |other: &Evaluation| other.round < evaluation.round;
            let n_earlier = run.evaluations.partition_point(earlier);
            run.evaluations.truncate(n_earlier);
            run.evaluations.push(evaluation);
            run.end = None;
        }
        Record::End(end) => runs.last_mut()?.end = Some(end),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{Heterogeneity, Spread};
    use super::*;

    fn text(records: &[Record]) -> Vec<u8> {
        let mut text = Vec::new();
        for record in records {
            record.write(&mut text).expect("memory");
        }
        text
    }

    fn header(name: &str) -> Record {
        Record::Header(Box::new(RunHeader {
            name: name.into(),
            spectral_gap: Some(0.25),
            heterogeneity: Some(Heterogeneity {
                bias: 0.5,
                variance: 0.125,
            }),
            ..RunHeader::default()
        }))
    }

    fn evaluation(round: u64, test_loss: f64) -> Record {
        Record::Evaluation(Evaluation {
            round,
            test_loss,
            accuracy: Spread::of(&[0.25, 0.75]).expect("values"),
            ..Evaluation::default()
        })
    }

    fn parse(text: &[u8]) -> Result<Vec<Run>, RecordError> {
        parse_runs(text, Path::new("metrics.jsonl"))
    }

    #[test]
    fn runs_come_back_as_written() {
        let end = RunEnd {
            wall_s: 1.5,
            ..RunEnd::default()
        };
        let records = [
            header("é <a>"),
            evaluation(0, 2.5),
            evaluation(10, 1.5),
            Record::End(end.clone()),
            header("second"),
        ];
        let runs = parse(&text(&records)).expect("runs");
        assert_eq!(runs.len(), 2);
        assert_eq!(Record::Header(Box::new(runs[0].header.clone())), records[0]);
        let evaluations = runs[0].evaluations.iter().cloned();
        let evaluations: Vec<Record> = evaluations.map(Record::Evaluation).collect();
        assert_eq!(evaluations, records[1..3]);
        assert_eq!(runs[0].end, Some(end));
        assert_eq!(runs[1].end, None);
    }

    #[test]
    fn a_run_that_diverged_can_be_read() {
        let runs = parse(&text(&[header("a"), evaluation(1, f64::INFINITY)])).expect("runs");
        assert!(runs[0].evaluations[0].test_loss.is_nan());
    }

    #[test]
    fn a_killed_run_loses_its_last_line_at_most() {
        let whole = text(&[header("é"), evaluation(1, 0.5), evaluation(2, 0.5)]);
        let first = text(&[header("é")]).len();
        let second = text(&[header("é"), evaluation(1, 0.5)]).len();
        for len in first..whole.len() {
            let runs = parse(&whole[..len]).expect("runs");
            // A line is complete at its last brace, even without its end of line.
            let expect = usize::from(len >= second - 1) + usize::from(len == whole.len() - 1);
            assert_eq!(runs[0].evaluations.len(), expect, "cut to {len} bytes");
        }
    }

    #[test]
    fn a_resumed_run_replaces_what_it_repeats() {
        let records = [
            header("a"),
            evaluation(1, 1.0),
            evaluation(2, 2.0),
            evaluation(3, 3.0),
            evaluation(2, 20.0),
        ];
        let runs = parse(&text(&records)).expect("runs");
        let losses: Vec<f64> = runs[0].evaluations.iter().map(|e| e.test_loss).collect();
        assert_eq!(losses, [1.0, 20.0]);
    }

    #[test]
    fn bad_lines_are_named() {
        let check = |text: &[u8], expect: &str| {
            let error = parse(text).expect_err("bad line").to_string();
            assert!(error.starts_with(expect), "{error}");
        };
        let mut torn = text(&[header("a"), evaluation(1, 1.0)]);
        let len = torn.len();
        torn.truncate(len - 9);
        torn.push(b'\n');
        check(&torn, "metrics.jsonl, line 2 is no record of a run: ");
        check(
            b"{\"kind\":\"other\"}\n",
            "metrics.jsonl, line 1 is no record of a run: unknown variant",
        );
        check(b"\n\xff\n", "metrics.jsonl, line 2 is no record");
        let headless = text(&[evaluation(1, 1.0)]);
        check(
            &headless,
            "metrics.jsonl, line 1 comes before the header of a run",
        );
        check(b"", "metrics.jsonl holds no run");
        check(b"{\"kind\":", "metrics.jsonl holds no run");
        let error = read_runs(Path::new("/nowhere/m.jsonl")).expect_err("no file");
        assert!(
            error
                .to_string()
                .starts_with("/nowhere/m.jsonl could not be read")
        );
    }
}
