//! The flags of `moeshard serve`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::ArgAction;
use moeshard_batcher::{BatcherConfig, ModelInfo};
use moeshard_http::{ApiKey, HeaderValue, HttpConfig};

use crate::batch_args::BatchArgs;
use crate::model::config::ArgError;
use crate::model::{ModelArgs, ModelConfig};
use crate::secret::Secret;

/// Name under which the text of `--default-prompt` is kept among the model's prompts.
const DEFAULT_PROMPT: &str = "default";

/// Flags of `moeshard serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Which model to run
    #[command(flatten)]
    pub model: ModelArgs,

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

    /// Address to listen on
    #[arg(
        long,
        value_name = "IP",
        default_value = "0.0.0.0",
        help_heading = "Server"
    )]
    pub hostname: String,

    /// Port to listen on; 0 takes any that is free
    #[arg(
        long,
        short,
        value_name = "PORT",
        default_value_t = 3000,
        help_heading = "Server"
    )]
    pub port: u16,

    /// Longest request body, in bytes
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 32_000_000,
        help_heading = "Server"
    )]
    pub payload_limit: usize,

    /// Most inputs of one request; those within are split over batches
    #[arg(
        long,
        value_name = "N",
        default_value_t = 65_536,
        help_heading = "Server"
    )]
    pub max_client_batch_size: usize,

    /// Key that clients must send as `Authorization: Bearer KEY`
    #[arg(
        long,
        value_name = "KEY",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub api_key: Option<Secret>,

    /// Origins that web pages may call from, separated by commas [default: any]
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub cors_allow_origin: Vec<String>,

    /// Seconds that a shutdown waits for answers under way
    #[arg(long, value_name = "S", default_value_t = 30, help_heading = "Server")]
    pub shutdown_timeout: u64,

    /// Name under which clients know the model [default: its folder or hub id]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub served_model_name: Option<String>,

    /// Text to put before each input
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "default_prompt_name",
        help_heading = "Server"
    )]
    pub default_prompt: Option<String>,

    /// The model's prompt to put before each input
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub default_prompt_name: Option<String>,

    /// Log JSON objects
    #[arg(long, help_heading = "Server")]
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
    /// Limits and secrets of the server.
    pub http: HttpConfig,
    /// What clients are told of the model.
    pub told: Told,
}

/// What clients are told of the model, instead of what it says itself.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Its name.
    pub name: Option<String>,
    /// Text put before each input.
    pub default_prompt: Option<String>,
    /// The prompt put before each input.
    pub default_prompt_name: Option<String>,
}

impl Told {
    /// Applies the wishes.
    ///
    /// # Errors
    /// If the model has no prompt of the name.
    pub fn apply(self, info: &mut ModelInfo) -> Result<(), ArgError> {
        if let Some(text) = self.default_prompt {
            info.prompts.insert(DEFAULT_PROMPT.to_owned(), text);
            info.default_prompt_name = Some(DEFAULT_PROMPT.to_owned());
        }
        if let Some(name) = self.default_prompt_name {
            if !info.prompts.contains_key(&name) {
                let known: Vec<&str> = info.prompts.keys().map(String::as_str).collect();
                let known = if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                };
                let reason = format!("`{name}` is no prompt of {}, which has {known}", info.id);
                return Err(ArgError::Other {
                    flag: "--default-prompt-name",
                    reason,
                });
            }
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
        let payload_limit = ArgError::at_least_one("--payload-limit", args.payload_limit)?;
        let max_client_batch_size =
            ArgError::at_least_one("--max-client-batch-size", args.max_client_batch_size)?;
        Ok(Self {
            model: ModelConfig::try_from(args.model)?,
            batcher,
            address: SocketAddr::new(ip(&args.hostname)?, args.port),
            http: HttpConfig {
                payload_limit,
                max_client_batch_size,
                auto_truncate: args.auto_truncate,
                api_key: args.api_key.as_ref().map(api_key).transpose()?,
                cors_allow_origin: origins(&args.cors_allow_origin)?,
                shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
            },
            told: Told {
                name: args.served_model_name,
                default_prompt: args.default_prompt,
                default_prompt_name: args.default_prompt_name,
            },
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

/// An empty key would let in everyone who sends an empty one.
fn api_key(key: &Secret) -> Result<ApiKey, ArgError> {
    if key.reveal().is_empty() {
        let reason = "must not be empty; leave it out to let everyone in".to_owned();
        return Err(ArgError::Other {
            flag: "--api-key",
            reason,
        });
    }
    Ok(ApiKey::new(key.reveal()))
}

fn origins(origins: &[String]) -> Result<Vec<HeaderValue>, ArgError> {
    // `*` allows any, which is what an empty list means.
    let named = origins
        .iter()
        .map(|origin| origin.trim())
        .filter(|o| !o.is_empty() && *o != "*");
    let parse = |origin: &str| {
        HeaderValue::from_str(origin).map_err(|_| ArgError::Unknown {
            flag: "--cors-allow-origin",
            expected: "origins as https://example.org",
            found: origin.to_owned(),
        })
    };
    named.map(parse).collect()
}
