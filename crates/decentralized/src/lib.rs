//! Decentralized learning: participants (*nodes*) that each hold some of the data train one model
//! together by exchanging parameters with their neighbours in a *topology*, without a server.
//!
//! In reading order:
//! - [`seed`]: every random choice follows from one seed.
//! - [`classes`]: how many examples of each class each node holds.
//! - [`mixing`]: the doubly stochastic matrix by which nodes average their models.
//! - [`topology`]: who exchanges with whom, fixed or learned.
//! - [`record`]: what a training run writes down, line by line.
//! - [`report`]: records and topologies as one page of HTML.

pub mod classes;
pub mod mixing;
pub mod record;
pub mod report;
pub mod seed;
pub mod topology;
