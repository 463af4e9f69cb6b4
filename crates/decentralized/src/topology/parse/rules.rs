//! The topologies that can be named.

use std::path::Path;

use super::listed;
use super::parameters::Parameters;
use crate::topology::stl_fw::{Lambda, StlFw};
use crate::topology::{
    BaseGraph, Complete, DCliques, ErdosRenyi, Exponential, FromFile, Grid, InterClique,
    OnePeerExponential, RandomRegular, Ring, SmallWorld, Topology, TopologyError, Torus,
    WattsStrogatz,
};

/// A topology that can be named.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// What can be said of it.
    pub parameters: &'static [Parameter],
    pub(super) build: Build,
}

/// A parameter of a topology.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it means, with its default if it has one.
    pub summary: &'static str,
}

/// How what follows the name is understood.
#[derive(Clone, Copy, Debug)]
pub(super) enum Build {
    /// As `name=value,…`.
    Parameters(fn(&Parameters<'_>) -> Built),
    /// As a path, which may contain anything.
    Path(fn(&Path) -> Built),
}

pub(super) type Built = Result<Box<dyn Topology>, TopologyError>;

const SIZE: Parameter = parameter("size", "nodes of a clique at most; default 10");
const INTER: Parameter = parameter(
    "inter",
    "edges between cliques: full (one for each pair), ring, fractal or small-world; default full",
);
const STEPS: Parameter = parameter(
    "steps",
    "steps of Greedy Swap; 0 leaves cliques random; default 1000 for 10 cliques, more for more",
);
const REMOVED_EDGES: Parameter = parameter("removed-edges", "edges that a clique loses; default 0");
const BUDGET: Parameter = parameter("d", "most neighbours to send to, or to receive from");
const LAMBDA: Parameter = parameter("lambda", "weight of the variance in H; default 0.1");
const CLASS_DISTANCE: Parameter = parameter(
    "class-distance",
    "B, squared distance of two classes' gradients: lambda = noise / (classes * B)",
);
const NOISE: Parameter = parameter(
    "noise",
    "variance of a stochastic gradient, with class-distance",
);

/// Every topology, in the order in which errors list them.
pub(super) const RULES: &[Rule] = &[
    rule("complete", "everybody with everybody", &[], |_| {
        built(Complete)
    }),
    rule(
        "ring",
        "each node with the next and the one before",
        &[],
        |_| built(Ring),
    ),
    rule(
        "grid",
        "a rectangle as near to a square as there is",
        &[],
        |_| built(Grid),
    ),
    rule(
        "torus",
        "a grid whose opposite sides are joined",
        &[],
        |_| built(Torus),
    ),
    rule(
        "random",
        "drawn from the graphs in which every node has d neighbours",
        &[parameter("d", "neighbours of a node")],
        random_regular,
    ),
    rule(
        "erdos-renyi",
        "each pair of nodes with the same probability",
        &[parameter("p", "that probability")],
        erdos_renyi,
    ),
    rule(
        "exponential",
        "node i sends to i + 1, i + 2, i + 4, …; directed",
        &[],
        |_| built(Exponential),
    ),
    rule(
        "one-peer-exponential",
        "one of these a round, in turn; directed",
        &[],
        |_| built(OnePeerExponential),
    ),
    rule(
        "base",
        "Base-(k+1): rounds after which all hold the exact average",
        &[parameter("k", "most neighbours in a round; default 1")],
        base,
    ),
    rule(
        "small-world",
        "a ring with links at distances that double",
        &[parameter(
            "k",
            "neighbours on each side for each power of two; default 2",
        )],
        small_world,
    ),
    rule(
        "watts-strogatz",
        "a ring of d neighbours, of which some are moved to random places",
        &[
            parameter("d", "neighbours of a node before, even"),
            parameter("p", "probability that an edge is moved"),
        ],
        watts_strogatz,
    ),
    rule(
        "d-cliques",
        "cliques that hold about the classes of all, and few edges between them; needs classes",
        &[SIZE, INTER, STEPS, REMOVED_EDGES],
        d_cliques,
    ),
    rule(
        "stl-fw",
        "learned: least neighborhood heterogeneity H within a budget; directed; needs classes",
        &[BUDGET, LAMBDA, CLASS_DISTANCE, NOISE],
        |given| stl_fw(given, false),
    ),
    rule(
        "stl-fw-undirected",
        "the same with a symmetric mixing matrix; needs classes",
        &[BUDGET, LAMBDA, CLASS_DISTANCE, NOISE],
        |given| stl_fw(given, true),
    ),
    Rule {
        name: "file",
        summary: "what a file says, written by `moeshard topology build` or by hand",
        parameters: &[parameter("PATH", "the file: all that follows the colon")],
        build: Build::Path(|path| built(FromFile { path: path.into() })),
    },
];

const fn rule(
    name: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    build: fn(&Parameters<'_>) -> Built,
) -> Rule {
    Rule {
        name,
        summary,
        parameters,
        build: Build::Parameters(build),
    }
}

const fn parameter(name: &'static str, summary: &'static str) -> Parameter {
    Parameter { name, summary }
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
    let parts = ["class-distance", "noise"];
    let part = parts.into_iter().find(|part| given.text(part).is_some());
    match (given.optional("lambda", NUMBER)?, part) {
        (None, None) => {}
        (Some(lambda), None) => topology.lambda = Lambda::Given(lambda),
        (None, Some(_)) => {
            topology.lambda = Lambda::Derived {
                class_distance: given.required("class-distance", NUMBER)?,
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
