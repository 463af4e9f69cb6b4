//! What each node computes on its own.

use moeshard_tensor::linalg::{self, Threads, gather_rows};

use super::trainer::{Run, Task};
use crate::batches::Batches;
use crate::model::{Batch, Scratch};

/// Computes the gradients of a rank's nodes.
#[derive(Debug)]
pub(super) struct Gradients {
    /// One a thread.
    workers: Vec<Worker>,
    /// `[n_local]`: the order in which each node goes through its examples.
    batches: Vec<NodeBatches>,
    /// `[n_local]`: of the round's batches.
    losses: Vec<f32>,
}

impl Gradients {
    pub(super) fn new(n_threads: usize, batches: Vec<Batches>) -> Self {
        Self {
            workers: (0..n_threads).map(|_| Worker::default()).collect(),
            losses: vec![0.0; batches.len()],
            batches: batches.into_iter().map(NodeBatches::new).collect(),
        }
    }

    pub(super) fn workers(&mut self) -> &mut [Worker] {
        &mut self.workers
    }

    /// Calls `f(gradient, rows)` for each node with the gradient of its batch of the round, or none if
    /// the node has left, and with its rows of `matrices`, the first of which are the models. Returns
    /// the mean loss.
    pub(super) fn of_batches<const N: usize>(
        &mut self,
        run: &Run<'_>,
        matrices: [&mut [f32]; N],
        f: impl Fn(Option<&[f32]>, &mut [&mut [f32]; N]) + Sync,
    ) -> f32 {
        let rows = rows_of_nodes(run.nodes.len(), matrices);
        let parts = rows
            .into_iter()
            .zip(&mut self.batches)
            .zip(&mut self.losses);
        let mut nodes: Vec<_> = parts
            .map(|((rows, batches), loss)| (rows, batches, loss))
            .collect();
        (run.threads).for_each_item(&mut self.workers, &mut nodes, |worker, i, node| {
            let (rows, batches, loss) = node;
            if run.has_left(run.nodes.start + i) {
                **loss = 0.0;
                return f(None, rows);
            }
            let batch = batches.of_round(run.round);
            let (batch_loss, gradient) = worker.gradient(&run.task, rows[0], batch);
            **loss = batch_loss;
            f(Some(gradient), rows);
        });
        self.mean_loss()
    }

    /// Copies the gradient of each node's batch to its row; zeros for a node that has left.
    pub(super) fn copy_of_batches(
        &mut self,
        run: &Run<'_>,
        models: &mut [f32],
        to: &mut [f32],
    ) -> f32 {
        self.of_batches(run, [models, to], |gradient, [_, to]| match gradient {
            Some(gradient) => to.copy_from_slice(gradient),
            None => to.fill(0.0),
        })
    }

    /// Adds the losses of the round's batches to `sums`, `[n_local]`.
    pub(super) fn add_losses(&self, sums: &mut [f32]) {
        for (sum, loss) in sums.iter_mut().zip(&self.losses) {
            *sum += loss;
        }
    }

    /// Over this rank's nodes; those that have left count as zero.
    fn mean_loss(&self) -> f32 {
        let sum: f64 = self.losses.iter().map(|&loss| f64::from(loss)).sum();
        (sum / self.losses.len().max(1) as f64) as f32
    }
}

/// The batches of a node, pass after pass: a node with fewer examples goes through them more often.
#[derive(Debug)]
struct NodeBatches {
    batches: Batches,
    /// The pass whose order the batches have.
    pass: Option<u64>,
}

impl NodeBatches {
    fn new(batches: Batches) -> Self {
        Self {
            batches,
            pass: None,
        }
    }

    fn of_round(&mut self, round: u64) -> &[u32] {
        let n = self.batches.n_batches() as u64;
        let pass = round / n;
        if self.pass != Some(pass) {
            self.batches.start_epoch(pass as u32);
            self.pass = Some(pass);
        }
        self.batches.batch((round % n) as usize)
    }
}

/// Memory of one thread at work on a node.
#[derive(Debug, Default)]
pub(super) struct Worker {
    pub(super) scratch: Scratch,
    /// `[_, n_classes]`
    pub(super) logits: linalg::Scratch,
    features: linalg::Scratch,
    labels: Vec<u32>,
    /// `[n_params]`
    gradient: Vec<f32>,
}

impl Worker {
    /// The mean loss over some examples of the training data, and its gradient.
    pub(super) fn gradient(
        &mut self,
        task: &Task<'_>,
        params: &[f32],
        examples: &[u32],
    ) -> (f32, &[f32]) {
        let n_features = task.model.n_features();
        let features = self.features.room(examples.len() * n_features);
        gather_rows(&task.train.features, n_features, examples, features)
            .expect("a partition names examples of the data");
        self.labels.clear();
        let labels = examples
            .iter()
            .map(|&example| task.train.labels[example as usize]);
        self.labels.extend(labels);
        let batch = Batch {
            features,
            labels: &self.labels,
        };
        self.gradient.resize(params.len(), 0.0);
        let loss = (task.model).gradient(params, batch, &mut self.gradient, &mut self.scratch);
        (loss, &self.gradient)
    }

    /// The gradient over `examples`, and the variance of that over a batch of `batch_size`, estimated
    /// from the two halves: with m examples of variance σ² each, `E‖g₁ − g₂‖² = 4σ²/m`.
    pub(super) fn gradient_and_noise(
        &mut self,
        task: &Task<'_>,
        params: &[f32],
        examples: &[u32],
        batch_size: usize,
        gradient: &mut [f32],
    ) -> f32 {
        let (first, second) = examples.split_at(examples.len() / 2);
        let (_, of_second) = self.gradient(task, params, second);
        gradient.copy_from_slice(of_second);
        if first.is_empty() {
            return 0.0;
        }
        let (_, of_first) = self.gradient(task, params, first);
        let mut distance = 0.0f64;
        for (g, &other) in gradient.iter_mut().zip(of_first) {
            distance += f64::from(*g - other).powi(2);
            *g = f32::midpoint(*g, other);
        }
        let of_one = distance * examples.len() as f64 / 4.0;
        (of_one / batch_size as f64) as f32
    }
}

/// Calls `f(rows)` for each of `n` nodes, with its row of each matrix.
pub(super) fn for_each_node<const N: usize>(
    threads: &Threads,
    n: usize,
    matrices: [&mut [f32]; N],
    f: impl Fn(&mut [&mut [f32]; N]) + Sync,
) {
    let mut nodes = rows_of_nodes(n, matrices);
    threads.for_each_chunk(&mut nodes, 1, |_, node| f(&mut node[0]));
}

/// The row of each of `n` nodes in each matrix; of an empty matrix the rows are empty.
fn rows_of_nodes<const N: usize>(n: usize, matrices: [&mut [f32]; N]) -> Vec<[&mut [f32]; N]> {
    let mut rows = matrices.map(|matrix| {
        let row_len = (matrix.len() / n.max(1)).max(1);
        matrix.chunks_exact_mut(row_len)
    });
    (0..n)
        .map(|_| rows.each_mut().map(|rows| rows.next().unwrap_or_default()))
        .collect()
}
