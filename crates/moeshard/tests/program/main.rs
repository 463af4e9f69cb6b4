//! The program from outside: its arguments, the hub, bulk files, benches, topologies,
//! training, and the server as a process.

mod args;
mod bench;
mod bulk;
mod fake_hub;
mod folders;
mod hub;
mod mnist;
mod server;
mod support;
mod texts;
mod topology;
mod train;
