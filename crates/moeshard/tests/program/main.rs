//! The program from outside: its arguments, the hub, bulk files, and the server as a process.

mod args;
mod bulk;
mod fake_hub;
mod hub;
mod server;
mod support;
