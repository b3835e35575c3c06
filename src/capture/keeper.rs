//! Keeps the rules while the agent runs: in place once the proxy can take the traffic, in order
//! when somebody breaks them, gone when the proxy is gone and the policy is open.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::hold::Held;
use super::{ApplyError, Backend, Capture, Config, Found, Ipv6, Listeners, OnFailure};
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
    /// What becomes of IPv6 connections.
    pub ipv6: Option<Ipv6>,
    /// Ports of the proxy that no other user can listen at, also while the proxy is away.
    pub held_ports: Vec<u16>,
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
    /// What they have to be now: resolvers and addresses of the host and the proxy's listeners
    /// change.
    pub current: F,
    /// What becomes of them without a proxy.
    pub policy: FailPolicy,
    /// The address that others are told to connect to, where it is an IP address.
    pub registered: Option<IpAddr>,
    /// Whether the proxy can take traffic.
    pub proxy: watch::Receiver<bool>,
    /// Until when new inbound connections wait.
    pub delay: watch::Receiver<Option<Instant>>,
    /// Whether they do, or cannot be made to.
    pub delayed: watch::Sender<bool>,
    /// Where the rules stand.
    pub state: watch::Sender<CaptureState>,
    /// The wall clock.
    pub clock: SharedClock,
}

impl<F: Fn() -> Config + Send> Keeper<F> {
    /// Keeps them until `stop`; what is in place then stays in place.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut held = Held::default();
        tokio::select! {
            () = self.keep(&mut held) => {}
            () = stop.cancelled() => {}
        }
    }

    /// What the rules have to be now.
    fn config(&self) -> Config {
        let delay_inbound = self.delay.borrow().is_some_and(|end| Instant::now() < end);
        Config { delay_inbound, ..(self.current)() }
    }

    async fn keep(&mut self, held: &mut Held) {
        // A host that was closed before its restart is closed before its proxy starts.
        let early = self.policy == FailPolicy::Closed && self.capture.has_journal();
        let mut wait = !early;
        let mut found = self.found().await;
        self.hold(held, &self.config()).await;
        loop {
            let config = match found.take() {
                Some(config) => config,
                None if wait && !self.proxy_comes(held).await => return,
                None => self.apply_until_it_works().await,
            };
            wait = true;
            self.follow(config, held).await;
            if let Err(error) = self.capture.remove().await {
                self.failed(&error);
            } else {
                tracing::warn!("The proxy is gone: traffic passes without the mesh.");
                self.waits(CapturePhase::Removed);
            }
        }
    }

    /// Takes what is free of the proxy's ports.
    async fn hold(&self, held: &mut Held, config: &Config) {
        self.capture.hold(held, config).await;
        let ports = held.ports();
        self.state.send_if_modified(|state| {
            let changed = state.held_ports != ports;
            state.held_ports = ports;
            changed
        });
    }

    /// The rules that an earlier agent left, when they are what they have to be: they go on without
    /// a gap, whether the proxy is ready or not.
    async fn found(&self) -> Option<Config> {
        let config = self.config();
        match self.capture.stands(&config).await {
            Ok(true) => {
                self.stands(&config, "as an earlier agent left them");
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
    async fn proxy_comes(&mut self, held: &mut Held) -> bool {
        // Without rules, nobody can be made to wait.
        self.delayed.send_replace(true);
        let begun = Instant::now();
        let mut look = ticks();
        let mut is_taken = false;
        loop {
            tokio::select! {
                up = self.proxy.wait_for(|up| *up) => return up.is_ok(),
                _ = look.tick() => {}
            }
            let config = self.config();
            self.hold(held, &config).await;
            match self.ports_are_free(&config) {
                Err(error) => {
                    self.failed(&error);
                    is_taken = true;
                }
                Ok(()) if std::mem::take(&mut is_taken) => self.waits(CapturePhase::Waiting),
                Ok(()) => {}
            }
            let is_gone = begun.elapsed() > GONE;
            if is_gone && self.policy == FailPolicy::Open && self.capture.has_journal() {
                match self.capture.remove().await {
                    Ok(_) => {
                        tracing::warn!("The proxy does not come: traffic passes without the mesh.");
                        self.waits(CapturePhase::Removed);
                    }
                    Err(error) => self.failed(&error),
                }
            }
        }
    }

    async fn apply_until_it_works(&self) -> Config {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            self.delayed.send_replace(false);
            let config = self.config();
            if self.policy == FailPolicy::Open
                && let Err(error) = self.ports_are_free(&config)
            {
                self.failed(&error);
                self.delayed.send_replace(true);
                sleep(backoff.next_delay()).await;
                continue;
            }
            let applying = busy("putting the redirect rules in place", PATIENCE);
            // Rules that were in place are not removed because of new ones that fail.
            let is_fresh = matches!(self.capture.look().await, Ok(Found::Absent));
            let on_failure = match self.policy {
                FailPolicy::Open if is_fresh => OnFailure::Undo,
                FailPolicy::Open | FailPolicy::Closed => OnFailure::Keep,
            };
            let applied = self.capture.apply(&config, on_failure).await;
            drop(applying);
            match applied {
                Ok(applied) => {
                    self.stands(&config, &applied.probed);
                    return config;
                }
                Err(error) => {
                    self.failed(&error);
                    if matches!(error, ApplyError::Probe(_)) {
                        return config;
                    }
                    self.delayed.send_replace(true);
                }
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Returns when the proxy has been gone for too long under an open policy. One whose ports others
    /// have is as good as gone.
    async fn follow(&mut self, mut applied: Config, held: &mut Held) {
        let mut look = ticks();
        let mut is_taken = false;
        let mut is_stuck = false;
        let mut gone_at = (!*self.proxy.borrow_and_update()).then(Instant::now);
        loop {
            let gone = async {
                match gone_at {
                    Some(since) => sleep_until(since + GONE).await,
                    None => std::future::pending().await,
                }
            };
            let is_delayed = applied.delay_inbound;
            tokio::select! {
                changed = self.proxy.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                }
                () = turned(&mut self.delay, is_delayed), if !is_stuck => {
                    let free = self.ports_are_free(&applied);
                    applied = self.look(applied, free).await;
                    // Tried again with the next look. Who waits for it waits in vain.
                    is_stuck = applied.delay_inbound == is_delayed;
                    if is_stuck {
                        self.delayed.send_replace(!is_delayed);
                    }
                }
                () = gone, if self.policy == FailPolicy::Open => return,
                _ = look.tick() => {
                    self.hold(held, &applied).await;
                    let free = self.ports_are_free(&applied);
                    is_taken = free.is_err();
                    is_stuck = false;
                    applied = self.look(applied, free).await;
                }
            }
            let serves = *self.proxy.borrow_and_update() && !is_taken;
            gone_at = if serves { None } else { gone_at.or_else(|| Some(Instant::now())) };
        }
    }

    /// Fails where another user listens at a port of the proxy.
    fn ports_are_free(&self, config: &Config) -> Result<(), ApplyError> {
        match Listeners::look(config.proxy_ports).foreign(config.owner) {
            Some(foreign) => Err(ApplyError::port(foreign)),
            None => Ok(()),
        }
    }

    /// Puts the rules in order where the host or somebody else has changed. They are never removed
    /// here: one that fails leaves those that are in place.
    async fn look(&self, applied: Config, free: Result<(), ApplyError>) -> Config {
        let _busy = busy("looking at the redirect rules", PATIENCE);
        let config = self.config();
        let was_active = self.state.borrow().phase == CapturePhase::Active;
        let is_intact = match self.capture.look().await {
            Ok(found) => found == Found::Intact,
            Err(error) => {
                self.failed(&error);
                return applied;
            }
        };
        if !is_intact && was_active {
            tracing::warn!("Somebody else changed the redirect rules; putting them in order.");
        }
        let is_same = is_intact && config == applied;
        let done = match free {
            Err(error) if is_same => Err(error),
            Ok(()) if is_same && was_active => return applied,
            Ok(()) if is_same => self.capture.probe(&config).await,
            free => {
                let applied = self.capture.apply(&config, OnFailure::Keep).await;
                applied.and_then(|done| free.map(|()| done.probed))
            }
        };
        match &done {
            Ok(probed) => self.stands(&config, probed),
            Err(error) => self.failed(error),
        }
        let is_in_place = matches!(done, Ok(_) | Err(ApplyError::Probe(_) | ApplyError::Port(_)));
        if is_in_place && !is_intact {
            let now = Some(self.clock.now());
            self.state.send_modify(|state| {
                state.repairs = state.repairs.saturating_add(1);
                state.repaired_at = now;
            });
        }
        if is_in_place { config } else { applied }
    }

    fn stands(&self, config: &Config, probed: &str) {
        let now = self.clock.now();
        self.delayed.send_replace(config.delay_inbound);
        self.state.send_modify(|state| {
            if state.phase != CapturePhase::Active {
                tracing::info!(probed, ipv6 = ?config.ipv6, "Traffic is captured.");
                state.since = Some(now);
            } else if state.ipv6 != Some(config.ipv6) {
                tracing::info!(ipv6 = ?config.ipv6, "Changed what becomes of IPv6 connections.");
            }
            state.phase = CapturePhase::Active;
            state.ipv6 = Some(config.ipv6);
            state.probed = Some(probed.to_owned());
            let since = state.trouble.as_ref().map_or(now, |old| old.since);
            state.trouble = unserved(self.registered, config.ipv6, since);
        });
    }

    /// The rules are not in place, and come when the proxy does.
    fn waits(&self, phase: CapturePhase) {
        self.state.send_modify(|state| {
            state.phase = phase;
            state.since = None;
            state.trouble = None;
        });
    }

    fn failed(&self, error: &ApplyError) {
        let trouble = Trouble::new(error, error.hint(), Retry::Later, self.clock.now());
        self.state.send_if_modified(|state| {
            let same = state.trouble.as_ref().filter(|old| old.what == trouble.what);
            let is_new = same.is_none() || state.phase != CapturePhase::Failed;
            if is_new {
                tracing::error!(%trouble, "Traffic is not captured.");
            }
            state.phase = CapturePhase::Failed;
            let since = state.trouble.as_ref().map_or(trouble.since, |old| old.since);
            state.trouble = Some(Trouble { since, ..trouble });
            is_new
        });
    }
}

/// Others connect to an address at which the proxy does not listen, and are refused.
fn unserved(registered: Option<IpAddr>, ipv6: Ipv6, since: SystemTime) -> Option<Trouble> {
    let address = registered.filter(|ip| ip.is_ipv6() && ipv6 == Ipv6::Reject)?;
    Some(Trouble {
        what: format!("the registered address {address} is not served: the proxy has no IPv6 listeners"),
        hint: Some(
            "register an IPv4 address (workload.address), set workload.instanceIps to IPv6 addresses \
             only, or run istiod with ISTIO_DUAL_STACK=true"
                .to_owned(),
        ),
        retry: Retry::Later,
        since,
    })
}

/// Waits until new inbound connections have to wait, or not any more.
async fn turned(delay: &mut watch::Receiver<Option<Instant>>, is_delayed: bool) {
    loop {
        let end = delay.borrow_and_update().filter(|end| Instant::now() < *end);
        if end.is_some() != is_delayed {
            return;
        }
        let over = async {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            changed = delay.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

fn ticks() -> Interval {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.reset();
    look
}

/// For some tools, each of which may wait for the lock of iptables.
const PATIENCE: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the host's rules are compared with what was applied.
const LOOK: Duration = Duration::from_secs(5);
/// A proxy that is restarted is back within a second or two; one that is away for longer is gone.
const GONE: Duration = Duration::from_secs(30);
