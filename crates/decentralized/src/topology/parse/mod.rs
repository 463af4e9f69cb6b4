//! Topologies as text, `name:parameter=value,…`: what a command line or a config says.
//!
//! - `rules`: what there is.
//! - `parameters`: what is said of one.

use std::path::Path;

use super::{Topology, TopologyError};

mod parameters;
mod rules;

use parameters::Parameters;
use rules::{Build, RULES};
pub use rules::{Parameter, Rule};

/// The topology that `spec` names, such as `ring` or `d-cliques:size=10,inter=ring`. What
/// [`Topology::name`] gives is understood, and makes an equal topology.
///
/// # Errors
/// If there is no such topology or parameter (the error lists what there is), or a parameter is
/// missing, given twice, or no value of its kind. Whether it fits the nodes is seen when they are
/// connected.
pub fn parse(spec: &str) -> Result<Box<dyn Topology>, TopologyError> {
    let (name, parameters) = spec.split_once(':').unwrap_or((spec, ""));
    let name = name.trim();
    let rule = RULES.iter().find(|rule| rule.name == name);
    let rule = rule.ok_or_else(|| TopologyError::Unknown {
        name: name.to_owned(),
        known: listed(RULES.iter().map(|rule| rule.name)),
    })?;
    match rule.build {
        Build::Parameters(build) => build(&Parameters::read(rule, parameters)?),
        Build::Path(build) if !parameters.is_empty() => build(Path::new(parameters)),
        Build::Path(_) => Err(TopologyError::Parameter {
            topology: rule.name,
            parameter: rule.parameters[0].name,
            expected: format!("{}:{}", rule.name, rule.parameters[0].name),
            got: "missing".to_owned(),
        }),
    }
}

/// The topologies that [`parse`] knows.
pub fn known() -> impl Iterator<Item = &'static Rule> {
    RULES.iter()
}

/// `a, b, c`, or `none`.
fn listed(names: impl IntoIterator<Item = impl ToString>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classes::ClassCounts;
    use crate::measures::{Links, is_symmetric};
    use crate::seed;
    use crate::topology::{Nodes, Schedule};

    /// Every rule, all parameters given.
    const SPECS: [&str; 16] = [
        "complete",
        "ring",
        "grid",
        "torus",
        "random:d=4",
        "erdos-renyi:p=0.1",
        "exponential",
        "one-peer-exponential",
        "base:k=2",
        "small-world:k=2",
        "watts-strogatz:d=4,p=0.1",
        "d-cliques:size=5,inter=small-world,steps=10,removed-edges=3",
        "d-cliques:size=10,inter=full",
        "stl-fw:d=4",
        "stl-fw:d=4,class-distance=2,noise=0.5",
        "stl-fw-undirected:d=4,lambda=0.3",
    ];

    #[test]
    fn names_are_read_back() -> Result<(), TopologyError> {
        for spec in SPECS {
            assert_eq!(parse(spec)?.name(), spec);
        }
        let tested = SPECS.map(|spec| spec.split(':').next().unwrap_or(spec));
        // Files have tests of their own.
        for rule in known().filter(|rule| rule.name != "file") {
            assert!(tested.contains(&rule.name), "{} has no test", rule.name);
        }
        Ok(())
    }

    #[test]
    fn what_is_not_given_has_a_default() -> Result<(), TopologyError> {
        let check = |spec, expect: &str| -> Result<(), TopologyError> {
            assert_eq!(parse(spec)?.name(), expect);
            Ok(())
        };
        check("d-cliques", "d-cliques:size=10,inter=full")?;
        check(
            " d-cliques : inter = ring , size=7 ",
            "d-cliques:size=7,inter=ring",
        )?;
        check("d-cliques:removed-edges=0", "d-cliques:size=10,inter=full")?;
        check("base", "base:k=1")?;
        check("small-world:", "small-world:k=2")
    }

    #[test]
    fn errors_tell_what_there_is() {
        let check = |spec, expect: &str| {
            let error = parse(spec).expect_err("not a topology");
            assert_eq!(error.to_string(), expect);
        };
        check(
            "rings",
            "there is no topology `rings`, expected one of complete, ring, grid, torus, random, \
             erdos-renyi, exponential, one-peer-exponential, base, small-world, watts-strogatz, \
             d-cliques, stl-fw, stl-fw-undirected, file",
        );
        check("file:", "file: PATH is missing, expected file:PATH");
        check(
            "stl-fw:d=4,class-distance=1",
            "stl-fw: noise is missing, expected a number",
        );
        check(
            "ring:d=3",
            "ring has no parameter `d`, expected one of none",
        );
        check(
            "random:degree=3",
            "random has no parameter `degree`, expected one of d",
        );
        check("random:3", "random has no parameter `3`, expected one of d");
        check("random", "random: d is missing, expected a whole number");
        check("random:d=-1", "random: d is `-1`, expected a whole number");
        check(
            "random:d=1,d=2",
            "random: d is given twice, expected one value",
        );
        check(
            "erdos-renyi:p=",
            "erdos-renyi: p is ``, expected a probability from 0 to 1",
        );
        check(
            "stl-fw:d=4,lambda=1,noise=1",
            "stl-fw: noise is given beside lambda, expected either",
        );
        check(
            "stl-fw:d=4,noise=1",
            "stl-fw: class-distance is missing, expected a number",
        );
        check(
            "d-cliques:inter=line",
            "d-cliques: inter is `line`, expected one of full, ring, fractal, small-world",
        );
        check(
            "d-cliques:size=99999999999999999999",
            "d-cliques: size is `99999999999999999999`, expected a whole number",
        );
    }

    const N_NODES: [usize; 7] = [1, 2, 3, 5, 16, 17, 100];

    /// Connects nodes of three classes.
    fn connect(spec: &str, n_nodes: usize, seed: u64) -> Result<Schedule, TopologyError> {
        let counts = (0..3 * n_nodes as u32).map(|i| i * i % 7).collect();
        let nodes = Nodes {
            n_nodes,
            classes: Some(&ClassCounts::new(3, counts)),
        };
        parse(spec)?.connect(&nodes, &mut seed::rng(seed, 0))
    }

    /// The fewest nodes that suit: a degree of four takes five nodes, and three edges that a clique
    /// is to lose take three.
    fn n_least(spec: &str) -> usize {
        match spec {
            _ if spec.contains("d=4") => 5,
            _ if spec.contains("removed-edges=3") => 3,
            _ => 1,
        }
    }

    #[test]
    fn every_rule_connects_any_number_of_nodes() -> Result<(), TopologyError> {
        for (spec, n_nodes) in SPECS.iter().flat_map(|spec| N_NODES.map(|n| (*spec, n))) {
            if n_nodes < n_least(spec) {
                connect(spec, n_nodes, 1).expect_err("too few nodes");
                continue;
            }
            let schedule = connect(spec, n_nodes, 1)?;
            let rounds = &schedule.rounds;
            assert!(rounds.iter().all(|round| round.n_nodes() == n_nodes));
            let is_directed = spec.contains("exponential") || spec.starts_with("stl-fw:");
            let are_symmetric = rounds.iter().all(is_symmetric);
            assert!(are_symmetric || is_directed, "{spec}, {n_nodes} nodes");
            let links = Links::of(&schedule);
            let may_fall_apart = ["erdos", "watts", "removed", "stl-fw"];
            let is_whole = links.n_components == 1;
            assert!(is_whole || may_fall_apart.iter().any(|word| spec.contains(word)));
            assert_eq!(links.n_components, links.n_strong_components);
        }
        Ok(())
    }

    #[test]
    fn random_choices_follow_from_the_seed() -> Result<(), TopologyError> {
        for (spec, n_nodes) in SPECS.iter().flat_map(|spec| N_NODES.map(|n| (*spec, n))) {
            if n_nodes < n_least(spec) {
                continue;
            }
            let schedule = connect(spec, n_nodes, 1)?;
            assert_eq!(connect(spec, n_nodes, 1)?, schedule);
            let is_equal = connect(spec, n_nodes, 2)? == schedule;
            let random = ["random", "erdos", "watts", "d-cliques", "stl-fw"];
            match random.iter().any(|name| spec.starts_with(name)) {
                // Few nodes have few graphs.
                true => assert!(!is_equal || n_nodes < 16, "{spec}, {n_nodes} nodes"),
                false => assert!(is_equal, "{spec}, {n_nodes} nodes"),
            }
        }
        Ok(())
    }
}
