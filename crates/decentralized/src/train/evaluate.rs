//! How good the models are, and how far apart.

use std::ops::Range;

use rand::seq::SliceRandom;

use super::Result;
use super::gradients::Worker;
use super::trainer::Trainer;
use crate::data::Dataset;
use crate::measures::Heterogeneity;
use crate::model::Model;
use crate::seed::{self, Rng};
use crate::topology::Schedule;

/// Examples that a thread takes at a time.
const BLOCK: usize = 500;

/// How the nodes' models do.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Share of the test examples that each node's model gets right, `[n_nodes]`.
    pub accuracy: Vec<f32>,
    /// Mean cross-entropy of all models on the test examples.
    pub loss: f64,
    /// Mean of the batches' losses since the last evaluation, as training saw them, over the nodes that
    /// trained; zero if none has.
    pub train_loss: f64,
    /// `(1/n) Σ_i ‖θ_i − θ̄‖²`
    pub consensus_distance: f64,
}

/// Most examples of a node whose gradients are measured for the heterogeneity: few beside a pass over
/// the data.
const HETEROGENEITY_EXAMPLES: usize = 128;

/// Streams of the seed from which these examples are drawn, one for each node.
const STREAMS: u64 = 1 << 61;

impl Trainer<'_> {
    /// Neighborhood heterogeneity of the gradients at the mean of all models, with the mixing matrix of
    /// the next round; on rank 0, nothing elsewhere.
    ///
    /// A node's gradient is measured on examples drawn once from its own, always the same. What that
    /// adds to the bias is taken off again, so that the bias of a good topology is near zero, give or
    /// take; the variance is that of the gradient of a batch.
    ///
    /// # Communication
    /// Two gathers and a broadcast; every rank must call it.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn heterogeneity(&mut self, schedule: &Schedule) -> Result<Option<Heterogeneity>> {
        let n_params = self.run.task.model.n_params();
        let models = self.transport.gather(n_params, &self.state.models)?;
        let mut mean = models.map_or_else(
            || vec![0.0; n_params],
            |models| mean_model(&models, n_params),
        );
        self.transport.broadcast(&mut mean)?;

        // Of each node: the gradient, the variance of that of a batch, and that of the one measured.
        let row_len = n_params + 2;
        let mut rows = vec![0.0; self.run.nodes.len() * row_len];
        let run = &self.run;
        let (seed, batch_size) = (self.settings.seed, self.settings.batch_size.get());
        let mut items: Vec<_> = rows
            .chunks_exact_mut(row_len)
            .zip(run.nodes.clone())
            .collect();
        let workers = self.gradients.workers();
        run.threads
            .for_each_item(workers, &mut items, |worker, _, (row, node)| {
                let all = &run.task.partition.nodes[*node];
                let sample = sample(all, &mut seed::rng(seed, STREAMS + *node as u64));
                let (gradient, noise) = row.split_at_mut(n_params);
                let of_one = worker.gradient_and_variance(&run.task, &mean, &sample, gradient);
                noise[0] = (of_one * share_left(batch_size, all.len())) as f32;
                noise[1] = (of_one * share_left(sample.len(), all.len())) as f32;
            });
        let Some(rows) = self.transport.gather(row_len, &rows)? else {
            return Ok(None);
        };
        let nodes = || rows.chunks_exact(row_len);
        let gradients: Vec<f32> = nodes().flat_map(|row| &row[..n_params]).copied().collect();
        let mean_of = |at: usize| {
            let sum: f64 = nodes().map(|row| f64::from(row[n_params + at])).sum();
            sum / nodes().len() as f64
        };
        let mixing = schedule.mixing(self.run.round as usize);
        let of_unit_noise = Heterogeneity::of_gradients(mixing, &gradients, 1.0);
        Ok(Some(Heterogeneity {
            bias: (of_unit_noise.bias - mean_of(1) * of_unit_noise.variance).max(0.0),
            variance: mean_of(0) * of_unit_noise.variance,
        }))
    }

    /// Measures the models; on rank 0 of all nodes, nothing elsewhere.
    ///
    /// # Communication
    /// Three gathers; every rank must call it.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn evaluate(&mut self) -> Result<Option<Evaluation>> {
        let scores = self.test_scores();
        let scores = self.transport.gather(2, &scores)?;
        let train_losses = self.transport.gather(2, &self.state.losses)?;
        self.state.losses.fill(0.0);
        self.evaluated = Some(self.run.round);
        let n_params = self.run.task.model.n_params();
        let models = self.transport.gather(n_params, &self.state.models)?;
        let (Some(scores), Some(models), Some(train_losses)) = (scores, models, train_losses)
        else {
            return Ok(None);
        };
        let losses = scores.iter().skip(1).step_by(2).copied();
        Ok(Some(Evaluation {
            accuracy: scores.iter().copied().step_by(2).collect(),
            loss: mean(losses.map(f64::from)),
            train_loss: mean_loss(&train_losses),
            consensus_distance: self.distance_from_mean(&models),
        }))
    }

    /// Accuracy and mean loss of each of this rank's models, `[n_local, 2]`.
    fn test_scores(&mut self) -> Vec<f32> {
        let (run, models) = (&self.run, &self.state.models);
        let n_params = run.task.model.n_params();
        let n_examples = run.task.test.labels.len();
        let n_blocks = n_examples.div_ceil(BLOCK);
        let mut blocks = vec![(0usize, 0.0f64); run.nodes.len() * n_blocks];
        let workers = self.gradients.workers();
        run.threads
            .for_each_item(workers, &mut blocks, |worker, i, block| {
                let params = &models[i / n_blocks * n_params..][..n_params];
                let first = i % n_blocks * BLOCK;
                let examples = first..n_examples.min(first + BLOCK);
                *block = score(worker, run.task.model, run.task.test, params, examples);
            });
        let nodes = blocks.chunks_exact(n_blocks.max(1));
        nodes
            .flat_map(|blocks| {
                let n_right: usize = blocks.iter().map(|(n_right, _)| n_right).sum();
                let loss: f64 = blocks.iter().map(|(_, loss)| loss).sum();
                let n = n_examples as f64;
                [(n_right as f64 / n) as f32, (loss / n) as f32]
            })
            .collect()
    }

    /// `(1/n) Σ_i ‖θ_i − θ̄‖²` of all nodes' models.
    fn distance_from_mean(&self, models: &[f32]) -> f64 {
        const COLS: usize = 1024;
        let n_params = self.run.task.model.n_params();
        let n_nodes = models.len() / n_params;
        let mut sums = vec![0.0f64; n_params.div_ceil(COLS)];
        self.run.threads.for_each_chunk(&mut sums, 1, |i, sum| {
            let cols = i * COLS..n_params.min((i + 1) * COLS);
            let rows = || models.chunks_exact(n_params).map(|row| &row[cols.clone()]);
            let mut mean = vec![0.0f64; cols.len()];
            for row in rows() {
                for (mean, &x) in mean.iter_mut().zip(row) {
                    *mean += f64::from(x);
                }
            }
            mean.iter_mut().for_each(|mean| *mean /= n_nodes as f64);
            for row in rows() {
                for (mean, &x) in mean.iter().zip(row) {
                    sum[0] += (f64::from(x) - mean).powi(2);
                }
            }
        });
        sums.iter().sum::<f64>() / n_nodes as f64
    }
}

/// Some of a node's examples, drawn at random: an even number, or one of one.
fn sample(examples: &[u32], rng: &mut Rng) -> Vec<u32> {
    let mut sample = examples.to_vec();
    let n = match sample.len().min(HETEROGENEITY_EXAMPLES) {
        // Both halves of it are the one example, so that there is no noise.
        1 => return vec![sample[0]; 2],
        n => n - n % 2,
    };
    sample.partial_shuffle(rng, n).0.to_vec()
}

/// The variance of a mean of `n` values drawn from `of` without putting back, as a share of one value's.
fn share_left(n: usize, of: usize) -> f64 {
    (1.0 / n as f64 - 1.0 / of as f64).max(0.0)
}

/// The mean over nodes of their batches' mean loss, given sums and numbers, `[n_nodes, 2]`.
fn mean_loss(losses: &[f32]) -> f64 {
    let nodes = losses.as_chunks::<2>().0.iter();
    let trained = nodes.filter(|[_, number]| *number > 0.0);
    mean(trained.map(|&[sum, number]| f64::from(sum) / f64::from(number)))
}

/// Zero of nothing.
fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count().max(1) as f64
}

/// The share of examples that a model gets right.
#[must_use]
pub fn accuracy(model: &dyn Model, params: &[f32], data: &Dataset) -> f64 {
    let (mut worker, n_examples) = (Worker::default(), data.labels.len());
    let n_right = (0..n_examples).step_by(BLOCK).map(|first| {
        let examples = first..n_examples.min(first + BLOCK);
        score(&mut worker, model, data, params, examples).0
    });
    n_right.sum::<usize>() as f64 / n_examples as f64
}

/// Of some examples, how many a model gets right, and the sum of its losses.
fn score(
    worker: &mut Worker,
    model: &dyn Model,
    data: &Dataset,
    params: &[f32],
    examples: Range<usize>,
) -> (usize, f64) {
    let (n_features, n_classes) = (model.n_features(), model.n_classes());
    let features = &data.features[examples.start * n_features..examples.end * n_features];
    let labels = &data.labels[examples];
    let logits = worker.logits.room(labels.len() * n_classes);
    model.logits(params, features, logits, &mut worker.scratch);
    let mut score = (0, 0.0);
    for (row, &label) in logits.chunks_exact(n_classes).zip(labels) {
        let (best, loss) = best_and_loss(row, label as usize);
        score.0 += usize::from(best == label as usize);
        score.1 += loss;
    }
    score
}

/// The mean of the models of all nodes, `[n_nodes, n_params]`.
#[must_use]
pub fn mean_model(models: &[f32], n_params: usize) -> Vec<f32> {
    let mut mean = vec![0.0f64; n_params];
    let n_rows = (models.len() / n_params) as f64;
    for row in models.chunks_exact(n_params) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(mean, &x)| *mean += f64::from(x));
    }
    mean.into_iter().map(|sum| (sum / n_rows) as f32).collect()
}

/// The class of the largest logit (the first of equals), and the cross-entropy.
fn best_and_loss(logits: &[f32], label: usize) -> (usize, f64) {
    let mut best = 0;
    for (class, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = class;
        }
    }
    let largest = logits[best];
    let sum: f32 = logits.iter().map(|x| (x - largest).exp()).sum();
    (best, f64::from(sum.ln() + largest - logits[label]))
}
