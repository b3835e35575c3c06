//! Keeps the rules while the agent runs: in place once the proxy can take the traffic, in order
//! when somebody breaks them, gone when the proxy is gone and the policy is open.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{ApplyError, Backend, Capture, Config, Found};
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock::{self, SharedClock};
use crate::base::tasks::busy;
use crate::base::trouble::Trouble;

/// What becomes of the rules when the proxy is gone for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPolicy {
    /// They stay: no traffic passes around the proxy, and none at all passes.
    Closed,
    /// They are removed: traffic passes, without the mesh.
    Open,
}

/// Where the rules stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapturePhase {
    /// In place and tried.
    Active,
    /// They could not be put in place; it is tried again.
    Failed,
    /// Not asked for.
    #[default]
    Off,
    /// Taken away, as the proxy is gone and the policy is open.
    Removed,
    /// They come when the proxy is ready.
    Waiting,
}

/// The rules at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CaptureState {
    /// Where they stand.
    pub phase: CapturePhase,
    /// What makes them.
    pub backend: Option<Backend>,
    /// Since when they are in place, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub since: Option<SystemTime>,
    /// What the probe saw.
    pub probed: Option<String>,
    /// How often somebody else's change was repaired.
    pub repairs: u64,
    /// When that was last, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub repaired_at: Option<SystemTime>,
    /// Why they are not in place.
    pub trouble: Option<Trouble>,
}

impl CaptureState {
    /// The state before anything was done.
    #[must_use]
    pub fn waiting(backend: Backend) -> Self {
        Self { phase: CapturePhase::Waiting, backend: Some(backend), ..Self::default() }
    }

    /// Whether nothing more has to happen before the machine can be called ready.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, CapturePhase::Active | CapturePhase::Off)
    }
}

/// Keeps the rules of one host. `current` tells what they have to be now.
pub struct Keeper<F> {
    /// The hand on the rules.
    pub capture: Capture,
    /// What they have to be now: resolvers and addresses of the host change.
    pub current: F,
    /// What becomes of them without a proxy.
    pub policy: FailPolicy,
    /// Whether the proxy can take traffic.
    pub proxy: watch::Receiver<bool>,
    /// Where the rules stand.
    pub state: watch::Sender<CaptureState>,
    /// The wall clock.
    pub clock: SharedClock,
}

impl<F: Fn() -> Config + Send> Keeper<F> {
    /// Keeps them until `stop`; what is in place then stays in place.
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = self.keep() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn keep(&mut self) {
        // A host that was closed before its restart is closed before its proxy starts.
        let early = self.policy == FailPolicy::Closed && self.capture.has_journal();
        let mut wait = !early;
        let mut found = self.found().await;
        loop {
            let config = match found.take() {
                Some(config) => config,
                None if wait && !self.proxy_comes().await => return,
                None => self.apply_until_it_works().await,
            };
            wait = true;
            self.follow(config).await;
            if let Err(error) = self.capture.remove().await {
                self.failed(&error);
            } else {
                tracing::warn!("The proxy is gone: traffic passes without the mesh.");
                self.state.send_modify(|state| {
                    state.phase = CapturePhase::Removed;
                    state.since = None;
                });
            }
        }
    }

    /// The rules that an earlier agent left, when they are what they have to be: they go on without
    /// a gap, whether the proxy is ready or not.
    async fn found(&self) -> Option<Config> {
        let config = (self.current)();
        match self.capture.stands(&config).await {
            Ok(true) => {
                self.stands("as an earlier agent left them");
                Some(config)
            }
            Ok(false) => None,
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Waits for the proxy; false when nobody supervises it any more. Rules of an earlier agent do
    /// not lead to a proxy that is gone for as long as that takes.
    async fn proxy_comes(&mut self) -> bool {
        if self.policy == FailPolicy::Open && self.capture.has_journal() {
            let came = timeout(GONE, self.proxy.wait_for(|up| *up)).await.map(|up| up.is_ok());
            match came {
                Ok(up) => return up,
                Err(_) => match self.capture.remove().await {
                    Ok(_) => {
                        tracing::warn!("The proxy does not come: traffic passes without the mesh.")
                    }
                    Err(error) => self.failed(&error),
                },
            }
        }
        self.proxy.wait_for(|up| *up).await.is_ok()
    }

    async fn apply_until_it_works(&self) -> Config {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let config = (self.current)();
            let applying = busy("putting the redirect rules in place", PATIENCE);
            let applied = self.capture.apply(&config).await;
            drop(applying);
            match applied {
                Ok(applied) => {
                    self.stands(&applied.probed);
                    return config;
                }
                Err(error) => self.failed(&error),
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Returns when the proxy has been gone for too long under an open policy.
    async fn follow(&mut self, mut applied: Config) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        let mut gone_at = (!*self.proxy.borrow_and_update()).then(Instant::now);
        loop {
            let gone = async {
                match gone_at {
                    Some(since) => sleep_until(since + GONE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.proxy.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    let up = *self.proxy.borrow_and_update();
                    gone_at = if up { None } else { gone_at.or_else(|| Some(Instant::now())) };
                }
                () = gone, if self.policy == FailPolicy::Open => return,
                _ = look.tick() => applied = self.look(applied).await,
            }
        }
    }

    /// Puts the rules in order where the host or somebody else has changed.
    async fn look(&self, applied: Config) -> Config {
        let _busy = busy("looking at the redirect rules", PATIENCE);
        let config = (self.current)();
        let broken = match self.capture.look().await {
            Ok(found) => found != Found::Intact,
            Err(error) => {
                self.failed(&error);
                return applied;
            }
        };
        if broken {
            tracing::warn!("Somebody else changed the redirect rules; putting them in order.");
        }
        if !broken && config == applied && self.state.borrow().phase == CapturePhase::Active {
            return applied;
        }
        match self.capture.apply(&config).await {
            Ok(done) => {
                self.stands(&done.probed);
                if broken {
                    let now = Some(self.clock.now());
                    self.state.send_modify(|state| {
                        state.repairs = state.repairs.saturating_add(1);
                        state.repaired_at = now;
                    });
                }
                config
            }
            Err(error) => {
                self.failed(&error);
                applied
            }
        }
    }

    fn stands(&self, probed: &str) {
        let now = self.clock.now();
        self.state.send_modify(|state| {
            if state.phase != CapturePhase::Active {
                tracing::info!(probed, "Traffic is captured.");
                state.since = Some(now);
            }
            state.phase = CapturePhase::Active;
            state.probed = Some(probed.to_owned());
            state.trouble = None;
        });
    }

    fn failed(&self, error: &ApplyError) {
        let trouble = Trouble::new(error, error.hint(), Retry::Later, self.clock.now());
        tracing::error!(%trouble, "Traffic is not captured.");
        self.state.send_modify(|state| {
            state.phase = CapturePhase::Failed;
            let since = state.trouble.as_ref().map_or(trouble.since, |old| old.since);
            state.trouble = Some(Trouble { since, ..trouble });
        });
    }
}

/// For some tools, each of which may wait for the lock of iptables.
const PATIENCE: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the host's rules are compared with what was applied.
const LOOK: Duration = Duration::from_secs(5);
/// A proxy that is restarted is back within a second or two; one that is away for longer is gone.
const GONE: Duration = Duration::from_secs(30);
