//! How far one try has come, as its two directions tell each other, and what follows from the time
//! that passes.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::upstream::StreamError;

/// What the two directions tell each other.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) asked: Notify,
    pub(super) answered: AtomicBool,
    /// Whether the workload becomes healthy, by what istiod was told.
    pub(super) recovers: watch::Sender<bool>,
    /// Whether a response has named a service of the workload.
    pub(super) serves: AtomicBool,
}

/// Whether a workload that becomes healthy, with so many new streams so far, still gets others.
pub(super) fn recovers(stage: &AtomicUsize) -> bool {
    stage.load(Ordering::Relaxed) <= LAST
}

impl Progress {
    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until istiod, which was told in this stream that the workload is healthy, has to be
    /// asked anew for what that brings.
    pub(super) async fn recovered(&self, stage: &AtomicUsize) {
        let now = stage.load(Ordering::Relaxed);
        let Some(&pause) = RECOVERY.get(now) else { return pending().await };
        sleep(pause).await;
        // The first of them was opened before the report: what it brought is of an earlier time.
        if (1..LAST).contains(&now) && self.serves.load(Ordering::Relaxed) {
            stage.store(LAST, Ordering::Relaxed);
            sleep(RECOVERY[LAST].saturating_sub(pause)).await;
        }
        if !self.is_answered() {
            return pending().await;
        }
        stage.fetch_add(1, Ordering::Relaxed);
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
/// When a workload that has become healthy gets its new streams, each counted from the report in
/// the stream before. Istiod takes note of a report within some ten milliseconds, or more when it is
/// busy, and tells the others a tenth of a second later: a stream is to come between the two. As
/// soon as one has brought the workload's services, only the last one follows, for an istiod that is
/// busier than that.
const RECOVERY: [Duration; 5] = [
    Duration::from_millis(30),
    Duration::from_millis(30),
    Duration::from_millis(60),
    Duration::from_millis(120),
    Duration::from_secs(1),
];
const LAST: usize = RECOVERY.len() - 1;
