//! How often a source that failed is asked again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::backoff::{Backoff, Retry};

/// The pause after a failure.
pub(super) struct Pace {
    inner: Mutex<Inner>,
}

struct Inner {
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        let backoff = Backoff::new(FIRST, LONGEST);
        Self { inner: Mutex::new(Inner { backoff, not_before: None }) }
    }

    /// How long to wait until it may be asked.
    pub(super) fn pause(&self) -> Duration {
        let until = self.lock().not_before;
        until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default()
    }

    pub(super) fn failed(&self, retry: Retry) {
        let mut inner = self.lock();
        let delay = inner.backoff.delay_for(retry);
        inner.not_before = Instant::now().checked_add(delay);
    }

    /// Not before `delay` has passed, whatever came of it.
    pub(super) fn rest(&self, delay: Duration) {
        self.lock().not_before = Instant::now().checked_add(delay);
    }

    /// Starts over: it may be asked at once.
    pub(super) fn reset(&self) {
        let mut inner = self.lock();
        inner.backoff.reset();
        inner.not_before = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lost API server is found again soon after its return; what needs somebody is tried at most
/// every few minutes.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
