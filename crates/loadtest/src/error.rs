use std::io;
use std::path::PathBuf;

/// Why a load test could not be run or reported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is impossible.
    #[error("{name} {reason}")]
    Argument {
        /// The option, as typed on the command line.
        name: &'static str,
        /// What is wrong with it, with the value found.
        reason: String,
    },
    /// The URL is not one this generator can load.
    #[error("url {url:?} {reason}")]
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The host of the URL has no address.
    #[error("cannot resolve {host:?}")]
    Resolve {
        /// Host and port of the URL.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The file of input texts cannot be read.
    #[error("cannot read the texts of {}", path.display())]
    ReadTexts {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file of input texts has no text in it.
    #[error("no text in {}: every line is blank", path.display())]
    NoTexts {
        /// The file.
        path: PathBuf,
    },
    /// The JSON report cannot be written.
    #[error("cannot write the report to {}", path.display())]
    WriteReport {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The table cannot be written.
    #[error("cannot print the report")]
    Print(#[from] io::Error),
    /// The thread that paces the arrivals cannot be started.
    #[error("cannot start the thread that paces the requests")]
    Pacer {
        /// What the system said.
        source: io::Error,
    },
    /// Not one request was answered.
    #[error("all {n_requests} requests failed; the first with: {first_error}")]
    AllFailed {
        /// How many were sent.
        n_requests: u64,
        /// The first failure seen.
        first_error: String,
    },
    /// No request fell due within the duration.
    #[error("no request was due within the duration; raise --duration or --request-rate")]
    NothingSent,
}
