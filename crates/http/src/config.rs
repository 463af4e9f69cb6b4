//! What an operator may set.

use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use axum::http::HeaderValue;

/// Settings of the HTTP server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Longest request body, in bytes.
    pub payload_limit: usize,
    /// Most inputs of one request. Far above what a bulk request needs: it keeps a body of millions
    /// of one-letter texts from taking gigabytes.
    pub max_client_batch_size: usize,
    /// Whether an input that is too long is cut when its request does not say.
    pub auto_truncate: bool,
    /// The key that clients must send as `Authorization: Bearer …`; `None` lets everyone in.
    pub api_key: Option<ApiKey>,
    /// Origins that browsers may call from; empty allows every origin.
    pub cors_allow_origin: Vec<HeaderValue>,
    /// How long a shutdown waits for the answers to what was accepted.
    pub shutdown_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            payload_limit: 32_000_000,
            max_client_batch_size: 65_536,
            auto_truncate: true,
            api_key: None,
            cors_allow_origin: Vec::new(),
            shutdown_timeout: Duration::from_secs(120),
        }
    }
}

/// A secret that shows itself to nobody: not in a log, not in `{:?}`, not by how long a comparison
/// takes.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Wraps the key.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// Whether `candidate` is the key. Takes the same time wherever the two differ; only the length
    /// may show.
    #[must_use]
    pub fn matches(&self, candidate: &[u8]) -> bool {
        let key = self.0.as_bytes();
        if key.len() != candidate.len() {
            return false;
        }
        let differences = key
            .iter()
            .zip(candidate)
            .fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
        differences == 0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_only_itself_and_is_never_shown() {
        let key = ApiKey::new("secret");
        assert!(key.matches(b"secret"));
        for wrong in [b"secreT".as_slice(), b"secre", b"secrets", b"", b"Secret"] {
            assert!(!key.matches(wrong));
        }
        let config = HttpConfig {
            api_key: Some(key),
            ..HttpConfig::default()
        };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
