//! The real program over HTTP, as a user meets it.
//!
//! Each test starts its own server, on a free port, of the built-in model or of a golden.

mod answers;
mod bad_requests;
mod learned_head;
mod life;
mod numbers;
mod probes;
mod ranks;
mod start_up;
