//! Topologies as text, `name:parameter=value,…`: what a command line or a config says.

use std::str::FromStr;

use super::stl_fw::Lambda;
use super::{
    BaseGraph, Complete, DCliques, ErdosRenyi, Exponential, Grid, InterClique, OnePeerExponential,
    RandomRegular, Ring, SmallWorld, StlFw, Topology, TopologyError, Torus, WattsStrogatz,
};

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
    (rule.build)(&Parameters::read(rule, parameters)?)
}

/// The topologies that [`parse`] knows, each with its parameters.
pub fn known() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    RULES.iter().map(|rule| (rule.name, rule.parameters))
}

/// A topology that can be named.
struct Rule {
    name: &'static str,
    parameters: &'static [&'static str],
    build: fn(&Parameters<'_>) -> Built,
}

type Built = Result<Box<dyn Topology>, TopologyError>;

/// Every topology, in the order in which errors list them.
const RULES: &[Rule] = &[
    rule("complete", &[], |_| built(Complete)),
    rule("ring", &[], |_| built(Ring)),
    rule("grid", &[], |_| built(Grid)),
    rule("torus", &[], |_| built(Torus)),
    rule("random", &["d"], random_regular),
    rule("erdos-renyi", &["p"], erdos_renyi),
    rule("exponential", &[], |_| built(Exponential)),
    rule("one-peer-exponential", &[], |_| built(OnePeerExponential)),
    rule("base", &["k"], base),
    rule("small-world", &["k"], small_world),
    rule("watts-strogatz", &["d", "p"], watts_strogatz),
    rule(
        "d-cliques",
        &["size", "inter", "steps", "removed-edges"],
        d_cliques,
    ),
    rule("stl-fw", LEARNED, |given| stl_fw(given, false)),
    rule("stl-fw-undirected", LEARNED, |given| stl_fw(given, true)),
];

const LEARNED: &[&str] = &["d", "lambda", "class_distance", "noise"];

const fn rule(
    name: &'static str,
    parameters: &'static [&'static str],
    build: fn(&Parameters<'_>) -> Built,
) -> Rule {
    Rule {
        name,
        parameters,
        build,
    }
}

fn built(topology: impl Topology + 'static) -> Built {
    Ok(Box::new(topology))
}

fn random_regular(given: &Parameters<'_>) -> Built {
    let degree = given.required("d", WHOLE)?;
    built(RandomRegular { degree })
}

fn erdos_renyi(given: &Parameters<'_>) -> Built {
    let p = given.required("p", PROBABILITY)?;
    built(ErdosRenyi { p })
}

fn base(given: &Parameters<'_>) -> Built {
    let k = given.optional("k", WHOLE)?.unwrap_or(1);
    built(BaseGraph { k })
}

fn small_world(given: &Parameters<'_>) -> Built {
    // As many as D-Cliques take of cliques.
    let k = given.optional("k", WHOLE)?.unwrap_or(2);
    built(SmallWorld { k })
}

fn watts_strogatz(given: &Parameters<'_>) -> Built {
    let degree = given.required("d", WHOLE)?;
    let p = given.required("p", PROBABILITY)?;
    built(WattsStrogatz { degree, p })
}

fn d_cliques(given: &Parameters<'_>) -> Built {
    let names = listed(InterClique::ALL);
    let inter = given.optional("inter", &format!("one of {names}"))?;
    built(DCliques {
        size: given.optional("size", WHOLE)?.unwrap_or(10),
        inter: inter.unwrap_or(InterClique::FullyConnected),
        steps: given.optional("steps", WHOLE)?,
        removed_edges: given.optional("removed-edges", WHOLE)?.unwrap_or(0),
    })
}

fn stl_fw(given: &Parameters<'_>, is_undirected: bool) -> Built {
    let mut topology = StlFw::new(given.required("d", WHOLE)?);
    topology.is_undirected = is_undirected;
    let parts = ["class_distance", "noise"];
    let part = parts.into_iter().find(|part| given.text(part).is_some());
    match (given.optional("lambda", NUMBER)?, part) {
        (None, None) => {}
        (Some(lambda), None) => topology.lambda = Lambda::Given(lambda),
        (None, Some(_)) => {
            topology.lambda = Lambda::Derived {
                class_distance: given.required("class_distance", NUMBER)?,
                noise: given.required("noise", NUMBER)?,
            };
        }
        (Some(_), Some(part)) => return Err(given.error(part, "either", "given beside lambda")),
    }
    built(topology)
}

const WHOLE: &str = "a whole number";

const NUMBER: &str = "a number";

const PROBABILITY: &str = "a probability from 0 to 1";

/// What was given for the parameters of a rule.
struct Parameters<'a> {
    topology: &'static str,
    /// Each at most once.
    given: Vec<(&'static str, &'a str)>,
}

impl<'a> Parameters<'a> {
    /// Reads `name=value,…`.
    fn read(rule: &Rule, text: &'a str) -> Result<Self, TopologyError> {
        let mut parameters = Self {
            topology: rule.name,
            given: Vec::new(),
        };
        for pair in text
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let known = rule.parameters.iter().find(|known| **known == name.trim());
            let name = *known.ok_or_else(|| TopologyError::UnknownParameter {
                topology: rule.name,
                parameter: name.trim().to_owned(),
                known: listed(rule.parameters),
            })?;
            if parameters.text(name).is_some() {
                return Err(parameters.error(name, "one value", "given twice"));
            }
            parameters.given.push((name, value.trim()));
        }
        Ok(parameters)
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        let given = self.given.iter().find(|(other, _)| *other == name);
        given.map(|&(_, value)| value)
    }

    fn optional<T: FromStr>(
        &self,
        name: &'static str,
        expected: &str,
    ) -> Result<Option<T>, TopologyError> {
        let read = |text: &str| {
            let value = text.parse::<T>();
            value.map_err(|_| self.error(name, expected, &format!("`{text}`")))
        };
        self.text(name).map(read).transpose()
    }

    fn required<T: FromStr>(&self, name: &'static str, expected: &str) -> Result<T, TopologyError> {
        let value = self.optional(name, expected)?;
        value.ok_or_else(|| self.error(name, expected, "missing"))
    }

    fn error(&self, parameter: &'static str, expected: &str, got: &str) -> TopologyError {
        TopologyError::Parameter {
            topology: self.topology,
            parameter,
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }
}

impl FromStr for InterClique {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL
            .into_iter()
            .find(|inter| inter.to_string() == text);
        named.ok_or(())
    }
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
        "stl-fw:d=4,class_distance=2,noise=0.5",
        "stl-fw-undirected:d=4,lambda=0.3",
    ];

    #[test]
    fn names_are_read_back() -> Result<(), TopologyError> {
        for spec in SPECS {
            assert_eq!(parse(spec)?.name(), spec);
        }
        let tested = SPECS.map(|spec| spec.split(':').next().unwrap_or(spec));
        for (name, _) in known() {
            assert!(tested.contains(&name), "{name} has no test");
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
             d-cliques, stl-fw, stl-fw-undirected",
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
            "stl-fw: class_distance is missing, expected a number",
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
            let may_fall_apart = ["erdos", "watts", "removed"];
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
