//! Decentralized learning: participants (*nodes*) that each hold some of the data train one model
//! together by exchanging parameters with their neighbours in a *topology*, without a server.
//!
//! In reading order:
//! - [`seed`]: every random choice follows from one seed.
//! - [`classes`]: how many examples of each class each node holds.
//! - [`mixing`]: the doubly stochastic matrix by which nodes average their models.
//! - [`graph`]: undirected graphs and their Metropolis–Hastings weights.
//! - [`digraph`]: directed graphs and their components.
//! - [`topology`]: who exchanges with whom, fixed or learned.
//! - [`measures`]: what is good or bad about a topology, told before training.

pub mod classes;
pub mod digraph;
pub mod graph;
pub mod measures;
pub mod mixing;
pub mod seed;
pub mod topology;
