//! How far one try has come, as its two directions tell each other.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::upstream::StreamError;

/// What the two directions tell each other.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) asked: Notify,
    pub(super) answered: AtomicBool,
}

impl Progress {
    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends when the first response is overdue.
    pub(super) async fn silence(&self) -> StreamError {
        self.asked.notified().await;
        sleep(ANSWER_LIMIT).await;
        if self.is_answered() {
            pending::<()>().await;
        }
        StreamError::Silent { limit: ANSWER_LIMIT }
    }
}

/// Istiod answers within seconds even when it computes a large mesh for many proxies at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
