//! What is to take the place of the running Envoy: it is tried first, and while it fails the trial the
//! running Envoy goes on.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Event, SupervisionError, Supervisor, nobody};
use crate::base::backoff::{Backoff, Retry};
use crate::base::trouble::Trouble;
use crate::envoy::Config;
use crate::envoy::fingerprint::Fingerprint;
use crate::envoy::handle::{End, How};
use crate::envoy::process::Process;
use crate::envoy::trial::{TrialError, trial};

/// A trial under way. The lock is never waited for: it makes the future shareable between threads.
type Running = Mutex<Pin<Box<dyn Future<Output = Result<String, TrialError>> + Send>>>;

/// The trials of what would be started.
pub(super) struct Replacement {
    /// Whether the running Envoy ends as soon as a trial succeeds.
    wanted: bool,
    /// Who asked for it, and has had no answer yet.
    order: Option<End>,
    due: Option<Instant>,
    running: Option<Running>,
    pauses: Backoff,
    /// What was started or tried last: another file at the binary's place is tried when it is seen.
    known: Option<String>,
}

impl Replacement {
    pub(super) fn new() -> Self {
        let pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { wanted: false, order: None, due: None, running: None, pauses, known: None }
    }

    /// An Envoy of this configuration has been started, or adopted.
    pub(super) fn started(&mut self, config: &Config) {
        *self = Self { known: Some(Fingerprint::process_of(config)), ..Self::new() };
    }

    /// An Envoy of another configuration goes on, as the configured one has failed its trial.
    pub(super) fn postponed(&mut self, config: &Config) {
        self.started(config);
        self.wanted = true;
        self.due = Some(Instant::now() + self.pauses.next_delay());
    }

    /// Somebody asks for the running Envoy to be replaced.
    pub(super) fn ordered(&mut self, end: End) {
        self.wanted = true;
        self.order = Some(end);
        self.due = Some(Instant::now());
    }

    /// Has another file at the binary's place tried, if there is one.
    pub(super) fn inspect(&mut self, config: &Config) {
        let now = Fingerprint::process_of(config);
        if self.known.as_ref().is_some_and(|known| *known != now) && self.running.is_none() {
            self.known = Some(now);
            self.due = Some(Instant::now());
        }
    }

    /// The outcome of the next trial. Nothing is lost when the future is dropped.
    pub(super) async fn outcome(&mut self, config: &Config) -> Result<String, TrialError> {
        if self.running.is_none() {
            match self.due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        }
        let running = self.running.get_or_insert_with(|| {
            let config = config.clone();
            Mutex::new(Box::pin(async move { trial(&config).await }))
        });
        let running = running.get_mut().unwrap_or_else(PoisonError::into_inner);
        let outcome = running.as_mut().await;
        (self.running, self.due) = (None, None);
        outcome
    }
}

impl Supervisor {
    /// Acts on the outcome of a trial beside a running process, which is given back unless it has
    /// been replaced.
    pub(super) async fn tried(
        &mut self,
        process: Process,
        outcome: Result<String, TrialError>,
    ) -> Result<Process, Event> {
        if let Err(error) = outcome {
            self.refuse(error);
            self.replacement.due = Some(Instant::now() + self.replacement.pauses.next_delay());
            if self.replacement.order.take().is_some() {
                let count = |count: &mut u64| *count = count.saturating_add(1);
                self.state.send_modify(|state| count(&mut state.refused_restarts));
            }
            return Ok(process);
        }
        self.accept(outcome.ok());
        if !std::mem::take(&mut self.replacement.wanted) {
            return Ok(process);
        }
        let now = || End { how: How::Restart { notice: Duration::ZERO }, ..nobody() };
        let end = self.replacement.order.take().unwrap_or_else(now);
        Err(Event::Ended(self.end(process, end).await))
    }

    /// What is configured can be started.
    pub(super) fn accept(&self, version: Option<String>) {
        self.state.send_modify(|state| {
            state.installed_version = version;
            state.rejected_replacement = None;
        });
    }

    /// What is configured cannot be started.
    pub(super) fn refuse(&self, error: TrialError) {
        let now = self.clock.now();
        let error = SupervisionError::Trial(error);
        let hint = "install an Envoy that starts here, or name another one with --proxy-binary; it is \
                    tried again, and then takes over";
        let condition = Trouble::new(&error, Some(hint.to_owned()), Retry::Soon, now);
        let known = self.state.borrow().rejected_replacement.clone();
        if known.as_ref().is_none_or(|known| known.what != condition.what) {
            tracing::error!(error = %condition, "Kept the running proxy");
        }
        self.state.send_modify(|state| {
            let since = known.map_or(now, |known| known.since);
            state.rejected_replacement = Some(Trouble { since, ..condition });
        });
    }
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
