//! The program from outside: its arguments, the hub, bulk files, benches, topologies, and the server
//! as a process.

mod args;
mod bench;
mod bulk;
mod fake_hub;
mod hub;
mod server;
mod support;
mod topology;
