//! The command line as a whole.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process;

use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::sentence::sentence;
use crate::{bench, classify, doctor, embed, inspect, serve, topology, train, verify};

/// Serve mixture-of-experts text encoders: embeddings and classification.
///
/// Every flag is also an environment variable: MOESHARD_ and the flag's name in capitals, as
/// MOESHARD_MAX_BATCH_TOKENS. The names that text-embeddings-inference gives its variables
/// (MODEL_ID, PORT, …) are understood where they are unmistakable.
#[derive(Debug, Parser)]
#[command(name = "moeshard", version, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Serve a model over HTTP (the default)
    Serve(Box<serve::ServeArgs>),
    /// Embed the texts of a file
    Embed(Box<embed::EmbedArgs>),
    /// Classify the texts of a file
    Classify(Box<classify::ClassifyArgs>),
    /// Show what a model is made of, and the memory it takes per rank
    Inspect(Box<inspect::InspectArgs>),
    /// Compare a model on this machine with the plain reference, layer by layer
    Verify(Box<verify::VerifyArgs>),
    /// Time a model on this machine, operation by operation
    Bench(Box<bench::BenchArgs>),
    /// Show what this machine has to compute with
    Doctor(doctor::DoctorArgs),
    /// Load a server and report its latencies
    Loadtest(Box<moeshard_loadtest::Args>),
    /// Let many nodes learn one classifier together, each from data of its own
    Train(Box<train::TrainArgs>),
    /// Connect nodes, learn how to connect them, and measure what that is worth
    Topology(Box<topology::TopologyArgs>),
}

/// Variables of text-embeddings-inference and of the Hugging Face hub, by flag. `HOSTNAME` is left
/// out: containers set it to their own name.
const FOREIGN: [(&str, &[&str]); 19] = [
    ("model", &["MODEL_ID"]),
    ("revision", &["REVISION"]),
    (
        "hf_token",
        &["HF_TOKEN", "HF_API_TOKEN", "HUGGING_FACE_HUB_TOKEN"],
    ),
    ("pooling", &["POOLING"]),
    ("dtype", &["DTYPE"]),
    ("port", &["PORT"]),
    ("max_batch_tokens", &["MAX_BATCH_TOKENS"]),
    ("max_batch_requests", &["MAX_BATCH_REQUESTS"]),
    ("tokenization_workers", &["TOKENIZATION_WORKERS"]),
    ("max_concurrent_requests", &["MAX_CONCURRENT_REQUESTS"]),
    ("max_client_batch_size", &["MAX_CLIENT_BATCH_SIZE"]),
    ("auto_truncate", &["AUTO_TRUNCATE"]),
    ("payload_limit", &["PAYLOAD_LIMIT"]),
    ("api_key", &["API_KEY"]),
    ("cors_allow_origin", &["CORS_ALLOW_ORIGIN"]),
    ("json_output", &["JSON_OUTPUT"]),
    ("served_model_name", &["SERVED_MODEL_NAME"]),
    ("default_prompt", &["DEFAULT_PROMPT"]),
    ("default_prompt_name", &["DEFAULT_PROMPT_NAME"]),
];

impl Cli {
    /// Reads the command line of this process; ends it if that is wrong or asks for help.
    #[must_use]
    pub fn from_process() -> Self {
        let is_set = |name: &str| env::var_os(name).is_some_and(|value| is_usable(name, &value));
        let args: Vec<OsString> = with_default_action(env::args_os());
        let matches = command(&is_set).get_matches_from(&args);
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let file = match &cli.action {
            Action::Train(args) => args.config.clone(),
            _ => None,
        };
        file.map_or(cli, |file| Self::with_file(&args, &is_set, &file))
    }

    /// Reads the command line again, with the values of a file as defaults.
    fn with_file(args: &[OsString], is_set: &dyn Fn(&str) -> bool, file: &Path) -> Self {
        let mut result = Ok(());
        let with_defaults = |train: Command| {
            train::config_file::with_defaults(train.clone(), file).unwrap_or_else(|error| {
                result = Err(error);
                train
            })
        };
        let command = command(is_set).mut_subcommand("train", with_defaults);
        if let Err(error) = result {
            eprintln!("moeshard: {}", sentence(&error));
            process::exit(2);
        }
        // The command line alone was fine, so what is wrong now is in the file.
        let parsed = command.try_get_matches_from(args);
        let cli = parsed.and_then(|matches| Self::from_arg_matches(&matches));
        cli.unwrap_or_else(|error| {
            let text = error.to_string();
            let reason = text.lines().next().unwrap_or_default();
            let reason = reason.trim_start_matches("error: ");
            eprintln!("moeshard: {}: {reason}", file.display());
            process::exit(2)
        })
    }
}

/// The commands, with a variable for each flag. `is_set` says which variables there are.
#[must_use]
pub fn command(is_set: &dyn Fn(&str) -> bool) -> Command {
    Cli::command().mut_subcommands(|action| {
        let is_serve = action.get_name() == "serve";
        with_variables(action, is_serve, is_set)
    })
}

/// A variable for each flag of a command and of those inside it.
fn with_variables(command: Command, is_serve: bool, is_set: &dyn Fn(&str) -> bool) -> Command {
    let command = command.mut_args(|arg| {
        let id = arg.get_id().to_string();
        if arg.is_positional() || id == "help" || id == "version" {
            return arg;
        }
        let name = variable(&id, is_serve, is_set);
        // One that is there but not usable must not be read.
        if !is_set(&name) && env::var_os(&name).is_some() {
            return arg;
        }
        arg.env(name)
    });
    command.mut_subcommands(|inner| with_variables(inner, is_serve, is_set))
}

/// Whether a variable says anything: an empty one does not, and Kubernetes sets `MOESHARD_PORT` to
/// the address of a service that is called moeshard. An empty key is one that got lost: it is refused
/// rather than taken for a server without a key.
fn is_usable(name: &str, value: &OsStr) -> bool {
    let is_link = name == "MOESHARD_PORT" && value.to_string_lossy().starts_with("tcp://");
    let is_key = name.ends_with("API_KEY");
    is_key || !value.is_empty() && !is_link
}

/// Says which variables are ignored although somebody may count on them.
pub fn warn_of_variables() {
    let name = "MOESHARD_PORT";
    let value = env::var_os(name).filter(|value| !value.is_empty() && !is_usable(name, value));
    if let Some(value) = value {
        let value = value.to_string_lossy();
        tracing::warn!("{name}={value} is the link of a service, no port: ignored");
    }
}

/// The variable of a flag: its own, unless that is not set and a foreign one is. Names as plain as
/// PORT belong to the server alone; the hub's own are meant for every command.
fn variable(id: &str, is_serve: bool, is_set: &dyn Fn(&str) -> bool) -> String {
    let own = format!("MOESHARD_{}", id.to_ascii_uppercase());
    if is_set(&own) {
        return own;
    }
    let of_the_hub = ["model", "hf_token"].contains(&id);
    let foreign = FOREIGN
        .iter()
        .filter(|(flag, _)| *flag == id && (is_serve || of_the_hub));
    let mut foreign = foreign.flat_map(|(_, names)| names.iter());
    foreign
        .find(|name| is_set(name))
        .map_or(own, |name| (*name).to_owned())
}

/// `moeshard --port 80` serves, as does `moeshard` alone.
fn with_default_action(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let first = args.get(1).map(|arg| arg.to_string_lossy().into_owned());
    let asks = |arg: &str| ["-h", "--help", "-V", "--version"].contains(&arg);
    let serves = first.is_none_or(|first| first.starts_with('-') && !asks(&first));
    if serves {
        args.insert(1.min(args.len()), "serve".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command(&|_| false).debug_assert();
    }

    #[test]
    fn serve_is_the_default() {
        let check = |args: &[&str], expect: &[&str]| {
            let args = args.iter().map(Into::into);
            assert_eq!(with_default_action(args), expect);
        };
        check(&["moeshard"], &["moeshard", "serve"]);
        check(
            &["moeshard", "--port", "1"],
            &["moeshard", "serve", "--port", "1"],
        );
        check(&["moeshard", "--help"], &["moeshard", "--help"]);
        check(&["moeshard", "doctor"], &["moeshard", "doctor"]);
    }

    #[test]
    fn empty_variables_and_links_of_services_are_ignored() {
        let usable = |name, value: &str| is_usable(name, OsStr::new(value));
        assert!(usable("MOESHARD_PORT", "80") && usable("MODEL_ID", "tcp://x"));
        assert!(!usable("MOESHARD_PORT", "tcp://10.96.0.1:3000") && !usable("MODEL_ID", ""));
        assert!(usable("MOESHARD_API_KEY", "") && usable("API_KEY", ""));
    }

    #[test]
    fn foreign_variables_yield_to_our_own() {
        let check = |id, is_serve, set: &[&str], expect| {
            assert_eq!(variable(id, is_serve, &|name| set.contains(&name)), expect);
        };
        check("model", true, &[], "MOESHARD_MODEL");
        check("model", true, &["MODEL_ID"], "MODEL_ID");
        check("model", false, &["MODEL_ID"], "MODEL_ID");
        check(
            "model",
            true,
            &["MODEL_ID", "MOESHARD_MODEL"],
            "MOESHARD_MODEL",
        );
        check("port", true, &["PORT"], "PORT");
        check("dtype", false, &["DTYPE"], "MOESHARD_DTYPE");
        check(
            "hf_token",
            false,
            &["HUGGING_FACE_HUB_TOKEN"],
            "HUGGING_FACE_HUB_TOKEN",
        );
    }
}
