//! STL-FW: the sparse topology that minimises a bound on neighborhood heterogeneity, learned by
//! Frank–Wolfe from the classes that nodes hold.
//!
//! Every iteration moves W towards one permutation matrix, so that a node gains at most one
//! neighbour to send to and one to receive from: the number of iterations is the budget of
//! communication.
//!
//! In reading order:
//! - `objective`: what is minimised.
//! - `iterate`: W and the exact step.
//! - `oracle`: which permutation to move towards, an assignment problem.
//! - `pairing`: a permutation made its own inverse, for undirected graphs.
//! - `trace`: what learning went through.

use crate::classes::ClassCounts;
use crate::seed::Rng;
use crate::topology::{Nodes, Schedule, Topology, TopologyError};

mod iterate;
mod objective;
mod oracle;
mod pairing;
mod trace;

use iterate::Iterate;
use objective::Proportions;
use oracle::Costs;

pub use oracle::Oracle;
pub use trace::{Iteration, Learned};

/// λ unless another is asked for: that of the authors' experiments on data sets.
pub const DEFAULT_LAMBDA: f64 = 0.1;

/// A smaller step is taken for none: W is at the minimum, up to rounding.
const MIN_GAMMA: f64 = 1e-9;

/// Iterations for each neighbour of the budget. Nearly every iteration adds one; the bound is for
/// budgets that almost all of a small graph fits into, where steps among the neighbours that are
/// there already gain less and less for ever.
const MAX_ITERATIONS_PER_DEGREE: usize = 20;

/// A few nodes of which some hold the same classes are learned for this often, and the best is kept:
/// chance decides between equally good permutations, and the objective scatters by 0.5 % at
/// n = 100 and 0.1 % at n = 500 (`benches/topology_learning.rs`), less for more nodes.
const N_TRIES: usize = 4;
const MAX_NODES_TRIED_AGAIN: usize = 500;

/// The trade-off λ between bias and variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lambda {
    /// As it is.
    Given(f64),
    /// `λ = σ²/(K·B)`, K being the number of classes.
    Derived {
        /// B: bound on the squared distance between the gradients of two classes.
        class_distance: f64,
        /// σ²: bound on the variance of a node's stochastic gradient.
        noise: f64,
    },
}

/// The learned topology.
///
/// # Source
/// arXiv:2204.04452, algorithm 2.
#[derive(Clone, Debug, PartialEq)]
pub struct StlFw {
    /// The budget: the most neighbours that a node may send to or receive from.
    pub d_max: usize,
    /// The trade-off between bias and variance.
    pub lambda: Lambda,
    /// Whether W is kept symmetric: the permutation of an iteration is made its own inverse, so
    /// that a node gains at most one neighbour for both ways.
    ///
    /// Half the edges of a directed graph of that degree are free to choose, so that the objective
    /// is larger. The assignment problem has twice the rank, and nodes that hold the same
    /// classes fall into groups only while their neighbours do too, so that learning takes
    /// longer.
    pub is_undirected: bool,
    /// How the assignment problem is solved.
    pub oracle: Oracle,
}

impl StlFw {
    /// Directed, with λ = [`DEFAULT_LAMBDA`].
    #[must_use]
    pub fn new(d_max: usize) -> Self {
        Self {
            d_max,
            lambda: Lambda::Given(DEFAULT_LAMBDA),
            is_undirected: false,
            oracle: Oracle::Implicit,
        }
    }

    /// The last W within the budget, and every iteration up to it. Chance, drawn from `rng`,
    /// decides between equally good permutations: any fixed rule leaves nodes that hold the same
    /// classes in several components.
    ///
    /// With `d_max` 1 the graph is never connected.
    ///
    /// # Errors
    /// If `nodes` have no classes, or a parameter is out of range.
    pub fn learn(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Learned, TopologyError> {
        self.learn_watched(nodes, rng, |_| ())
    }

    /// The same; `on_iteration` is told of every iteration when it is there, from the identity on. Where
    /// learning is tried several times it hears of all tries, one after the other.
    ///
    /// # Errors
    /// As [`Self::learn`].
    pub fn learn_watched(
        &self,
        nodes: &Nodes<'_>,
        rng: &mut Rng,
        mut on_iteration: impl FnMut(&Iteration),
    ) -> Result<Learned, TopologyError> {
        let classes = self.check(nodes)?;
        let lambda = self.lambda(classes.n_classes())?;
        let pi = Proportions::of(classes);
        let tries =
            (0..self.n_tries(&pi)).map(|_| self.frank_wolfe(&pi, lambda, rng, &mut on_iteration));
        let best = tries.min_by(|a, b| last_objective(&a.1).total_cmp(&last_objective(&b.1)));
        let (iterate, trace) = best.expect("at least one try");
        Ok(Learned {
            mixing: iterate.into_mixing(),
            lambda,
            trace,
        })
    }

    fn frank_wolfe(
        &self,
        pi: &Proportions,
        lambda: f64,
        rng: &mut Rng,
        on_iteration: &mut impl FnMut(&Iteration),
    ) -> (Iterate, Vec<Iteration>) {
        let mut iterate = Iterate::identity(pi);
        let mut trace = vec![iteration(&iterate, pi, lambda, 0.0)];
        on_iteration(&trace[0]);
        for _ in 0..MAX_ITERATIONS_PER_DEGREE * self.d_max {
            let to = self.permutation(&iterate, pi, lambda, rng);
            let gamma = iterate.exact_step(&to, pi, lambda);
            if gamma < MIN_GAMMA {
                break;
            }
            let mut next = iterate.clone();
            next.step(&to, pi, gamma);
            let reached = iteration(&next, pi, lambda, gamma);
            if reached.max_degree > self.d_max {
                break;
            }
            iterate = next;
            on_iteration(&reached);
            trace.push(reached);
        }
        (iterate, trace)
    }

    /// How often to learn. The reference takes what comes.
    fn n_tries(&self, pi: &Proportions) -> usize {
        let is_few = pi.rows.len() / pi.n_classes <= MAX_NODES_TRIED_AGAIN;
        match self.oracle == Oracle::Implicit && is_few && pi.has_twins() {
            true => N_TRIES,
            false => 1,
        }
    }

    fn permutation(
        &self,
        iterate: &Iterate,
        pi: &Proportions,
        lambda: f64,
        rng: &mut Rng,
    ) -> Vec<u32> {
        if self.is_undirected {
            let costs = Costs::undirected(iterate, pi, lambda);
            pairing::pair(&costs, &self.oracle.assign(&costs, rng))
        } else {
            let costs = Costs::directed(iterate, pi, lambda);
            self.oracle.assign(&costs, rng)
        }
    }

    fn check<'a>(&self, nodes: &Nodes<'a>) -> Result<&'a ClassCounts, TopologyError> {
        let topology = self.stem();
        let classes = nodes.classes.ok_or(TopologyError::NoClasses { topology })?;
        let n_nodes = nodes.n_nodes;
        if classes.n_nodes() != n_nodes {
            let expected = format!("{n_nodes}, as there are nodes");
            return Err(self.parameter("rows of class counts", expected, &classes.n_nodes()));
        }
        if self.d_max == 0 || self.d_max >= n_nodes {
            let expected = format!("at least 1 and less than the {n_nodes} nodes");
            return Err(self.parameter("d", expected, &self.d_max));
        }
        nodes.check(topology, self.d_max)?;
        Ok(classes)
    }

    fn lambda(&self, n_classes: usize) -> Result<f64, TopologyError> {
        let check = |name, value: f64, is_in_range: bool, range: &str| {
            if is_in_range && value.is_finite() {
                return Ok(());
            }
            Err(self.parameter(name, format!("a {range} number"), &value))
        };
        let lambda = match self.lambda {
            Lambda::Given(lambda) => lambda,
            Lambda::Derived {
                class_distance,
                noise,
            } => {
                check(
                    "class-distance",
                    class_distance,
                    class_distance > 0.0,
                    "positive",
                )?;
                check("noise", noise, noise >= 0.0, "non-negative")?;
                noise / (n_classes as f64 * class_distance)
            }
        };
        check("lambda", lambda, lambda >= 0.0, "non-negative")?;
        Ok(lambda)
    }

    fn parameter(
        &self,
        parameter: &'static str,
        expected: String,
        got: &impl ToString,
    ) -> TopologyError {
        TopologyError::Parameter {
            topology: self.stem(),
            parameter,
            expected,
            got: got.to_string(),
        }
    }

    fn stem(&self) -> &'static str {
        match self.is_undirected {
            false => "stl-fw",
            true => "stl-fw-undirected",
        }
    }
}

impl Topology for StlFw {
    /// `stl-fw:d=10`, then λ where it is not the default.
    fn name(&self) -> String {
        let lambda = match self.lambda {
            Lambda::Given(DEFAULT_LAMBDA) => String::new(),
            Lambda::Given(lambda) => format!(",lambda={lambda}"),
            Lambda::Derived {
                class_distance,
                noise,
            } => format!(",class-distance={class_distance},noise={noise}"),
        };
        format!("{}:d={}{lambda}", self.stem(), self.d_max)
    }

    fn connect(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Schedule, TopologyError> {
        Ok(Schedule::fixed(self.learn(nodes, rng)?.mixing))
    }
}

fn last_objective(trace: &[Iteration]) -> f64 {
    trace.last().map_or(f64::INFINITY, |last| last.objective)
}

fn iteration(iterate: &Iterate, pi: &Proportions, lambda: f64, gamma: f64) -> Iteration {
    let heterogeneity = iterate.heterogeneity(pi);
    Iteration {
        objective: heterogeneity.objective(lambda),
        heterogeneity,
        gamma,
        max_degree: iterate.max_degree(),
    }
}
