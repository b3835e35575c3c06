//! Asks the cloud while the agent runs: keeps what it says for the next start, and tells when it
//! is no longer what this start was made with.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::plan::{FactsPlan, learn};
use super::start::never_ends;
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock::{SharedClock, unix_seconds};
use crate::base::tasks::Tasks;
use crate::base::trouble::{Trouble, chain};
use crate::config;
use crate::platform::{FactsState, MetadataError, Origin, PATIENCE, Provider, Record, ask};
use crate::workload::Address;

/// Follows the cloud's facts, where there is a cloud to ask.
pub(super) fn follow(
    tasks: &Tasks,
    plan: FactsPlan,
    (address, kept_in): (Address, PathBuf),
    clock: &SharedClock,
) -> watch::Receiver<FactsState> {
    let (state, shown) = watch::channel(plan.state.clone());
    let Some(provider) = plan.provider else { return shown };
    let used = plan.wanted.complete(&plan.state.facts, &address).ok();
    let follower = Follower { plan, used, address, kept_in, state, clock: clock.clone() };
    let stop = tasks.stop_signal();
    let until_stopped = async move {
        tokio::select! {
            () = follower.run(provider) => {}
            () = stop.cancelled() => {}
        }
    };
    tasks.critical("facts", never_ends(until_stopped));
    shown
}

struct Follower {
    plan: FactsPlan,
    /// What this start was made with.
    used: Option<config::Workload>,
    address: Address,
    kept_in: PathBuf,
    state: watch::Sender<FactsState>,
    clock: SharedClock,
}

impl Follower {
    async fn run(self, provider: Provider) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut pause = Duration::ZERO;
        if self.state.borrow().source == Origin::Metadata {
            self.keep();
            pause = AGAIN;
        }
        loop {
            tokio::time::sleep(pause).await;
            pause = match ask(provider, &self.plan.config, PATIENCE).await {
                Ok(told) => {
                    let now = self.clock.now();
                    self.state.send_modify(|state| learn(state, told, &self.plan.at_once, now));
                    self.keep();
                    self.compare();
                    backoff.reset();
                    AGAIN
                }
                Err(error) => {
                    self.note(&error);
                    backoff.delay_for(error.retry())
                }
            };
        }
    }

    /// For the next start.
    fn keep(&self) {
        let state = self.state.borrow().clone();
        let Some(at) = state.learned_at else { return };
        let machine = self.plan.machine.clone();
        let record = Record {
            machine,
            learned_at: unix_seconds(at),
            asked: self.plan.config.tags.clone(),
            cloud: state.facts.cloud,
        };
        if let Err(error) = record.write(&self.kept_in) {
            tracing::warn!(error = chain(&error), "The cloud's facts are not kept.");
        }
    }

    /// A machine that was moved, or whose tags changed, shows it only after a new start.
    fn compare(&self) {
        let now = self.plan.wanted.complete(&self.state.borrow().facts, &self.address);
        let what = match (&self.used, now) {
            (Some(used), Ok(now)) if *used != now => difference(used, &now),
            (Some(_), Err(error)) => format!("the cloud's facts no longer fit: {error}"),
            _ => return,
        };
        tracing::warn!(what, "The cloud's facts have changed.");
        let hint = Some("start the agent anew: `systemctl restart vm-agent`".to_owned());
        let since = self.clock.now();
        let trouble = Trouble { what, hint, retry: Retry::Later, since };
        self.state.send_modify(|state| state.trouble = Some(trouble));
    }

    /// A silent cloud matters where something of it is wanted that nobody else has told.
    fn note(&self, error: &MetadataError) {
        tracing::debug!(error = chain(error), "The cloud did not tell its facts.");
        if self.state.borrow().source != Origin::None || !self.plan.wanted.wants_cloud() {
            return;
        }
        let trouble = Trouble::new(error, error.hint(), error.retry(), self.clock.now());
        self.state.send_modify(|state| {
            let since = state.trouble.as_ref().map_or(trouble.since, |old| old.since);
            state.trouble = Some(Trouble { since, ..trouble });
        });
    }
}

fn difference(used: &config::Workload, now: &config::Workload) -> String {
    let mut changes = Vec::new();
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    let place = |one: &config::Workload| one.locality.as_ref().map(ToString::to_string);
    for (what, before, after) in [
        ("name", used.name.clone(), now.name.clone()),
        ("locality", place(used), place(now)),
        ("network", Some(used.network.clone()), Some(now.network.clone())),
    ] {
        if before != after {
            changes.push(format!("{what} {} is now {}", text(&before), text(&after)));
        }
    }
    for key in
        used.labels.keys().chain(now.labels.keys().filter(|key| !used.labels.contains_key(*key)))
    {
        let (before, after) = (used.labels.get(key).cloned(), now.labels.get(key).cloned());
        if before != after {
            changes.push(format!("label {key} {} is now {}", text(&before), text(&after)));
        }
    }
    format!("by the cloud's facts, {}", changes.join(", "))
}

/// Tags change while a machine runs; its place does so only where machines are moved.
const AGAIN: Duration = Duration::from_secs(3600);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
