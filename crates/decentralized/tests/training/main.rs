//! Training: every algorithm against a plain implementation, the same bits for any number of threads
//! and ranks, runs that go on, nodes that miss rounds, and what is refused.

mod checkpoints;
mod equal_bits;
mod heterogeneity;
mod methods;
mod models;
mod ranks;
mod refused;
mod support;
