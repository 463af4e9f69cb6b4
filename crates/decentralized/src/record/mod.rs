//! What a training run tells about itself: a header, an evaluation now and then, an end.
//!
//! Each is one line of JSON in the run's metrics file, told apart by its `kind`; [`read_runs`] reads
//! such files back. Reports are made of nothing else (and the topology).

use std::io;

use serde::{Deserialize, Deserializer, Serialize};

pub use crate::measures::Heterogeneity;

mod jsonl;

pub use jsonl::{RecordError, Run, parse_runs, read_runs};

/// One line of a metrics file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// The first line of a run.
    Header(Box<RunHeader>),
    /// How the models did at some point.
    Evaluation(Evaluation),
    /// The last line of a run that went through.
    End(RunEnd),
}

impl Record {
    /// Writes the record as one line, in one call: a process that is killed leaves at most the last
    /// line incomplete. Numbers that are not finite (a run that diverged) become `null`.
    ///
    /// # Errors
    /// Whatever `out` gives.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        out.write_all(&line)
    }
}

/// What is known of a run before it starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// By which reports tell runs apart.
    pub name: String,
    /// The topology as on the command line, with its parameters.
    pub topology: String,
    /// Such as `d-sgd` or `d-sgd + clique averaging`, with what else is not as usual.
    pub algorithm: String,
    /// Such as `linear` or `gn-lenet`.
    pub model: String,
    /// Data set or task, such as `mnist`.
    pub task: String,
    /// How examples were dealt out to nodes, such as `shards:k=2`.
    pub partition: String,
    /// From which everything random follows.
    pub seed: u64,
    /// Number of nodes.
    pub n_nodes: usize,
    /// Number of classes.
    pub n_classes: usize,
    /// Parameters of one node's model.
    pub n_params: usize,
    /// Epochs to train for.
    pub epochs: f64,
    /// Step size.
    pub learning_rate: f64,
    /// Examples of a node's step.
    pub batch_size: usize,
    /// Coefficient of the velocity; zero for none.
    pub momentum: f64,
    /// Rounds after which the mixing matrices repeat: 1 if they are all the same.
    pub period: usize,
    /// Pairs of nodes that exchange models in some round, each counted once whether models go one
    /// way or both.
    pub n_edges: u64,
    /// Most nodes that one node receives from, or sends to, in some round.
    pub max_degree: usize,
    /// Parts of the graph without an edge between them: 1 if it is connected.
    pub n_components: usize,
    /// `1 − |λ₂(W)|`; of the product over a period where the matrices vary. None if not computed.
    pub spectral_gap: Option<f64>,
    /// Neighborhood heterogeneity of W and the class proportions Π. None without classes.
    pub heterogeneity: Option<Heterogeneity>,
    /// Mean over cliques of the L1 distance of their class proportions from everybody's. None without
    /// cliques.
    pub mean_skew: Option<f64>,
    /// Messages of a round over all nodes, directed; the mean over a period.
    pub messages_per_round: f64,
    /// Bytes of these messages.
    pub bytes_per_round: f64,
}

/// How the nodes' models did at some point of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Epochs trained so far; zero before the first step.
    pub epoch: f64,
    /// Rounds so far.
    pub round: u64,
    /// Share of the test examples that nodes got right, in 0 to 1, over nodes.
    pub accuracy: Spread,
    /// Mean over nodes of the loss on the batches trained on since the last evaluation.
    pub train_loss: Option<f64>,
    /// Mean over nodes of the loss on the test examples.
    #[serde(deserialize_with = "null_as_nan")]
    pub test_loss: f64,
    /// `(1/n) Σ_i ‖θ_i − θ̄‖²`.
    #[serde(deserialize_with = "null_as_nan")]
    pub consensus_distance: f64,
    /// Neighborhood heterogeneity of the gradients at this point. None if not measured.
    pub heterogeneity: Option<Heterogeneity>,
    /// Bytes sent since the start, over all nodes, directed, every round counted.
    pub bytes_sent: u64,
    /// Messages sent since the start, counted the same way.
    pub messages: u64,
    /// By how much absent nodes have made the mixing matrix other than doubly stochastic so far: the mean
    /// absolute deviation of its columns' sums from one. None where nobody is ever absent.
    #[serde(default)]
    pub absence_bias: Option<f64>,
    /// Seconds of training since the start; if it was interrupted, without the rounds since the evaluation
    /// before.
    pub train_s: f64,
    /// Seconds of evaluation since the start, apart from training.
    pub eval_s: f64,
}

/// How a number is distributed over nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Arithmetic mean.
    #[serde(deserialize_with = "null_as_nan")]
    pub mean: f64,
    /// The least.
    #[serde(deserialize_with = "null_as_nan")]
    pub min: f64,
    /// A quarter of the nodes have less.
    #[serde(deserialize_with = "null_as_nan")]
    pub lower_quartile: f64,
    /// Half of the nodes have less.
    #[serde(deserialize_with = "null_as_nan")]
    pub median: f64,
    /// Three quarters of the nodes have less.
    #[serde(deserialize_with = "null_as_nan")]
    pub upper_quartile: f64,
    /// The greatest.
    #[serde(deserialize_with = "null_as_nan")]
    pub max: f64,
}

impl Spread {
    /// The spread of `values`, in any order; quantiles between two values are interpolated. None
    /// without values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let quantile = |share: f64| {
            let position = share * last as f64;
            let below = sorted[position.floor() as usize];
            let above = sorted[position.ceil() as usize];
            below + (above - below) * position.fract()
        };
        Some(Self {
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            min: sorted[0],
            lower_quartile: quantile(0.25),
            median: quantile(0.5),
            upper_quartile: quantile(0.75),
            max: sorted[last],
        })
    }
}

/// What is known when a run is through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunEnd {
    /// Epochs trained.
    pub epoch: f64,
    /// Rounds.
    pub round: u64,
    /// Bytes sent, over all nodes, directed, every round counted.
    pub bytes_sent: u64,
    /// Messages sent, counted the same way.
    pub messages: u64,
    /// Seconds of training.
    pub train_s: f64,
    /// Seconds of evaluation.
    pub eval_s: f64,
    /// Seconds of the run, without loading the data and learning the topology; if it was interrupted,
    /// since it went on.
    pub wall_s: f64,
}

// JSON has no NaN and no infinity: `serde_json` writes both as null.
pub(crate) fn null_as_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_interpolates_quartiles() {
        let spread = Spread::of(&[4.0, 1.0, 2.0, 3.0]).expect("values");
        assert_eq!((spread.min, spread.mean, spread.max), (1.0, 2.5, 4.0));
        let quartiles = [spread.lower_quartile, spread.median, spread.upper_quartile];
        assert_eq!(quartiles, [1.75, 2.5, 3.25]);
        let one = Spread::of(&[0.5]).expect("a value");
        assert_eq!((one.lower_quartile, one.upper_quartile), (0.5, 0.5));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_record_is_a_line_tagged_by_its_kind() {
        let mut line = Vec::new();
        let end = RunEnd {
            round: 3,
            ..RunEnd::default()
        };
        Record::End(end).write(&mut line).expect("memory");
        let line = String::from_utf8(line).expect("json");
        assert!(line.starts_with(r#"{"kind":"end","epoch":0.0,"round":3,"#));
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
    }
}
