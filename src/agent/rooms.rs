//! Starts the rooms that a plan may or may not have: redirected traffic, names, health;
//! and the one that keeps our tokens.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::plan::CapturePlan;
use super::start::never_ends;
use crate::base::clock::SharedClock;
use crate::base::tasks::Tasks;
use crate::capture::{CaptureState, Keeper};
use crate::credential::Ladder;
use crate::dns;
use crate::envoy::{ProxyPhase, ProxyState};
use crate::health;
use crate::proto::names::Names;
use crate::secrets::{RenewalPhase, Source, Vault};
use crate::xds;

/// Whether the proxy can take traffic, as a signal of its own.
pub(super) fn readiness(
    tasks: &Tasks,
    mut proxy: watch::Receiver<ProxyState>,
) -> watch::Receiver<bool> {
    let (ready, is_ready) = watch::channel(false);
    let stop = tasks.stop_signal();
    let follow = async move {
        loop {
            let now = proxy.borrow_and_update().serves();
            ready.send_if_modified(|before| std::mem::replace(before, now) != now);
            if proxy.changed().await.is_err() {
                return;
            }
        }
    };
    let until_stopped = async move {
        tokio::select! {
            () = follow => {}
            () = stop.cancelled() => {}
        }
    };
    tasks.critical("readiness", never_ends(until_stopped));
    is_ready
}

/// Keeps the tokens, and wakes a renewal that waits for one.
pub(super) fn credential(tasks: &Tasks, ladder: Ladder, vault: &Vault) {
    let (mut news, vault) = (ladder.news(), vault.clone());
    tasks.critical("credential", never_ends(ladder.keep(tasks.stop_signal())));
    tasks.essential("credential-news", async move {
        while news.changed().await.is_ok() {
            let waits = {
                let renewal = vault.renewal();
                let renewal = renewal.borrow();
                // Only istiod's renewal goes with these tokens.
                let is_ours = matches!(vault.source(), Source::Istiod);
                is_ours && renewal.phase == RenewalPhase::Retrying && renewal.next_attempt.is_some()
            };
            if waits {
                vault.renew_now();
            }
        }
    });
}

/// Answers names, where that is asked for.
pub(super) fn names(
    tasks: &Tasks,
    config: Option<dns::Config>,
    doors: dns::Doors,
    table: watch::Receiver<Option<Arc<Names>>>,
    clock: &SharedClock,
) -> Option<dns::Handle> {
    let (server, handle) = dns::Server::new(config?, doors, clock.clone(), tasks.clone());
    tasks.critical("dns", server.run(table));
    Some(handle)
}

/// Checks the application.
pub(super) fn health(
    tasks: &Tasks,
    config: health::Config,
    inputs: health::Inputs,
    clock: &SharedClock,
) -> watch::Receiver<health::State> {
    let (state, shown) = watch::channel(health::State::default());
    let checks = health::watch(config, inputs, state, clock.clone(), tasks.stop_signal());
    tasks.critical("health", never_ends(checks));
    shown
}

/// Tells istiod how the application is, that the machine is leaving before it does, and that its
/// proxy is out of traffic.
pub(super) fn tell(
    tasks: &Tasks,
    mut health: watch::Receiver<health::State>,
    mut draining: watch::Receiver<bool>,
    mut proxy: watch::Receiver<ProxyState>,
    told: watch::Sender<Option<xds::Health>>,
) {
    tasks.essential("health-report", async move {
        loop {
            let leaves = *draining.borrow_and_update();
            let away = away(proxy.borrow_and_update().phase);
            let now = health.borrow_and_update().health.clone();
            let now = match now {
                _ if leaves => Some(leaving("the machine is leaving")),
                health::Health::Unknown => None,
                _ if away.is_some() => away,
                health::Health::Healthy => Some(xds::Health::Healthy),
                health::Health::Unhealthy { message } => Some(xds::Health::Unhealthy { message }),
            };
            told.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            let more = tokio::select! {
                changed = health.changed() => changed.is_ok(),
                changed = draining.changed() => changed.is_ok(),
                changed = proxy.changed() => changed.is_ok(),
            };
            if !more {
                return;
            }
        }
    });
}

/// Whether Envoy has the services for which others may call this machine.
#[derive(Clone)]
pub(super) struct Services {
    /// What istiod is told of the machine's health.
    pub(super) health: watch::Receiver<Option<xds::Health>>,
    /// Until when new inbound connections wait for the services.
    pub(super) inbound_delay: watch::Receiver<Option<Instant>>,
}

impl Services {
    /// Waits until a machine that was just reported healthy has its services, for a limited time. Others call
    /// it already, and istiod sends the Envoy of a machine that leaves nothing that it does not have. Not where
    /// the others have no time to hear of it (`notice`): nobody can tell them then.
    pub(super) async fn complete(mut self, notice: Duration) {
        if !notice.is_zero() && *self.health.borrow() == Some(xds::Health::Healthy) {
            let complete = |end: &Option<Instant>| end.is_none_or(|end| end <= Instant::now());
            drop(timeout(SERVICES_LIMIT, self.inbound_delay.wait_for(complete)).await);
        }
    }
}

/// What is told of a proxy that serves, and that nobody shall send anything to all the same.
fn away(phase: ProxyPhase) -> Option<xds::Health> {
    match phase {
        ProxyPhase::Drained => {
            Some(xds::Health::Unhealthy { message: "the proxy is out of traffic".to_owned() })
        }
        ProxyPhase::Draining => Some(leaving("the proxy is being restarted")),
        _ => None,
    }
}

fn leaving(message: &str) -> xds::Health {
    xds::Health::Leaving { message: message.to_owned() }
}

/// New inbound connections that wait for the services of a machine.
pub(super) struct Delay {
    /// Until when they are to wait.
    pub(super) until: watch::Receiver<Option<Instant>>,
    /// Whether they do.
    pub(super) delayed: watch::Sender<bool>,
}

/// Keeps the redirect rules, where there are any.
pub(super) fn capture(
    tasks: &Tasks,
    plan: Option<&CapturePlan>,
    proxy: watch::Receiver<bool>,
    delay: Delay,
    clock: &SharedClock,
) -> watch::Receiver<CaptureState> {
    let Some(plan) = plan.cloned() else { return watch::channel(CaptureState::default()).1 };
    let (state, shown) = watch::channel(CaptureState::waiting(plan.config.backend));
    let keeper = Keeper {
        capture: plan.capture.clone(),
        policy: plan.fail_policy,
        registered: plan.registered,
        current: move || plan.current(),
        proxy,
        delay: delay.until,
        delayed: delay.delayed,
        state,
        clock: clock.clone(),
    };
    tasks.critical("capture", never_ends(keeper.run(tasks.stop_signal())));
    shown
}

/// How long a machine that leaves waits for its services, at most.
const SERVICES_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn services_are_waited_for_where_others_may_call_the_machine_and_not_for_ever() {
        let seconds = Duration::from_secs;
        for (is_healthy, notice, complete_after, waited) in
            [(true, 3, 1, 1), (true, 3, 9, 2), (false, 3, 9, 0), (true, 3, 0, 0), (true, 0, 9, 0)]
        {
            let begin = Instant::now();
            let (_health, health) = watch::channel(is_healthy.then_some(xds::Health::Healthy));
            let (delay, inbound_delay) = watch::channel(Some(begin + seconds(60)));
            let complete = async {
                tokio::time::sleep(seconds(complete_after)).await;
                delay.send_replace(None);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                () = complete => {}
                () = Services { health, inbound_delay }.complete(seconds(notice)) => {}
            }
            assert_eq!(begin.elapsed(), seconds(waited));
        }
    }
}
