//! HTTP routes, wire types, errors, metrics and OpenAPI.
//!
//! Only this crate knows the JSON on the wire and the status codes. In reading order:
//!
//! 1. [`server`]: the router with its layers, and [`serve`], which runs it until shutdown.
//! 2. `routes`: one file per family of clients: embeddings, classification, OpenAI, tools, probes.
//! 3. [`wire`]: what requests and responses look like; [`body`] reads them and names the field
//!    that is wrong.
//! 4. [`error`]: the one `match` from an error to a status, and the two shapes of an error on the
//!    wire (text-embeddings-inference's and OpenAI's).
//! 5. [`metrics`], [`observe`]: what is counted, and the layer that counts and logs each request.
//!
//! The port is bound before the model is loaded: the state holds a
//! [`ModelSlot`](moeshard_batcher::ModelSlot), and until it is filled `/live` says 200 while
//! `/health` and every route that needs the model say 503.
//!
//! ```text
//! let slot = ModelSlot::new();
//! let state = AppState::new(slot.clone(), HttpConfig::default());
//! let server = tokio::spawn(serve(listener, state, shutdown_signal));
//! // … load the model, then:
//! slot.fill(handle);
//! server.await??;
//! ```
//!
//! Bodies are never logged, nor is the API key.

mod auth;
pub mod body;
pub mod config;
mod drain;
pub mod error;
pub mod metrics;
pub mod observe;
pub mod openapi;
mod routes;
pub mod server;
pub mod state;
pub mod wire;

pub use axum::http::HeaderValue;
pub use config::{ApiKey, HttpConfig};
pub use error::RequestError;
pub use server::{router, serve};
pub use state::AppState;
