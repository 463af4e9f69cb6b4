//! A topology that was made before, or by somebody else.

use std::path::PathBuf;

use super::{Nodes, Schedule, Topology, TopologyError, file};
use crate::seed::Rng;

/// The schedule of a file: see [`file`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromFile {
    /// The file.
    pub path: PathBuf,
}

impl Topology for FromFile {
    fn name(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("file", 0)?;
        let schedule = file::read(&self.path)?.schedule;
        let found = schedule.mixing(0).n_nodes();
        match found == nodes.n_nodes {
            true => Ok(schedule),
            false => Err(TopologyError::FileNodes {
                path: self.path.clone(),
                n_nodes: nodes.n_nodes,
                found,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::file::SavedSchedule;
    use super::*;
    use crate::topology::parse;
    use crate::topology::testing::connect;

    #[test]
    fn a_file_is_read_and_checked() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        // Everything after the first colon is the path.
        let path = folder.path().join("a:b,c=d.json");
        let rule = parse(&format!("file:{}", path.display()))?;
        assert_eq!(rule.name(), format!("file:{}", path.display()));
        let saved = SavedSchedule {
            topology: "d-cliques".to_owned(),
            schedule: connect(&*parse("d-cliques:steps=0")?, 30)?,
            classes: None,
        };
        let missing = connect(&*rule, 30).expect_err("no file").to_string();
        assert!(missing.contains("a:b,c=d.json: No such file"), "{missing}");
        file::write(&path, &saved)?;
        assert_eq!(connect(&*rule, 30)?, saved.schedule);
        let error = connect(&*rule, 20).expect_err("another number of nodes");
        let expect = format!("{}: the topology has 30 nodes, expected 20", path.display());
        assert_eq!(error.to_string(), expect);
        assert!(parse("file:").is_err() && parse("file").is_err());
        Ok(())
    }
}
