//! What the streams of one relay share: the newest stream, the pace of the tries, the waiting
//! connection. It passes no messages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::convergence::{Convergence, Report};
use super::drain_hold::DrainHold;
use super::rejections;
use super::state::{Ledger, Phase};
use super::upstream::{Line, StreamError};
use super::wire::Request;
use super::{Config, Inputs, Opening};
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock::SharedClock;
use crate::base::tasks::Tasks;
use crate::base::trouble::chain;
use crate::proto::names::Names;

/// One relay.
pub(super) struct Shared<U> {
    pub(super) config: Config,
    pub(super) upstream: U,
    pub(super) inputs: Inputs,
    pub(super) tasks: Tasks,
    pub(super) ledger: Ledger,
    pub(super) names: watch::Sender<Option<Arc<Names>>>,
    /// Whether istiod has sent the services of this machine.
    pub(super) convergence: Convergence,
    /// What Envoy keeps while the others hear that this machine leaves.
    pub(super) drain_hold: DrainHold,
    /// Until when new inbound connections are to wait.
    pub(super) inbound_delay: watch::Sender<Option<Instant>>,
    clock: SharedClock,
    /// The pauses between streams for what Envoy has rejected; they outlive a stream.
    rejections: Mutex<Backoff>,
    pace: Mutex<Pace>,
    spare: Mutex<Option<Spare>>,
    newest: Mutex<Newest>,
}

impl<U> Shared<U> {
    pub(super) fn new(
        config: Config,
        upstream: U,
        inputs: Inputs,
        clock: SharedClock,
        tasks: Tasks,
    ) -> Self {
        let convergence = Convergence::new(config.services_file.clone(), config.labels_of_entry);
        let drain_hold = DrainHold::new(config.notice);
        Self {
            config,
            upstream,
            inputs,
            tasks,
            ledger: Ledger::new(),
            names: watch::Sender::new(None),
            convergence,
            drain_hold,
            inbound_delay: watch::Sender::new(None),
            clock,
            rejections: Mutex::new(rejections::pauses()),
            pace: Mutex::new(Pace::new()),
            spare: Mutex::new(None),
            newest: Mutex::new(Newest::default()),
        }
    }

    /// A new stream of Envoy, which replaces the one before: its number, and the signal that it
    /// has been replaced in turn.
    pub(super) fn enter(&self) -> (u64, CancellationToken) {
        let mut newest = locked(&self.newest);
        newest.replaced.cancel();
        if newest.open {
            info!("Envoy has opened a second stream; the first one is closed.");
        }
        let number = newest.number.wrapping_add(1);
        *newest = Newest { number, open: true, replaced: CancellationToken::new() };
        (number, newest.replaced.clone())
    }

    /// This stream of Envoy is over.
    pub(super) fn leave(&self, number: u64) {
        let mut newest = locked(&self.newest);
        if newest.number == number {
            newest.open = false;
            if locked(&self.spare).is_some() {
                self.ledger.enter_dialling();
            } else {
                self.ledger.enter(Phase::Idle);
            }
        }
    }

    /// Lets this stream report to the ledger, unless another one has replaced it.
    pub(super) fn report(&self, number: u64, report: impl FnOnce(&Ledger)) {
        let newest = locked(&self.newest);
        if newest.number == number {
            report(&self.ledger);
        }
    }

    /// Istiod has responded for the first time on this stream.
    pub(super) fn connected(&self, number: u64, peer: &str) {
        info!(peer, "Istiod answers Envoy's stream.");
        self.report(number, |ledger| ledger.connected(self.clock.now()));
    }

    /// Shows which services istiod has sent.
    pub(super) fn show_services(&self, number: u64, report: Report) {
        self.report(number, |ledger| ledger.services(report, self.clock.now()));
    }

    /// Makes new inbound connections wait until the services are there, or this time has passed. Returns
    /// when they do, or cannot be made to.
    pub(super) async fn delay_inbound(&self, limit: Duration) {
        let mut delayed = self.inputs.inbound_delayed.clone();
        self.inbound_delay.send_replace(Some(Instant::now() + limit));
        let placed = timeout(DELAY_PLACED, delayed.wait_for(|is_delayed| *is_delayed)).await;
        if placed.is_err() {
            debug!("New inbound connections cannot be made to wait for the services.");
        }
    }

    /// Lets new inbound connections in.
    pub(super) fn admit_inbound(&self) {
        self.inbound_delay.send_if_modified(|end| end.take().is_some());
    }

    /// Records a failure and sets the time of the next try.
    pub(super) fn failed(&self, number: u64, error: &StreamError) {
        let retry = error.retry();
        let retry_in = locked(&self.pace).failed(retry);
        self.report(number, |ledger| {
            let is_new = ledger.failed(error, self.clock.now());
            let (error, hint) = (chain(error), error.hint());
            if is_new {
                warn!(error, hint, ?retry_in, "No stream to istiod; Envoy keeps what it has.");
            } else {
                debug!(error, ?retry_in, "Still no stream to istiod.");
            }
        });
    }

    /// Takes note of a request of Envoy.
    pub(super) fn requested(&self, request: &Request<'_>) {
        if let Some(condition) = self.ledger.requested(request, self.clock.now()) {
            warn!(type_url = request.type_url, error = %condition, "Envoy rejected configuration");
        }
    }

    /// How long to wait until what Envoy rejected is requested again.
    pub(super) fn rejection_pause(&self) -> Duration {
        locked(&self.rejections).next_delay()
    }

    /// Nothing is rejected any more: the next rejection is followed by a short pause again.
    pub(super) fn accepted(&self) {
        locked(&self.rejections).reset();
    }

    /// A stream has worked for this long: after a steady one the pace starts over.
    pub(super) fn lived(&self, time: Duration) {
        if time >= STEADY {
            *locked(&self.pace) = Pace::new();
        }
    }

    /// Waits until the next try is due.
    pub(super) async fn due(&self) {
        let not_before = locked(&self.pace).not_before;
        if let Some(not_before) = not_before {
            tokio::time::sleep_until(not_before).await;
        }
    }

    /// Waits until istiod may be dialled.
    pub(super) async fn admitted(&self) {
        let mut admission = self.inputs.admission.clone();
        if admission.wait_for(|admitted| *admitted).await.is_err() {
            // Who would have admitted us is gone: the agent is on its way out.
            std::future::pending::<()>().await;
        }
        let mut claims = self.inputs.claims.clone();
        loop {
            let opening = claims.borrow_and_update().opening;
            let changed = match opening {
                opening if opening.is_due() => return,
                Opening::At(moment) => tokio::select! {
                    () = tokio::time::sleep_until(moment) => return,
                    changed = claims.changed() => changed,
                },
                _ => claims.changed().await,
            };
            if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Keeps a connection for Envoy's next stream.
    pub(super) fn keep(&self, line: Line) {
        *locked(&self.spare) = Some(Spare { line, since: Instant::now() });
    }

    /// Gives up the connection that waits: no new stream is expected.
    pub(super) fn drop_spare(&self) {
        drop(locked(&self.spare).take());
    }

    /// Whether a connection waits for Envoy's next stream.
    pub(super) fn has_spare(&self) -> bool {
        locked(&self.spare).is_some()
    }

    /// The connection that waits for this stream, if there is a fresh one.
    pub(super) fn take_spare(&self) -> Option<Line> {
        let spare = locked(&self.spare).take()?;
        (spare.since.elapsed() < SPARE_LIMIT).then_some(spare.line)
    }
}

/// The newest stream of Envoy.
#[derive(Default)]
struct Newest {
    number: u64,
    open: bool,
    replaced: CancellationToken,
}

/// A connection without a stream.
struct Spare {
    line: Line,
    since: Instant,
}

/// When to try again. It outlives the streams, so that Envoy's reconnects do not quicken it.
struct Pace {
    soon: Backoff,
    later: Backoff,
    not_before: Option<Instant>,
}

impl Pace {
    fn new() -> Self {
        Self {
            soon: Backoff::new(SOON.0, SOON.1),
            later: Backoff::new(LATER.0, LATER.1),
            not_before: None,
        }
    }

    fn failed(&mut self, retry: Retry) -> Duration {
        let delay = match retry {
            Retry::Soon => self.soon.next_delay(),
            // Somebody may be at work on it right now: the first tries follow each other faster.
            Retry::Later | Retry::Never => self.later.next_delay(),
        };
        self.not_before = Some(Instant::now() + delay);
        delay
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// First and longest wait where the cause passes by itself: istiod's return is seen in seconds.
const SOON: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// First and longest wait where somebody must do something first.
const LATER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(15));
/// A stream that worked this long was no part of a row of failures.
const STEADY: Duration = Duration::from_secs(10);
/// How long Envoy, or a report of health, waits for the rule that makes new connections wait.
const DELAY_PLACED: Duration = Duration::from_secs(1);
/// Envoy returns within half a second; a connection that waited much longer may be dead.
const SPARE_LIMIT: Duration = Duration::from_secs(60);
