//! What every handler sees.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use moeshard_batcher::{Answer, Direction, Handle, Input, ModelSlot, Options, Task};

use crate::config::HttpConfig;
use crate::error::RequestError;
use crate::metrics::Metrics;

/// The model's place, the settings and the counters. Clones share them.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

struct Inner {
    slot: ModelSlot,
    config: HttpConfig,
    metrics: Metrics,
    /// Seconds since 1970 at the start, which `/v1/models` shows as the model's age.
    created: u64,
    started: Instant,
}

/// How one request wants its inputs run, before the server's defaults.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) truncate: Option<bool>,
    pub(crate) direction: Option<Direction>,
    pub(crate) prompt_name: Option<String>,
}

impl AppState {
    /// Prepares a server for the model that is, or will be, in `slot`.
    #[must_use]
    pub fn new(slot: ModelSlot, config: HttpConfig) -> Self {
        let metrics = Metrics::new();
        slot.observe(metrics.batch_observer());
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let created = since_1970.as_secs();
        let inner = Inner {
            slot,
            config,
            metrics,
            created,
            started: Instant::now(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The model's place.
    #[must_use]
    pub fn slot(&self) -> &ModelSlot {
        &self.inner.slot
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &HttpConfig {
        &self.inner.config
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(crate) fn created(&self) -> u64 {
        self.inner.created
    }

    pub(crate) fn started(&self) -> Instant {
        self.inner.started
    }

    /// The loaded model, or why there is none.
    pub(crate) fn model(&self) -> Result<Handle, RequestError> {
        Ok(self.inner.slot.handle()?)
    }

    /// Refuses a request with too many inputs.
    pub(crate) fn check_n_inputs(&self, n_inputs: usize) -> Result<(), RequestError> {
        let limit = self.inner.config.max_client_batch_size;
        if n_inputs > limit {
            let message = format!("at most {limit} inputs a request, got {n_inputs}");
            return Err(RequestError::field("", message));
        }
        Ok(())
    }

    /// Runs the inputs of one request, with the server's defaults for what it does not wish.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws what does not run yet.
    pub(crate) async fn submit(
        &self,
        inputs: Vec<Input>,
        task: Task,
        wishes: Wishes,
    ) -> Result<Vec<Answer>, RequestError> {
        let model = self.model()?;
        self.check_n_inputs(inputs.len())?;
        let options = Options {
            task,
            truncate: wishes.truncate.unwrap_or(self.inner.config.auto_truncate),
            direction: wishes.direction.unwrap_or_default(),
            prompt_name: wishes.prompt_name,
        };
        Ok(model.submit_all(inputs, &options).await?)
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppState")
            .field("slot", &self.inner.slot)
            .finish_non_exhaustive()
    }
}
