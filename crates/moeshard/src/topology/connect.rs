//! From an argument, a rule or a file, to a schedule.

use std::path::{Path, PathBuf};

use anyhow::Result;
use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::seed;
use moeshard_decentralized::topology::file::{self, SavedSchedule};
use moeshard_decentralized::topology::{self, Nodes, Schedule, Topology, TopologyError};

use super::nodes::NodesConfig;
use crate::train::run::TOPOLOGY_STREAM;

/// Nodes that are connected.
#[derive(Clone, Debug)]
pub struct Network {
    /// As it was given: the rule with its parameters, or the file.
    pub name: String,
    /// The rule with its parameters, also that of a file.
    pub topology: String,
    /// Who exchanges with whom.
    pub schedule: Schedule,
    /// What nodes hold, if that is known.
    pub classes: Option<ClassCounts>,
    /// What nodes hold, in words.
    pub partition: String,
}

/// What an argument asks for.
#[derive(Debug)]
enum Given {
    Rule(Box<dyn Topology>),
    File(PathBuf, SavedSchedule),
}

/// Connects nodes by each of `texts`: a rule such as `ring`, or a file. All are of as many nodes, and
/// rules are given the same classes. A file brings its own, unless others were asked for.
///
/// # Errors
/// If a text is neither a rule nor a file, a file is not what it should be, numbers of nodes differ, or
/// a rule does not fit the nodes.
pub fn connect(texts: &[String], nodes: &NodesConfig) -> Result<Vec<Network>> {
    let given: Vec<Given> = (texts.iter())
        .map(|text| read(text))
        .collect::<Result<_, _>>()?;
    let of_file = given.iter().find_map(|given| match given {
        Given::File(_, saved) => Some(saved.schedule.mixing(0).n_nodes()),
        Given::Rule(_) => None,
    });
    let n_nodes = nodes.n_nodes(of_file)?;
    let has_rules = given.iter().any(|given| matches!(given, Given::Rule(_)));
    let classes = match has_rules || nodes.is_said {
        true => Some(nodes.classes(n_nodes)?),
        false => None,
    };
    let networks = given.into_iter().map(|given| match given {
        Given::Rule(rule) => Ok(by_rule(&*rule, n_nodes, classes.as_ref(), nodes)?),
        Given::File(path, saved) => {
            let classes = classes.as_ref().filter(|_| nodes.is_said);
            Ok(of_file_at(&path, saved, n_nodes, classes, nodes)?)
        }
    });
    networks.collect()
}

/// Names of rules come first: a file called `ring` is `./ring` or `file:ring`.
fn read(text: &str) -> Result<Given, TopologyError> {
    let file = |path: &str| {
        let saved = file::read(Path::new(path))?;
        Ok(Given::File(path.into(), saved))
    };
    if let Some(path) = text.strip_prefix("file:").filter(|path| !path.is_empty()) {
        return file(path);
    }
    match topology::parse(text) {
        Err(TopologyError::Unknown { .. }) if is_path(text) => file(text),
        rule => Ok(Given::Rule(rule?)),
    }
}

fn is_path(text: &str) -> bool {
    text.contains('/') || text.ends_with(".json") || Path::new(text).exists()
}

fn by_rule(
    rule: &dyn Topology,
    n_nodes: usize,
    classes: Option<&ClassCounts>,
    nodes: &NodesConfig,
) -> Result<Network, TopologyError> {
    let rng = &mut seed::rng(nodes.seed, TOPOLOGY_STREAM);
    let schedule = rule.connect(&Nodes { n_nodes, classes }, rng)?;
    Ok(Network {
        name: rule.name(),
        topology: rule.name(),
        schedule,
        classes: classes.cloned(),
        partition: nodes.description(),
    })
}

fn of_file_at(
    path: &Path,
    saved: SavedSchedule,
    n_nodes: usize,
    classes: Option<&ClassCounts>,
    nodes: &NodesConfig,
) -> Result<Network, TopologyError> {
    let found = saved.schedule.mixing(0).n_nodes();
    if found != n_nodes {
        let path = path.to_owned();
        return Err(TopologyError::FileNodes {
            path,
            n_nodes,
            found,
        });
    }
    let partition = match (classes, &saved.classes) {
        (Some(_), _) => nodes.description(),
        (None, Some(_)) => "as in the file".to_owned(),
        (None, None) => "not known".to_owned(),
    };
    Ok(Network {
        name: path.display().to_string(),
        topology: saved.topology,
        schedule: saved.schedule,
        classes: classes.cloned().or(saved.classes),
        partition,
    })
}
