//! What each node computes on its own.

use moeshard_tensor::linalg::{self, gather_rows};

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
    /// `[n_local]`: of the round's batches; nothing of a node that has left.
    losses: Vec<Option<f32>>,
}

impl Gradients {
    pub(super) fn new(n_threads: usize, batches: Vec<Batches>) -> Self {
        Self {
            workers: (0..n_threads).map(|_| Worker::default()).collect(),
            losses: vec![None; batches.len()],
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
                **loss = None;
                return f(None, rows);
            }
            let batch = batches.of_round(run.round);
            let (batch_loss, gradient) = worker.gradient(&run.task, rows[0], batch);
            **loss = Some(batch_loss);
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

    /// Adds the losses of the round's batches to sums and numbers, `[n_local, 2]`.
    pub(super) fn add_losses(&self, sums: &mut [f32]) {
        let sums = sums.as_chunks_mut::<2>().0;
        for ([sum, number], loss) in sums.iter_mut().zip(&self.losses) {
            if let Some(loss) = loss {
                *sum += loss;
                *number += 1.0;
            }
        }
    }

    /// Over this rank's nodes that have not left; zero if all have.
    fn mean_loss(&self) -> f32 {
        let losses = || self.losses.iter().flatten();
        let sum: f64 = losses().map(|&loss| f64::from(loss)).sum();
        (sum / losses().count().max(1) as f64) as f32
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

    /// The gradient over `examples`, whose number is even, and the variance S² of one example's, from
    /// how far those of the two halves are apart: of m drawn at random `E‖g₁ − g₂‖² = 4·S²/m`.
    pub(super) fn gradient_and_variance(
        &mut self,
        task: &Task<'_>,
        params: &[f32],
        examples: &[u32],
        gradient: &mut [f32],
    ) -> f64 {
        let (first, second) = examples.split_at(examples.len() / 2);
        gradient.copy_from_slice(self.gradient(task, params, first).1);
        let of_second = self.gradient(task, params, second).1;
        let mut distance = 0.0f64;
        for (g, &other) in gradient.iter_mut().zip(of_second) {
            distance += f64::from(*g - other).powi(2);
            *g = f32::midpoint(*g, other);
        }
        distance * examples.len() as f64 / 4.0
    }
}

/// Calls `f(rows)` for each node of this rank that has not left, with its row of each matrix, and
/// `if_left(rows)` for the others.
pub(super) fn for_each_node<const N: usize>(
    run: &Run<'_>,
    matrices: [&mut [f32]; N],
    f: impl Fn(&mut [&mut [f32]; N]) + Sync,
    if_left: impl Fn(&mut [&mut [f32]; N]) + Sync,
) {
    let mut nodes = rows_of_nodes(run.nodes.len(), matrices);
    (run.threads).for_each_chunk(&mut nodes, 1, |i, node| {
        match run.has_left(run.nodes.start + i) {
            true => if_left(&mut node[0]),
            false => f(&mut node[0]),
        }
    });
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
