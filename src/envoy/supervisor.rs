//! Envoy's life: found or started, watched, started again in place, drained, ended or left to the
//! next agent.

mod begin;
mod look;
mod replace;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::admin::Admin;
use super::handle::{End, Handle, How, Wish};
use super::leftover;
use super::note::Note;
use super::output::Output;
use super::process::Process;
use super::trial::TrialError;
use super::{Config, ProxyPhase, ProxyState};
use crate::base::backoff::Backoff;
use crate::base::clock::SharedClock;
use crate::base::fsio;
use crate::base::tasks::Tasks;
use begin::Begun;
use look::LOOK_STARTING;
use replace::Replacement;

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
    #[error("cannot open the proxy's output")]
    Output(#[source] std::io::Error),
    #[error("a proxy that nobody noted runs in {directory}, and holds its output")]
    Unknown { directory: String },
    #[error("the proxy that is installed cannot replace the one that runs")]
    Trial(#[source] TrialError),
}

/// Supervises one Envoy.
pub struct Supervisor {
    config: Config,
    clock: SharedClock,
    tasks: Tasks,
    wishes: mpsc::Receiver<Wish>,
    state: watch::Sender<ProxyState>,
    /// Opened with the first process.
    output: Option<Output>,
    /// Ends in a row without having been ready.
    deaths: u32,
    /// Looks in a row that were not answered.
    silences: u32,
    traffic: Traffic,
    replacement: Replacement,
}

/// Whether Envoy is in traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    /// As it was found; it will say so.
    AsFound,
    /// It shall be, and has been told where need be.
    In,
    /// It shall be back, and has to be told.
    Into,
    /// It shall not be, and has been told.
    Out,
    /// It shall not be, and has to be told.
    OutOf,
}

impl Traffic {
    fn direct(&mut self, wish: &Wish) {
        match wish {
            Wish::Drain => *self = Self::OutOf,
            Wish::Undrain => *self = Self::Into,
            Wish::Release(_) | Wish::End(_) => {}
        }
    }
}

/// Why the watch over one process ended.
enum Event {
    Died(String),
    Ended(End),
    Released(oneshot::Sender<()>),
}

impl Supervisor {
    /// A supervisor and the way to it.
    #[must_use]
    pub fn new(config: Config, clock: SharedClock, tasks: Tasks) -> (Self, Handle) {
        let (wish, wishes) = mpsc::channel(4);
        let state = watch::Sender::new(ProxyState::default());
        let handle = Handle::new(wish, state.subscribe());
        let (output, traffic) = (None, Traffic::In);
        let (deaths, silences) = (0, 0);
        let replacement = Replacement::new();
        let new = Self {
            config,
            clock,
            tasks,
            wishes,
            state,
            output,
            deaths,
            silences,
            traffic,
            replacement,
        };
        (new, handle)
    }

    /// Keeps Envoy running until it is told to stop. One that an earlier agent left, and that was
    /// started with the same, is gone on with. An Envoy that ends is started again, at once the first
    /// time and with growing pauses after it.
    pub async fn run(mut self) {
        let mut backoff = fresh_backoff();
        let mut restarted: Option<oneshot::Sender<()>> = None;
        loop {
            let begun = Instant::now();
            let event = match self.begin().await {
                Ok(Begun::Instead(event)) => event,
                Ok(Begun::Process(process)) => {
                    if let Some(done) = restarted.take() {
                        // Whoever asked may have given up waiting, here and elsewhere.
                        done.send(()).ok();
                    }
                    self.watch(process).await
                }
                Err(error) => {
                    self.report(&error);
                    Event::Died(error.to_string())
                }
            };
            let event = match event {
                Event::Died(how) => {
                    if begun.elapsed() > STABLE {
                        backoff = fresh_backoff();
                    }
                    self.pause(how, backoff.next_delay()).await
                }
                event => Some(event),
            };
            match event {
                None | Some(Event::Died(_)) => {}
                Some(Event::Released(done)) => return released(done),
                Some(Event::Ended(End { how: How::Restart { .. }, done })) => {
                    self.state.send_modify(|state| {
                        state.ordered_restarts = state.ordered_restarts.saturating_add(1);
                    });
                    restarted = Some(done);
                }
                Some(Event::Ended(End { done, .. })) => return self.stopped(done),
            }
        }
    }

    /// Watches a process until it ends or somebody wants it to.
    async fn watch(&mut self, mut process: Process) -> Event {
        let admin = self.admin();
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                how = process.ended() => {
                    self.died(&how).await;
                    return Event::Died(how);
                }
                () = sleep_until(look_at) => {
                    self.replacement.inspect(&self.config);
                    look_at = Instant::now() + self.look(admin).await;
                }
                outcome = self.replacement.outcome(&self.config) => {
                    process = match self.tried(process, outcome).await {
                        Ok(process) => process,
                        Err(event) => return event,
                    };
                }
                wish = self.wishes.recv() => match wish {
                    Some(Wish::Release(done)) => return Event::Released(done),
                    // What comes after it is tried before it goes.
                    Some(Wish::End(end)) if matches!(end.how, How::Restart { .. }) => {
                        self.replacement.ordered(end);
                    }
                    Some(Wish::End(end)) => return Event::Ended(self.end(process, end).await),
                    Some(wish) => {
                        self.direct(&wish);
                        look_at = Instant::now();
                    }
                    // Every handle is gone: nobody could stop it any more.
                    None => return Event::Ended(self.end(process, nobody()).await),
                },
            }
        }
    }

    /// Takes note of a wish that concerns its traffic; the next look tells it.
    fn direct(&mut self, wish: &Wish) {
        self.traffic.direct(wish);
    }

    async fn died(&mut self, how: &str) {
        let words = match &self.output {
            Some(output) => output.last_words().await,
            None => String::new(),
        };
        let was_ready = self.state.borrow().ready_since.is_some();
        self.deaths = if was_ready { 0 } else { self.deaths.saturating_add(1) };
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Backoff;
            state.pid = None;
            state.ready_since = None;
        });
        if self.deaths >= HOPELESS {
            self.report(&SupervisionError::Dies { times: self.deaths, how: how.to_owned(), words });
        }
    }

    /// Waits after an end, unless somebody wants something else.
    async fn pause(&mut self, how: String, pause: Duration) -> Option<Event> {
        tracing::warn!(how, restart_in = ?pause, "The proxy ended.");
        self.state.send_modify(|state| {
            state.restarts = state.restarts.saturating_add(1);
            state.last_exit = Some(how);
        });
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return None,
                wish = self.wishes.recv() => match wish {
                    Some(Wish::End(end)) => return Some(Event::Ended(end)),
                    Some(Wish::Release(done)) => return Some(Event::Released(done)),
                    Some(wish) => self.direct(&wish),
                    None => return Some(Event::Ended(nobody())),
                },
            }
        }
    }

    /// Ends the process as somebody wants; of two wishes the later one counts.
    async fn end(&mut self, mut process: Process, mut end: End) -> End {
        self.until_noted(&mut process).await;
        if end.how != How::Kill {
            // Whoever finds it from now on must not take it for a good one.
            leftover::condemn(&self.config.directory);
            end = self.wind_up(&mut process, end).await;
        }
        process.end(TERM_LIMIT).await;
        end
    }

    /// A process notes itself within moments of its start. One that was ended before would leave half
    /// of a note behind, and could not be condemned.
    async fn until_noted(&self, process: &mut Process) {
        let (note, pid) = (Note::new(&self.config.directory), process.pid);
        let noted = async {
            while note.living().is_none_or(|noted| noted.pid != pid) {
                sleep(LOOK_STARTING).await;
            }
        };
        tokio::select! {
            // Nobody shall have to wait for it because its note is lost.
            noted = timeout(leftover::NOTE_LIMIT, noted) => drop(noted),
            _ = process.ended() => {}
        }
    }

    /// Tells the others, where that is due, and has it prepare for its end.
    async fn wind_up(&mut self, process: &mut Process, mut end: End) -> End {
        let (admin, limit) = (self.admin(), self.config.termination_drain);
        self.state.send_modify(|state| state.phase = ProxyPhase::Draining);
        let notice = match end.how {
            How::Restart { notice } => notice,
            How::Kill | How::Stop => Duration::ZERO,
        };
        let retired = async {
            sleep(notice).await;
            if let Err(error) = admin.retire(limit).await {
                tracing::warn!(%error, "The proxy could not be drained.");
            }
        };
        let mut retired = std::pin::pin!(retired);
        loop {
            tokio::select! {
                () = &mut retired => return end,
                _ = process.ended() => return end,
                wish = self.wishes.recv() => match wish {
                    Some(Wish::End(End { how: How::Restart { .. }, .. })) => {}
                    Some(Wish::End(other)) => {
                        end = other;
                        if end.how == How::Kill {
                            return end;
                        }
                    }
                    // What is on its way out is nothing for the next agent: it will find that out.
                    Some(Wish::Release(_)) => {}
                    Some(wish) => self.direct(&wish),
                    None => return nobody(),
                },
            }
        }
    }

    fn admin(&self) -> Admin {
        Admin { port: self.config.admin_port }
    }

    fn stopped(self, done: oneshot::Sender<()>) {
        leftover::tidy(&self.config.directory);
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Stopped;
            state.pid = None;
        });
        tracing::info!("The proxy has stopped.");
        done.send(()).ok();
    }
}

fn released(done: oneshot::Sender<()>) {
    tracing::info!("The proxy runs on for the next agent.");
    done.send(()).ok();
}

/// The end when there is nobody left who could wish for one.
fn nobody() -> End {
    End { how: How::Kill, done: oneshot::channel().0 }
}

/// The first restart comes at once: traffic waits for it.
fn fresh_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(30))
}

/// A proxy that ran this long starts with short pauses again.
const STABLE: Duration = Duration::from_secs(60);
/// After so many deaths in a row somebody is told.
const HOPELESS: u32 = 3;
/// What Envoy needs to end after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(5);
