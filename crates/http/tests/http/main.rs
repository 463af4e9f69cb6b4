//! The server from its wire to a fake engine and back.

mod bad_input;
mod lifecycle;
mod log;
mod openai_errors;
mod routes;
mod support;
