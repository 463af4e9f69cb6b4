//! Why a model could not be had from the hub.

use std::io;
use std::path::PathBuf;

/// Why a model could not be had from the hub. Each message is one sentence with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The hub knows no such model, or no such revision of it.
    #[error(
        "{endpoint} has no model `{id}` with revision `{revision}`; \
         a folder on this machine is written as ./{id}"
    )]
    NoSuchModel {
        /// The model.
        id: String,
        /// The revision.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub says neither that the model exists nor that it does not.
    #[error(
        "{endpoint} shows no model `{id}`: it does not exist, or it is private and needs a token \
         (--hf-token or HF_TOKEN)"
    )]
    Private {
        /// The model.
        id: String,
        /// The hub.
        endpoint: String,
    },
    /// The model exists and may not be read.
    #[error(
        "access to `{id}` is refused: accept its conditions at {endpoint}/{id} and pass your \
         token (--hf-token or HF_TOKEN)"
    )]
    Gated {
        /// The model.
        id: String,
        /// The hub.
        endpoint: String,
    },
    /// Any other refusal.
    #[error("{endpoint} answered status {status} when asked for {file} of `{id}`")]
    Status {
        /// The model.
        id: String,
        /// What was asked for.
        file: String,
        /// The answer.
        status: u16,
        /// The hub.
        endpoint: String,
    },
    /// No connection, and no copy in the cache.
    #[error(
        "`{id}` is no folder here, the cache has no whole copy of it, and {endpoint} cannot be \
         reached: {reason}"
    )]
    Unreachable {
        /// The model.
        id: String,
        /// The hub.
        endpoint: String,
        /// What the network said.
        reason: String,
    },
    /// A download broke again and again.
    #[error("the download of {file} of `{id}` broke, start again to resume it: {reason}")]
    Broken {
        /// The model.
        id: String,
        /// The file.
        file: String,
        /// What the network said.
        reason: String,
    },
    /// Working offline without a copy.
    #[error(
        "`{id}` with revision `{revision}` is not in the cache {} and HF_HUB_OFFLINE is set",
        cache.display()
    )]
    NotCached {
        /// The model.
        id: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The model lacks a file.
    #[error("`{id}` has no {expected} on the hub, so it cannot be served")]
    MissingFile {
        /// The model.
        id: String,
        /// What was looked for.
        expected: String,
    },
    /// The list of shards is malformed.
    #[error("{}: expected a weight_map from tensors to files of `{id}`, found {found}", path.display())]
    BadIndex {
        /// The model.
        id: String,
        /// The index.
        path: PathBuf,
        /// What it has instead.
        found: String,
    },
    /// The hub names a commit that cannot be one.
    #[error("the hub names `{found}` as the commit of `{id}`, expected letters and digits")]
    BadCommit {
        /// The model.
        id: String,
        /// What it names.
        found: String,
    },
    /// The cache cannot be used.
    #[error("`{id}` cannot be stored in the cache {}: {reason}", cache.display())]
    Local {
        /// The model.
        id: String,
        /// The cache.
        cache: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file of the cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
