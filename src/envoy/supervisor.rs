//! Envoy's life: started, watched, started again in place, drained, ended.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::admin::Admin;
use super::handle::{Handle, Wish};
use super::leftover::Note;
use super::process::{BOOTSTRAP, Process, describe};
use super::{Config, ProxyPhase, ProxyState};
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock::SharedClock;
use crate::base::fsio;
use crate::base::tasks::Tasks;
use crate::base::trouble::Trouble;

/// Why Envoy does not stay up.
#[derive(Debug, thiserror::Error)]
enum SupervisionError {
    #[error("the proxy ended {times} times without getting ready ({how}): {words}")]
    Dies { times: u32, how: String, words: String },
    #[error("the proxy's admin interface does not answer any more")]
    Silent,
    #[error("cannot start the proxy")]
    Start(#[source] std::io::Error),
    #[error("cannot write the proxy's bootstrap")]
    Bootstrap(#[source] fsio::FileError),
}

/// Supervises one Envoy.
pub struct Supervisor {
    config: Config,
    clock: SharedClock,
    tasks: Tasks,
    wishes: mpsc::Receiver<Wish>,
    state: watch::Sender<ProxyState>,
    /// Ends in a row without having been ready.
    deaths: u32,
    /// Looks in a row that were not answered.
    silences: u32,
}

/// Why the watch over one process ended.
enum Event {
    Ended(String),
    Stopped(oneshot::Sender<()>),
    Released(oneshot::Sender<()>),
}

impl Supervisor {
    /// A supervisor and the way to it.
    #[must_use]
    pub fn new(config: Config, clock: SharedClock, tasks: Tasks) -> (Self, Handle) {
        let (wish, wishes) = mpsc::channel(4);
        let state = watch::Sender::new(ProxyState::default());
        let handle = Handle::new(wish, state.subscribe());
        (Self { config, clock, tasks, wishes, state, deaths: 0, silences: 0 }, handle)
    }

    /// Keeps Envoy running until it is told to stop. An Envoy that ends is started again, at once
    /// the first time and with growing pauses after it.
    pub async fn run(mut self) {
        let note = Note::new(&self.config.directory);
        note.end_leftover().await;
        let mut backoff = fresh_backoff();
        loop {
            let started = Instant::now();
            let how = match self.start(&note) {
                Ok(process) => match self.watch(process).await {
                    Event::Stopped(done) => return self.stopped(&note, done),
                    Event::Released(done) => return released(done),
                    Event::Ended(how) => how,
                },
                Err(error) => {
                    self.report(&error);
                    error.to_string()
                }
            };
            if started.elapsed() > STABLE {
                backoff = fresh_backoff();
            }
            let pause = backoff.next_delay();
            tracing::warn!(how, restart_in = ?pause, "The proxy ended.");
            self.state.send_modify(|state| {
                state.restarts = state.restarts.saturating_add(1);
                state.last_exit = Some(how);
            });
            match self.pause(pause).await {
                None => {}
                Some(Wish::Release(done)) => return released(done),
                Some(Wish::Stop(done) | Wish::Kill(done)) => return self.stopped(&note, done),
                Some(Wish::Drain) => {}
            }
        }
    }

    fn start(&self, note: &Note) -> Result<Process, SupervisionError> {
        let bootstrap = self.config.bootstrap.to_string();
        fsio::replace(&self.config.directory.join(BOOTSTRAP), bootstrap.as_bytes(), fsio::PUBLIC)
            .map_err(SupervisionError::Bootstrap)?;
        let process = Process::start(&self.config, &self.tasks).map_err(SupervisionError::Start)?;
        if let Err(error) = note.write(process.pid) {
            tracing::warn!(%error, "The proxy's process number could not be noted.");
        }
        tracing::info!(pid = process.pid, "Started the proxy.");
        let now = self.clock.now();
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Starting;
            state.pid = Some(process.pid);
            state.started_at = Some(now);
            state.ready_since = None;
            state.config = super::ConfigCounts::default();
        });
        Ok(process)
    }

    /// Watches a process until it ends or somebody wants it to.
    async fn watch(&mut self, mut process: Process) -> Event {
        let admin = Admin { port: self.config.admin_port };
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                ended = process.ended() => {
                    let how = describe(&ended);
                    self.died(&how, process).await;
                    return Event::Ended(how);
                }
                () = sleep_until(look_at) => look_at = Instant::now() + self.look(admin).await,
                wish = self.wishes.recv() => match wish {
                    Some(Wish::Drain) => self.drain(admin).await,
                    Some(Wish::Stop(done)) => {
                        self.drain_to_the_end(admin, &mut process).await;
                        process.end(TERM_LIMIT).await;
                        return Event::Stopped(done);
                    }
                    Some(Wish::Kill(done)) => {
                        process.end(TERM_LIMIT).await;
                        return Event::Stopped(done);
                    }
                    Some(Wish::Release(done)) => return Event::Released(done),
                    // Every handle is gone: nobody could stop it any more.
                    None => {
                        process.end(TERM_LIMIT).await;
                        return Event::Stopped(oneshot::channel().0);
                    }
                },
            }
        }
    }

    /// Asks Envoy how it is; returns the pause until the next look.
    async fn look(&mut self, admin: Admin) -> Duration {
        let report = admin.report().await;
        if report.is_ok() && self.state.borrow().version.is_none() {
            self.learn_version(admin).await;
        }
        let now = self.clock.now();
        let before = self.state.borrow().phase;
        let draining = before == ProxyPhase::Draining;
        let phase = match &report {
            _ if draining => ProxyPhase::Draining,
            Ok(report) if report.ready => ProxyPhase::Ready,
            Ok(_) => ProxyPhase::Live,
            // One slow answer is no reason to call a proxy that serves dead.
            Err(_) => before,
        };
        self.silences = if report.is_ok() { 0 } else { self.silences.saturating_add(1) };
        if phase == ProxyPhase::Ready && self.silences >= SILENT {
            self.report(&SupervisionError::Silent);
            return LOOK_READY;
        }
        if phase == ProxyPhase::Ready {
            self.deaths = 0;
        }
        self.state.send_if_modified(|state| {
            let config = report.as_ref().map_or(state.config, |report| report.config);
            let changed = state.phase != phase || state.config != config;
            state.config = config;
            if phase == ProxyPhase::Ready && state.phase != phase {
                tracing::info!("The proxy is ready.");
                state.ready_since = Some(now);
                state.trouble = None;
            }
            state.phase = phase;
            changed
        });
        if phase == ProxyPhase::Ready { LOOK_READY } else { LOOK_STARTING }
    }

    /// For people; asked while it waits for its configuration.
    async fn learn_version(&self, admin: Admin) {
        match admin.version().await {
            Ok(version) => self.state.send_modify(|state| state.version = Some(version)),
            Err(error) => tracing::debug!(%error, "The proxy tells no version."),
        }
    }

    async fn died(&mut self, how: &str, process: Process) {
        let was_ready = self.state.borrow().ready_since.is_some();
        self.deaths = if was_ready { 0 } else { self.deaths.saturating_add(1) };
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Backoff;
            state.pid = None;
            state.ready_since = None;
        });
        if self.deaths >= HOPELESS {
            let (times, how, words) = (self.deaths, how.to_owned(), process.last_words().await);
            self.report(&SupervisionError::Dies { times, how, words });
        }
    }

    fn report(&mut self, error: &SupervisionError) {
        let hint = "read the proxy's words above; `vm-agent config show` has its settings, and \
                    another binary can be named with --proxy-binary";
        let now = self.clock.now();
        let trouble = Trouble::new(error, Some(hint.to_owned()), Retry::Later, now);
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Failed;
            let since = state.trouble.as_ref().map_or(now, |old| old.since);
            state.trouble = Some(Trouble { since, ..trouble });
        });
    }

    /// Waits, unless somebody wants an end.
    async fn pause(&mut self, pause: Duration) -> Option<Wish> {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return None,
                wish = self.wishes.recv() => match wish {
                    Some(Wish::Drain) => {}
                    Some(wish) => return Some(wish),
                    None => return Some(Wish::Kill(oneshot::channel().0)),
                },
            }
        }
    }

    async fn drain(&self, admin: Admin) {
        self.state.send_modify(|state| state.phase = ProxyPhase::Draining);
        if let Err(error) = admin.drain().await {
            tracing::warn!(%error, "The proxy could not be drained.");
        }
    }

    /// Drains, and waits until no connection is left or the time is over.
    async fn drain_to_the_end(&self, admin: Admin, process: &mut Process) {
        self.drain(admin).await;
        let idle = async {
            // The drain itself is asynchronous: what it closes is gone by the second look.
            loop {
                sleep(LOOK_DRAINING).await;
                if matches!(admin.connections().await, Ok(0) | Err(_)) {
                    return;
                }
            }
        };
        let wait = async {
            tokio::select! {
                () = idle => {}
                _ = process.ended() => {}
            }
        };
        if timeout(self.config.termination_drain, wait).await.is_err() {
            tracing::info!("Connections are still open; ending the proxy all the same.");
        }
    }

    fn stopped(self, note: &Note, done: oneshot::Sender<()>) {
        note.clear();
        drop(fsio::remove(&self.config.directory.join(BOOTSTRAP)));
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Stopped;
            state.pid = None;
        });
        tracing::info!("The proxy has stopped.");
        // Whoever asked may have given up waiting.
        done.send(()).ok();
    }
}

fn released(done: oneshot::Sender<()>) {
    tracing::info!("The proxy runs on for the next agent.");
    // Whoever asked may have given up waiting.
    done.send(()).ok();
}

/// The first restart comes at once: traffic waits for it.
fn fresh_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(30))
}

/// A proxy that ran this long starts with short pauses again.
const STABLE: Duration = Duration::from_secs(60);
/// After so many deaths in a row somebody is told.
const HOPELESS: u32 = 3;
/// After so many unanswered looks a proxy that was ready is not called so any more.
const SILENT: u32 = 3;
const LOOK_STARTING: Duration = Duration::from_millis(25);
const LOOK_READY: Duration = Duration::from_secs(2);
const LOOK_DRAINING: Duration = Duration::from_millis(200);
/// What Envoy needs to end after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(5);
