//! Schedules as JSON files.
//!
//! `{"topology": NAME, "rounds": [ROUND, …], "cliques": [[NODE, …], …], "classes": [[COUNT, …], …]}`,
//! where a round is the rows of its mixing matrix, and a row the entries that are not zero, `[[NODE,
//! WEIGHT], …]`. Weights are read back as they were, bit for bit. `cliques` may be left out, and so
//! may `classes`: the examples of each class on each node that the topology was made for.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Clique, Schedule};
use crate::classes::ClassCounts;
use crate::mixing::{MixingError, MixingMatrix};

/// A schedule with the name of its topology.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedSchedule {
    /// What made the schedule: its name, for people.
    pub topology: String,
    /// The rounds and cliques.
    pub schedule: Schedule,
    /// What the nodes hold that it was made for, if that is known.
    pub classes: Option<ClassCounts>,
}

/// Why a schedule could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleFileError {
    /// The system did not let us read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No JSON, or not of this form.
    #[error("{}: expected a topology as JSON, found {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A round whose matrix is no mixing matrix.
    #[error("{}: round {round}: {source}", path.display())]
    Mixing {
        /// The file.
        path: PathBuf,
        /// Which round.
        round: usize,
        /// What is wrong with the matrix.
        source: MixingError,
    },
    /// No rounds, no nodes, or rounds of different numbers of nodes.
    #[error("{}: round {round} has {found} nodes, expected {expected}", path.display())]
    Nodes {
        /// The file.
        path: PathBuf,
        /// Which round.
        round: usize,
        /// How many nodes it should have.
        expected: String,
        /// How many it has.
        found: usize,
    },
    /// No rounds.
    #[error("{}: there are no rounds, expected at least one", path.display())]
    NoRounds {
        /// The file.
        path: PathBuf,
    },
    /// A clique with a node that does not exist, or is in a clique already.
    #[error(
        "{}: clique {clique} names node {node} a second time or beyond the {n_nodes} nodes",
        path.display()
    )]
    Clique {
        /// The file.
        path: PathBuf,
        /// Which clique.
        clique: usize,
        /// The node.
        node: u32,
        /// How many nodes there are.
        n_nodes: usize,
    },
    /// Class counts of another number of nodes.
    #[error("{}: there are classes of {found} nodes, expected {expected}", path.display())]
    ClassRows {
        /// The file.
        path: PathBuf,
        /// How many nodes there are.
        expected: usize,
        /// Of how many nodes there are classes.
        found: usize,
    },
    /// A node with another number of classes, or without any.
    #[error("{}: node {node} has {found} classes, expected {expected}", path.display())]
    Classes {
        /// The file.
        path: PathBuf,
        /// The node.
        node: usize,
        /// How many classes it should have.
        expected: String,
        /// How many it has.
        found: usize,
    },
}

/// The file's form.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Form {
    topology: String,
    rounds: Vec<Vec<Vec<(u32, f64)>>>,
    #[serde(default)]
    cliques: Vec<Clique>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    classes: Option<Vec<Vec<u32>>>,
}

/// Writes a schedule to `path`, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, saved: &SavedSchedule) -> Result<(), ScheduleFileError> {
    write_whole(path, saved).map_err(|source| ScheduleFileError::Io {
        path: path.to_owned(),
        source,
    })
}

fn write_whole(path: &Path, saved: &SavedSchedule) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    let mut buffered = BufWriter::new(&mut file);
    serde_json::to_writer(&mut buffered, &Form::of(saved))?;
    buffered.write_all(b"\n")?;
    buffered.flush()?;
    drop(buffered);
    // Temporary files are for their owner alone.
    #[cfg(unix)]
    file.as_file()
        .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

/// Reads a schedule that [`write`] wrote, or somebody else: nothing in it is taken for granted.
///
/// # Errors
/// If the file cannot be read or is no JSON of this form; if a round is not doubly stochastic or
/// not of the same number of nodes; if a node is in two cliques.
pub fn read(path: &Path) -> Result<SavedSchedule, ScheduleFileError> {
    let file = File::open(path).map_err(|source| ScheduleFileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let form: Result<Form, _> = serde_json::from_reader(BufReader::new(file));
    let form = form.map_err(|source| ScheduleFileError::Json {
        path: path.to_owned(),
        source,
    })?;
    form.check(path)
}

impl Form {
    fn of(saved: &SavedSchedule) -> Self {
        let rows = |mixing: &MixingMatrix| {
            let row = |node| {
                let (cols, weights) = mixing.row(node);
                cols.iter().copied().zip(weights.iter().copied()).collect()
            };
            (0..mixing.n_nodes()).map(row).collect()
        };
        Self {
            topology: saved.topology.clone(),
            rounds: saved.schedule.rounds.iter().map(rows).collect(),
            cliques: saved.schedule.cliques.clone(),
            classes: saved.classes.as_ref().map(|classes| {
                let nodes = 0..classes.n_nodes();
                nodes.map(|node| classes.node(node).to_vec()).collect()
            }),
        }
    }

    fn check(self, path: &Path) -> Result<SavedSchedule, ScheduleFileError> {
        let path = || path.to_owned();
        let Some(n_nodes) = self.rounds.first().map(Vec::len) else {
            return Err(ScheduleFileError::NoRounds { path: path() });
        };
        let mut rounds = Vec::new();
        for (round, rows) in self.rounds.into_iter().enumerate() {
            let found = rows.len();
            if found != n_nodes || found == 0 {
                let expected = match round {
                    0 => "at least 1".to_owned(),
                    _ => n_nodes.to_string(),
                };
                let path = path();
                return Err(ScheduleFileError::Nodes {
                    path,
                    round,
                    expected,
                    found,
                });
            }
            let mixing = MixingMatrix::new(rows);
            rounds.push(mixing.map_err(|source| {
                let path = path();
                ScheduleFileError::Mixing {
                    path,
                    round,
                    source,
                }
            })?);
        }
        if let Some((clique, node)) = misplaced(&self.cliques, n_nodes) {
            let path = path();
            return Err(ScheduleFileError::Clique {
                path,
                clique,
                node,
                n_nodes,
            });
        }
        let classes = self.classes.map(|rows| classes(&rows, n_nodes, &path()));
        let cliques = self.cliques;
        Ok(SavedSchedule {
            topology: self.topology,
            schedule: Schedule { rounds, cliques },
            classes: classes.transpose()?,
        })
    }
}

fn classes(
    rows: &[Vec<u32>],
    n_nodes: usize,
    path: &Path,
) -> Result<ClassCounts, ScheduleFileError> {
    if rows.len() != n_nodes {
        return Err(ScheduleFileError::ClassRows {
            path: path.to_owned(),
            expected: n_nodes,
            found: rows.len(),
        });
    }
    let n_classes = rows.first().map_or(0, Vec::len);
    for (node, row) in rows.iter().enumerate() {
        if row.len() != n_classes || n_classes == 0 {
            return Err(ScheduleFileError::Classes {
                path: path.to_owned(),
                node,
                expected: match node {
                    0 => "at least 1".to_owned(),
                    _ => n_classes.to_string(),
                },
                found: row.len(),
            });
        }
    }
    Ok(ClassCounts::new(n_classes, rows.concat()))
}

/// The first node of a clique that does not exist or is in a clique already.
fn misplaced(cliques: &[Clique], n_nodes: usize) -> Option<(usize, u32)> {
    let mut is_taken = vec![false; n_nodes];
    let nodes = cliques.iter().enumerate();
    let mut nodes = nodes.flat_map(|(idx, clique)| clique.iter().map(move |&node| (idx, node)));
    nodes.find(|&(_, node)| match is_taken.get_mut(node as usize) {
        Some(is_taken) => std::mem::replace(is_taken, true),
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use anyhow::Result;

    use super::*;
    use crate::topology::parse::parse;
    use crate::topology::testing::connect;

    #[test]
    fn schedules_are_read_back_bit_for_bit() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("topology.json");
        for spec in [
            "ring",
            "base:k=2",
            "exponential",
            "random:d=6",
            "d-cliques:size=7,steps=0",
        ] {
            for n_nodes in [7, 23, 100] {
                let topology = parse(spec)?;
                let Ok(schedule) = connect(topology.as_ref(), n_nodes) else {
                    continue;
                };
                let counts = (0..3 * n_nodes as u32).map(|i| i * i % 7).collect();
                let saved = SavedSchedule {
                    topology: topology.name(),
                    schedule,
                    classes: (n_nodes > 7).then(|| ClassCounts::new(3, counts)),
                };
                write(&path, &saved)?;
                assert_eq!(read(&path)?, saved, "{spec}, {n_nodes} nodes");
            }
        }
        Ok(())
    }

    #[test]
    fn weights_of_any_bits_survive() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("topology.json");
        for i in 1..2000u32 {
            let weight = f64::from(i).sqrt() / 45.0 * 0.999_999_999_9;
            let row = |a, b| vec![(0, a), (1, b)];
            let rows = vec![row(weight, 1.0 - weight), row(1.0 - weight, weight)];
            let schedule = Schedule::fixed(MixingMatrix::new(rows)?);
            let saved = SavedSchedule {
                topology: String::new(),
                schedule,
                classes: None,
            };
            write(&path, &saved)?;
            assert_eq!(read(&path)?, saved);
        }
        Ok(())
    }

    #[test]
    fn hostile_files_are_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("topology.json");
        let check = |content: &str, expect: &str| -> Result<()> {
            fs::write(&path, content)?;
            let error = read(&path).expect_err("refused").to_string();
            let expect = format!("{}: {expect}", path.display());
            assert!(error.starts_with(&expect), "{error}");
            Ok(())
        };
        check(
            "",
            "expected a topology as JSON, found EOF while parsing a value",
        )?;
        check(
            r#"{"topology": "ring", "rounds": [[[[0, 1.0"#,
            "expected a topology as JSON, found EOF while parsing a list",
        )?;
        check(
            r#"{"topology": "", "rounds": [], "round": 1}"#,
            "expected a topology as JSON, found unknown field `round`, expected one of `topology`, \
             `rounds`, `cliques`, `classes`",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[-1, 1.0]]]]}"#,
            "expected a topology as JSON, found invalid value: integer `-1`, expected u32",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 1e999]]]]}"#,
            "expected a topology as JSON, found number out of range",
        )?;
        check(
            r#"{"topology": "", "rounds": []}"#,
            "there are no rounds, expected at least one",
        )?;
        check(
            r#"{"topology": "", "rounds": [[]]}"#,
            "round 0 has 0 nodes, expected at least 1",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 1]]], [[[0, 1]], [[1, 1]]]]}"#,
            "round 1 has 2 nodes, expected 1",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[4000000000, 1]]]]}"#,
            "round 0: row 0 of the mixing matrix names column 4000000000 twice or beyond its 1 nodes",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 0.5]]]]}"#,
            "round 0: row 0 of the mixing matrix sums to 0.5, expected 1 (within 1e-9)",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 1]]]], "cliques": [[1]]}"#,
            "clique 0 names node 1 a second time or beyond the 1 nodes",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 1]]]], "cliques": [[0], [0]]}"#,
            "clique 1 names node 0 a second time or beyond the 1 nodes",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 1]]]], "classes": [[1], [2]]}"#,
            "there are classes of 2 nodes, expected 1",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 1]]]], "classes": [[]]}"#,
            "node 0 has 0 classes, expected at least 1",
        )?;
        check(
            r#"{"topology": "", "rounds": [[[[0, 1]], [[1, 1]]]], "classes": [[1, 2], [3]]}"#,
            "node 1 has 1 classes, expected 2",
        )?;
        let nested = "[".repeat(100_000);
        let error = "expected a topology as JSON, found invalid type: sequence, expected a string";
        check(&format!(r#"{{"topology": {nested}"#), error)
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let error = read(Path::new("/nowhere/topology.json")).expect_err("no such file");
        assert!(
            error
                .to_string()
                .starts_with("/nowhere/topology.json: No such file")
        );
        let saved = SavedSchedule {
            topology: String::new(),
            schedule: Schedule {
                rounds: Vec::new(),
                cliques: Vec::new(),
            },
            classes: None,
        };
        let error = write(Path::new("/nowhere/topology.json"), &saved).expect_err("no such folder");
        assert!(
            error
                .to_string()
                .starts_with("/nowhere/topology.json: No such file")
        );
    }
}
