//! Decentralized learning: participants (*nodes*) that each hold some of the data train one model
//! together by exchanging parameters with their neighbours in a *topology*, without a server.
//!
//! In reading order:
//! - [`seed`]: every random choice follows from one seed.
//! - [`classes`]: how many examples of each class each node holds.
//! - [`data`]: examples with their labels, read from files.
//! - [`partition`]: which node holds which examples.
//! - [`batches`]: in which order a node goes through its examples.
//! - [`mixing`]: the doubly stochastic matrix by which nodes average their models.
//! - [`graph`]: undirected graphs and their Metropolis–Hastings weights.
//! - [`digraph`]: directed graphs and their components.
//! - [`topology`]: who exchanges with whom, fixed or learned.
//! - [`measures`]: what is good or bad about a topology, told before training.
//! - [`mean_estimation`]: the smallest problem on which a topology shows what it does.
//! - [`model`]: classifiers that nodes train.
//! - [`train`]: algorithms, rounds, evaluations, checkpoints.
//! - [`record`]: what a training run writes down, line by line.
//! - [`report`]: records and topologies as one page of HTML.

pub mod batches;
pub mod classes;
pub mod data;
pub mod digraph;
pub mod graph;
pub mod mean_estimation;
pub mod measures;
pub mod mixing;
pub mod model;
pub mod partition;
pub mod record;
pub mod report;
pub mod seed;
pub mod topology;
pub mod train;
