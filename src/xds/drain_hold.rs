//! What Envoy keeps while the others hear that this machine takes no more requests.
//!
//! Istiod takes the services of an unhealthy machine out of its own Envoy's configuration, at the
//! moment when it tells the others. Requests of those who hear it a little later would find an
//! Envoy that does not know their service any more, and fail. So clusters, listeners and routes are
//! held back for as long as requests may still come.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Health, wire};

/// What is held back from one Envoy, over all its streams: istiod may restart, or the stream break, while the
/// others are hearing of it.
pub(super) struct DrainHold {
    /// How long the others have to hear of it.
    notice: Duration,
    stage: watch::Sender<Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Istiod has not heard that the machine takes requests since this Envoy started.
    Unknown,
    /// It takes requests.
    Serving,
    /// It takes none any more, and the others are hearing of that.
    Until(Instant),
    /// The same, until its Envoy has ended.
    ToTheEnd,
}

impl DrainHold {
    pub(super) fn new(notice: Duration) -> Self {
        Self { notice, stage: watch::Sender::new(Stage::Unknown) }
    }

    /// A stream of Envoy to istiod begins.
    ///
    /// A machine that takes requests again gets a new stream, which says what is so by then: what was
    /// held back on the one before is not worth passing any more. Where a stream broke while the others were
    /// hearing that the machine takes none, theirs may have broken, too: they hear it after that.
    pub(super) fn begin(&self, is_healthy: bool) {
        self.stage.send_modify(|stage| {
            *stage = match *stage {
                Stage::Until(_) | Stage::ToTheEnd if is_healthy => Stage::Serving,
                Stage::Until(_) => Stage::Until(Instant::now() + self.notice),
                same => same,
            };
        });
    }

    /// Envoy asks for clusters for the first time on a stream: a new process, or one that has some from
    /// an earlier stream, maybe of an earlier agent.
    pub(super) fn envoy_asks(&self, is_new: bool) {
        self.stage.send_modify(|stage| {
            *stage = match *stage {
                _ if is_new => Stage::Unknown,
                Stage::Unknown => Stage::Serving,
                same => same,
            };
        });
    }

    /// Istiod is told this.
    pub(super) fn told(&self, health: &Health) {
        self.stage.send_modify(|stage| {
            *stage = match (health, *stage) {
                (Health::Healthy, Stage::Unknown) => Stage::Serving,
                (Health::Unhealthy { .. }, Stage::Serving) => {
                    Stage::Until(Instant::now() + self.notice)
                }
                (Health::Leaving { .. }, Stage::Serving | Stage::Until(_)) => Stage::ToTheEnd,
                (_, same) => same,
            };
        });
    }

    /// Whether what it concerns has to wait.
    pub(super) fn holds(&self) -> bool {
        match *self.stage.borrow() {
            Stage::Unknown | Stage::Serving => false,
            Stage::Until(end) => Instant::now() < end,
            Stage::ToTheEnd => true,
        }
    }

    /// Waits until what was held back may pass.
    pub(super) async fn over(&self) {
        let mut stage = self.stage.subscribe();
        loop {
            let now = *stage.borrow_and_update();
            let end = async {
                match now {
                    Stage::Unknown | Stage::Serving => {}
                    Stage::Until(end) => sleep_until(end).await,
                    Stage::ToTheEnd => pending().await,
                }
            };
            tokio::select! {
                () = end => return,
                _ = stage.changed() => {}
            }
        }
    }
}

/// Whether responses with resources of this type are held back: those that make a service known.
pub(super) fn concerns(type_url: &str) -> bool {
    [wire::CLUSTER, wire::LISTENER, wire::ROUTE].contains(&type_url)
}
