//! The flags of `moeshard serve`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::ArgAction;
use moeshard_batcher::{BatcherConfig, ModelInfo};
use moeshard_http::{ApiKey, HeaderValue, HttpConfig};

use crate::arg_error::ArgError;
use crate::batch_args::BatchArgs;
use crate::launch::Leader;
use crate::model::{HeadArgs, ModelArgs, ModelConfig};
use crate::secret::Secret;

/// Port that a server listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 3000;

/// Name under which the text of `--default-prompt` is kept among the model's prompts.
const DEFAULT_PROMPT: &str = "default";

/// Flags of `moeshard serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Which model to run
    #[command(flatten)]
    pub model: ModelArgs,

    /// Which head to classify with
    #[command(flatten)]
    pub head: HeadArgs,

    /// How requests are batched
    #[command(flatten)]
    pub batch: BatchArgs,

    /// Refuse work (status 429) while this many tokens are accepted and not answered
    /// [default: 262144]
    #[arg(long, value_name = "N", help_heading = "Batching")]
    pub max_queue_tokens: Option<usize>,

    /// Cut inputs that are too long, unless their request says otherwise
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true",
        help_heading = "Batching"
    )]
    pub auto_truncate: bool,

    /// Where to listen, and what to tell clients
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Where a server listens, whom it lets in, and what it tells them of the model.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub hostname: String,

    /// Port to listen on; 0 takes any that is free
    #[arg(long, short, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub port: u16,

    /// Where the first of several processes waits for the others, if not where the launcher
    /// says [default: MASTER_ADDR and the port behind MASTER_PORT, LWS_LEADER_ADDRESS:3001, or the
    /// first machine of a step of Slurm]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub leader: Option<String>,

    /// Longest request body, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 32_000_000)]
    pub payload_limit: usize,

    /// Most inputs of one request; those within are split over batches
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    pub max_client_batch_size: usize,

    /// Key that clients must send as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<Secret>,

    /// Origins that web pages may call from, separated by commas [default: any]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_allow_origin: Vec<String>,

    /// Seconds that a shutdown waits for answers under way
    #[arg(long, value_name = "S", default_value_t = 25)]
    pub shutdown_timeout: u64,

    /// Name under which clients know the model [default: its folder or hub id]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,

    /// Text to put before each input
    #[arg(long, value_name = "TEXT", conflicts_with = "default_prompt_name")]
    pub default_prompt: Option<String>,

    /// The model's prompt to put before each input
    #[arg(long, value_name = "NAME")]
    pub default_prompt_name: Option<String>,

    /// Log JSON objects
    #[arg(long)]
    pub json_output: bool,

    /// Taken for the sake of scripts written for text-embeddings-inference, without effect: work
    /// is limited by tokens
    #[arg(long, hide = true)]
    pub max_concurrent_requests: Option<usize>,
}

/// A server, checked.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Which model to run.
    pub model: ModelConfig,
    /// How requests are batched.
    pub batcher: BatcherConfig,
    /// Where to listen.
    pub address: SocketAddr,
    /// Where the first of several processes waits for the others, if the user says so.
    pub leader: Option<Leader>,
    /// Limits and secrets of the server.
    pub http: HttpConfig,
    /// What clients are told of the model, instead of what it says itself.
    pub overrides: InfoOverrides,
    /// Log JSON objects.
    pub json_output: bool,
}

/// What clients are told of the model, instead of what it says itself.
#[derive(Clone, Debug, Default)]
pub struct InfoOverrides {
    /// Its name.
    pub name: Option<String>,
    /// Text put before each input.
    pub default_prompt: Option<String>,
    /// The prompt put before each input.
    pub default_prompt_name: Option<String>,
}

impl InfoOverrides {
    /// Puts them in place of what the model says.
    ///
    /// # Errors
    /// If the model has no prompt of the name.
    pub fn apply(self, info: &mut ModelInfo) -> Result<(), ArgError> {
        if let Some(text) = self.default_prompt {
            info.prompts.insert(DEFAULT_PROMPT.to_owned(), text);
            info.default_prompt_name = Some(DEFAULT_PROMPT.to_owned());
        }
        if let Some(name) = self.default_prompt_name {
            ArgError::known_prompt("--default-prompt-name", &name, info)?;
            info.default_prompt_name = Some(name);
        }
        if let Some(name) = self.name {
            info.id = name;
        }
        Ok(())
    }
}

impl TryFrom<ServeArgs> for ServeConfig {
    type Error = ArgError;

    fn try_from(args: ServeArgs) -> Result<Self, ArgError> {
        let mut batcher = BatcherConfig::try_from(args.batch)?;
        if let Some(n) = args.max_queue_tokens {
            batcher.max_queue_tokens = ArgError::at_least_one("--max-queue-tokens", n)?;
        }
        let server = args.server;
        let name = server.served_model_name;
        if name.as_ref().is_some_and(|name| name.trim().is_empty()) {
            return Err(ArgError::other(
                "--served-model-name",
                "must not be empty; leave it out for the model's own name",
            ));
        }
        let payload_limit = ArgError::at_least_one("--payload-limit", server.payload_limit)?;
        let max_client_batch_size =
            ArgError::at_least_one("--max-client-batch-size", server.max_client_batch_size)?;
        let mut model = ModelConfig::try_from(args.model)?;
        model.head = args.head.head;
        Ok(Self {
            model,
            batcher,
            address: SocketAddr::new(ip(&server.hostname)?, server.port),
            leader: server.leader.as_deref().map(Leader::read).transpose()?,
            http: HttpConfig {
                payload_limit,
                max_client_batch_size,
                auto_truncate: args.auto_truncate,
                api_key: server.api_key.as_ref().map(api_key).transpose()?,
                cors_allow_origin: origins(&server.cors_allow_origin)?,
                shutdown_timeout: Duration::from_secs(server.shutdown_timeout),
            },
            overrides: InfoOverrides {
                name,
                default_prompt: server.default_prompt,
                default_prompt_name: server.default_prompt_name,
            },
            json_output: server.json_output,
        })
    }
}

fn ip(hostname: &str) -> Result<IpAddr, ArgError> {
    if hostname == "localhost" {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    hostname
        .trim_matches(['[', ']'])
        .parse()
        .map_err(|_| ArgError::Unknown {
            flag: "--hostname",
            expected: "an IP address to listen on, as 0.0.0.0, 127.0.0.1 or ::",
            found: hostname.to_owned(),
        })
}

/// An empty key would let in everyone who sends an empty one; one that no header can carry, nobody.
/// The end of the line that files and secrets often have is no part of it.
fn api_key(key: &Secret) -> Result<ApiKey, ArgError> {
    let key = key.reveal().trim();
    let reason = if key.is_empty() {
        "must not be empty; leave it out to let everyone in"
    } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        "must be visible ASCII characters without spaces, or no client could send it"
    } else {
        return Ok(ApiKey::new(key));
    };
    Err(ArgError::other("--api-key", reason))
}

fn origins(origins: &[String]) -> Result<Vec<HeaderValue>, ArgError> {
    let named = origins.iter().map(|origin| origin.trim());
    let named: Vec<&str> = named.filter(|origin| !origin.is_empty()).collect();
    // `*` allows any, which is what an empty list means.
    if named == ["*"] {
        return Ok(Vec::new());
    }
    let parse = |origin: &str| {
        let value = HeaderValue::from_str(origin).ok();
        let value = value.filter(|_| is_origin(origin));
        value.ok_or_else(|| ArgError::Unknown {
            flag: "--cors-allow-origin",
            expected: "* alone or origins as https://example.org or http://localhost:8080",
            found: origin.to_owned(),
        })
    };
    named.into_iter().map(parse).collect()
}

/// `scheme://host[:port]`, as browsers send it.
fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    // The colons of an address in brackets separate no port.
    let after_ip = authority.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match authority[after_ip..].find(':') {
        Some(at) => (
            &authority[..after_ip + at],
            Some(&authority[after_ip + at + 1..]),
        ),
        None => (authority, None),
    };
    let of = |text: &str, others: &str| {
        let is_one = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
        !text.is_empty() && text.chars().all(is_one)
    };
    let address = host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let is_host = address.map_or_else(|| of(host, "-._"), |ip| of(ip, ":."));
    of(scheme, "+-.") && is_host && port.is_none_or(|port| port.parse::<u16>().is_ok())
}
