//! Where a server finds a model that may still be loading.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::worker::BatchObserver;
use crate::{Handle, SubmitError};

/// Whether the model can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is being loaded.
    Starting,
    /// It answers.
    Ready,
    /// Loading failed, or the engine broke.
    Failed(String),
    /// The server is shutting down.
    Draining,
}

/// A place for one model: the server binds its port first and the model is put in later.
///
/// Clones share the place.
#[derive(Clone, Default)]
pub struct ModelSlot {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: RwLock<State>,
    /// Passed on to the handle once there is one.
    observer: OnceLock<BatchObserver>,
}

#[derive(Default)]
struct State {
    /// The loaded model, or why there is none; `None` while it loads.
    model: Option<Result<Handle, String>>,
    /// Set when shutdown begins.
    draining: bool,
    /// Set when nothing more is accepted.
    closed: bool,
}

impl ModelSlot {
    /// An empty place: [`Readiness::Starting`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the loaded model in.
    pub fn fill(&self, handle: Handle) {
        if let Some(observer) = self.inner.observer.get() {
            handle.observe(Arc::clone(observer));
        }
        self.update(|state| {
            if state.closed {
                handle.close();
            }
            state.model = Some(Ok(handle));
        });
    }

    /// Says that loading failed.
    pub fn fail(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.update(|state| state.model = Some(Err(reason)));
    }

    /// Announces the shutdown: not ready any more, but what arrives is still answered.
    pub fn drain(&self) {
        self.update(|state| state.draining = true);
    }

    /// Stops accepting; what was accepted is answered, then the worker ends.
    pub fn close(&self) {
        self.update(|state| {
            state.draining = true;
            state.closed = true;
            if let Some(Ok(handle)) = &state.model {
                handle.close();
            }
        });
    }

    /// Whether the model can answer.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let state = self.state();
        match &state.model {
            _ if state.draining => Readiness::Draining,
            None => Readiness::Starting,
            Some(Err(reason)) => Readiness::Failed(reason.clone()),
            Some(Ok(handle)) => handle.readiness(),
        }
    }

    /// The model.
    ///
    /// # Errors
    /// [`SubmitError::Starting`] while it loads, [`SubmitError::Unhealthy`] if loading failed,
    /// [`SubmitError::Closed`] after [`ModelSlot::close`].
    pub fn handle(&self) -> Result<Handle, SubmitError> {
        let state = self.state();
        match &state.model {
            _ if state.closed => Err(SubmitError::Closed),
            None => Err(SubmitError::Starting),
            Some(Err(reason)) => Err(SubmitError::Unhealthy(reason.clone())),
            Some(Ok(handle)) => Ok(handle.clone()),
        }
    }

    /// The model, even if it is closed or broken; `None` if there never was one.
    #[must_use]
    pub fn loaded(&self) -> Option<Handle> {
        let state = self.state();
        state.model.as_ref()?.as_ref().ok().cloned()
    }

    /// Has `observer` told of every batch of the model; call it before [`ModelSlot::fill`]. Only
    /// the first observer counts.
    pub fn observe(&self, observer: BatchObserver) {
        let observer = self.inner.observer.get_or_init(|| observer);
        if let Some(handle) = self.loaded() {
            handle.observe(Arc::clone(observer));
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        let state = self.inner.state.read();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let state = self.inner.state.write();
        change(&mut state.unwrap_or_else(PoisonError::into_inner));
    }
}

impl std::fmt::Debug for ModelSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ModelSlot").field(&self.readiness()).finish()
    }
}
