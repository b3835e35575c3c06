//! Follows the rooms: what the registration is, when everything first happened, and what the
//! service manager is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::plan::entry_name;
use crate::base::log;
use crate::base::tasks::{Late, Pulse};
use crate::registry::RegistrationState;
use crate::status::{Board, Phase, Snapshot, Timings};
use crate::systemd::ServiceManager;
use crate::xds;

/// Writes down what happens.
pub(super) struct Chronicle {
    started: Instant,
    registration: watch::Sender<RegistrationState>,
    timings: watch::Sender<Timings>,
    manager: ServiceManager,
    last: Option<Phase>,
    /// The line about it.
    status: String,
    pulse: Pulse,
    /// Whom it did not feel last.
    late: Vec<Late>,
    /// Lines of the log that were dropped by then.
    dropped: usize,
}

impl Chronicle {
    /// A chronicle, and the two things that it keeps.
    pub(super) fn new(
        wanted: RegistrationState,
        pulse: Pulse,
    ) -> (Self, watch::Receiver<RegistrationState>, watch::Receiver<Timings>) {
        let started = Instant::now();
        let registration = watch::Sender::new(wanted);
        let timings = watch::Sender::new(Timings::default());
        let (registered, times) = (registration.subscribe(), timings.subscribe());
        let manager = ServiceManager;
        let (last, status, late, dropped) = Default::default();
        let chronicle =
            Self { started, registration, timings, manager, last, status, pulse, late, dropped };
        (chronicle, registered, times)
    }

    /// Follows for ever. The service manager hears at once that the agent is ready, since its doors
    /// are open: a mesh that is away must not hold up whoever waits for a service. Istiod is admitted while the entry stands, or always where istiod itself
    /// makes it.
    pub(super) async fn run(
        mut self,
        board: Arc<Board>,
        direct: Option<watch::Receiver<RegistrationState>>,
        admission: watch::Sender<bool>,
    ) {
        let (mut identity, mut upstream) = (board.identity.clone(), board.upstream.clone());
        let (mut proxy, mut capture) = (board.proxy.clone(), board.capture.clone());
        let (mut health, mut configuration) = (board.health.clone(), board.configuration.clone());
        let mut direct = direct;
        let mut alive = interval(self.manager.watchdog_interval().unwrap_or(IDLE_LOOK));
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.follow(&board, direct.as_ref(), &admission);
            let changed = tokio::select! {
                changed = identity.changed() => changed.is_ok(),
                changed = upstream.changed() => changed.is_ok(),
                changed = proxy.changed() => changed.is_ok(),
                changed = quietly(&mut capture) => changed,
                changed = quietly(&mut health) => changed,
                changed = next(&mut direct) => changed,
                changed = quietly(&mut configuration) => {
                    // It was read, whatever came of it: that ends what the service manager waits for.
                    self.manager.ready(&self.status);
                    changed
                }
                _ = alive.tick() => {
                    self.tell_alive();
                    true
                }
            };
            if !changed {
                return;
            }
        }
    }

    fn follow(
        &mut self,
        board: &Board,
        direct: Option<&watch::Receiver<RegistrationState>>,
        admission: &watch::Sender<bool>,
    ) {
        let now = board.clock.now();
        match direct {
            Some(direct) => drop(self.registration.send_replace(direct.borrow().clone())),
            None => {
                let upstream = board.upstream.borrow().clone();
                let answered = upstream.phase == xds::Phase::Connected;
                let name = entry_name(self.registration.borrow().mode, &board.workload.borrow());
                self.registration.send_modify(|state| {
                    state.name = name;
                    state.follow_stream(answered, upstream.trouble.as_ref(), now);
                });
            }
        }
        let may_dial = direct.is_none() || self.registration.borrow().registered;
        admission.send_if_modified(|open| std::mem::replace(open, may_dial) != may_dial);
        let snapshot = board.snapshot();
        self.note_times(board, snapshot.ready);
        self.tell(&snapshot);
    }

    /// Only while every critical task beats; otherwise the service manager ends us before long.
    fn tell_alive(&mut self) {
        let dropped = log::dropped_lines();
        if dropped > self.dropped {
            let lines = dropped.saturating_sub(self.dropped);
            tracing::warn!(lines, "Dropped log lines: the log was not read fast enough.");
            self.dropped = dropped;
        }
        let late = self.pulse.feel();
        if late.is_empty() {
            if !std::mem::take(&mut self.late).is_empty() {
                tracing::info!("All tasks go on again.");
            }
            return self.manager.alive();
        }
        if self.late != late {
            tracing::error!(
                ?late,
                "Tasks are stuck: the service manager is not told that the agent is alive."
            );
            self.late = late;
        }
    }

    fn note_times(&self, board: &Board, ready: bool) {
        let now = Some(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let has_identity = board.identity.borrow().is_some();
        let is_registered = self.registration.borrow().is_settled();
        let is_up = board.proxy.borrow().serves();
        self.timings.send_modify(|times| {
            let first = |slot: &mut Option<u64>, happened: bool| {
                if happened && slot.is_none() {
                    *slot = now;
                }
            };
            first(&mut times.certificate_ms, has_identity);
            first(&mut times.registered_ms, is_registered);
            first(&mut times.proxy_ready_ms, is_up);
            first(&mut times.ready_ms, ready);
        });
    }

    fn tell(&mut self, snapshot: &Snapshot) {
        let (before, now) = (self.last.replace(snapshot.phase), snapshot.phase);
        if before == Some(now) {
            return;
        }
        self.status = match snapshot.conditions.first() {
            Some(condition) => format!("{now:?}: {}", condition.trouble.what),
            None => format!("{now:?}"),
        };
        match before {
            None => self.manager.ready(&self.status),
            Some(_) => self.manager.status(&self.status),
        }
        if snapshot.ready {
            tracing::info!(id = snapshot.identity.id, "In the mesh.");
        }
    }
}

/// A room that is not there says nothing more.
async fn quietly<T>(room: &mut watch::Receiver<T>) -> bool {
    match room.changed().await {
        Ok(()) => true,
        Err(_) => std::future::pending().await,
    }
}

async fn next(direct: &mut Option<watch::Receiver<RegistrationState>>) -> bool {
    match direct {
        Some(state) => state.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// A certificate that expires changes the phase without any event.
const IDLE_LOOK: Duration = Duration::from_secs(5);
