//! What every handler sees.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use moeshard_batcher::{Answer, Direction, Handle, Input, ModelSlot, Options, Task};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::HttpConfig;
use crate::error::RequestError;
use crate::metrics::Metrics;
use crate::wire::too_many;

/// Most bytes of bodies that are read or parsed at a time; at least one body fits.
const ALL_BODIES: usize = 512_000_000;

/// The model's place, the settings and the counters. Clones share them.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

struct Inner {
    slot: ModelSlot,
    config: HttpConfig,
    metrics: Metrics,
    /// Bytes that bodies may still take.
    bytes: Arc<Semaphore>,
    /// Long bodies that may still be parsed side by side.
    parsers: Arc<Semaphore>,
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
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n_bytes = config
            .payload_limit
            .clamp(ALL_BODIES, Semaphore::MAX_PERMITS);
        let inner = Inner {
            slot,
            bytes: Arc::new(Semaphore::new(n_bytes)),
            parsers: Arc::new(Semaphore::new(n_cores)),
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

    /// Room for some bytes of a body until the permit is dropped.
    pub(crate) fn share_of_bytes(
        &self,
        n_bytes: usize,
    ) -> Result<OwnedSemaphorePermit, RequestError> {
        let n_bytes = u32::try_from(n_bytes).map_err(|_| RequestError::TooManyBytes)?;
        let share = Arc::clone(&self.inner.bytes).try_acquire_many_owned(n_bytes);
        share.map_err(|_| RequestError::TooManyBytes)
    }

    pub(crate) fn parsers(&self) -> &Arc<Semaphore> {
        &self.inner.parsers
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
            return Err(RequestError::field("", too_many(limit)));
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
