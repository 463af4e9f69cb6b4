//! A partition that somebody wrote down.

use std::path::{Path, PathBuf};

use super::{Labels, Partition, PartitionError, Partitioner, check_sizes, without_empty_nodes};
use crate::data::table::{self, Row, quoted, row_error};
use crate::seed::Rng;

/// Reads which node holds which example: columns `example` and `node`, both from 0, as CSV or as lines of
/// JSON (`.jsonl`). A node's examples keep the order of the file; those that it does not name are left
/// over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByFile {
    /// The file.
    pub path: PathBuf,
}

impl Partitioner for ByFile {
    fn name(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn partition(
        &self,
        labels: &Labels<'_>,
        n_nodes: usize,
        _: &mut Rng,
    ) -> Result<Partition, PartitionError> {
        check_sizes(self, labels, n_nodes)?;
        let n_examples = labels.labels.len();
        let mut nodes = vec![Vec::new(); n_nodes];
        let mut is_taken = vec![false; n_examples];
        for row in table::read(&self.path, [&["example"], &["node"]])? {
            let Row { line, values } = row;
            let example = index(&self.path, line, "an example", &values[0], n_examples)?;
            let node = index(&self.path, line, "a node", &values[1], n_nodes)?;
            if std::mem::replace(&mut is_taken[example], true) {
                let found = format!("example {example} again");
                let error = row_error(&self.path, line, "each example once", &found);
                return Err(error.into());
            }
            nodes[node].push(example as u32);
        }
        without_empty_nodes(self, nodes, || {
            "name at least one for each node, or take fewer nodes".into()
        })
    }
}

fn index(
    file: &Path,
    line: u64,
    what: &str,
    value: &str,
    n: usize,
) -> Result<usize, PartitionError> {
    let index = value.trim().parse().ok().filter(|&index: &usize| index < n);
    index.ok_or_else(|| {
        let expected = format!("{what}, 0 to {}", n - 1);
        row_error(file, line, &expected, &quoted(value)).into()
    })
}

#[cfg(test)]
mod tests {
    use super::super::checks;
    use super::*;

    fn read(name: &str, text: &str) -> Result<Partition, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        let made = checks::partition(&ByFile { path }, &[0, 1, 0, 1], 2, 2, 1);
        let within = format!("{}/", folder.path().display());
        made.map_err(|error| error.to_string().replace(&within, ""))
    }

    #[test]
    fn nodes_hold_what_the_file_says() {
        let expect = [vec![3], vec![2, 0]];
        let csv = read("p.csv", "node,example\n1,2\n0,3\n1,0\n").expect("sound");
        assert_eq!(csv.nodes, expect);
        let json =
            "{\"example\":2,\"node\":1}\n{\"example\":3,\"node\":0}\n{\"example\":0,\"node\":1}";
        assert_eq!(read("p.jsonl", json).expect("sound").nodes, expect);
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused() {
        let check = |text: &str, expect: &str| {
            assert_eq!(read("p.csv", text).expect_err("refused"), expect);
        };
        check(
            "example\n0",
            "p.csv: expected a column node, found the columns \"example\"",
        );
        check(
            "example,node\n0,0\n4,1",
            "p.csv: line 3: expected an example, 0 to 3, found \"4\"",
        );
        check(
            "example,node\n0,2",
            "p.csv: line 2: expected a node, 0 to 1, found \"2\"",
        );
        check(
            "example,node\n0,-1",
            "p.csv: line 2: expected a node, 0 to 1, found \"-1\"",
        );
        check(
            "example,node\n0,0\n0,1",
            "p.csv: line 3: expected each example once, found example 0 again",
        );
        check(
            "example,node\n0,0\n1,0",
            "file:p.csv: node 1 gets no example: name at least one for each node, or take fewer nodes",
        );
        check("", "p.csv: expected at least one example, found none");
    }
}
