//! What is known of the machine when it starts: what can be told at once, and what its cloud says
//! within the budget, where it has not said it before.

use std::time::SystemTime;

use crate::base::clock::{SharedClock, from_unix_seconds};
use crate::base::trouble::{Trouble, chain};
use crate::config::{self, Paths};
use crate::platform::{self, Facts, FactsState, Origin, Provider, Record, Told, ask, survey};

/// What is asked while the agent runs.
#[derive(Clone, Debug)]
pub struct FactsPlan {
    /// What is known at the start.
    pub state: FactsState,
    /// The cloud that is asked, where there is one.
    pub provider: Option<Provider>,
    /// How it is asked.
    pub config: platform::Config,
    /// Which machine this is, for what is kept on its disk.
    pub machine: String,
    /// The settings that the facts complete, as the operator wrote them.
    pub wanted: config::Workload,
}

/// Gathers what is known. A cloud is waited for at most as long as the budget, and only by the
/// first start that has a use for what it says.
pub(super) async fn gather(
    wanted: &config::Workload,
    paths: &Paths,
    clock: &SharedClock,
) -> FactsPlan {
    let config = wanted.facts.platform.clone();
    let found = survey(&config);
    let mut state = FactsState { source: source(&found.facts), ..FactsState::default() };
    state.facts = found.facts;
    let record = found.provider.and_then(|_| remembered(paths, &found.machine));
    let complete = record.as_ref().is_some_and(|record| config.tags.is_subset(&record.asked));
    if let Some(record) = record {
        state.learned_at = Some(from_unix_seconds(record.learned_at));
        state.source = Origin::Remembered;
        let at_once = std::mem::take(&mut state.facts.cloud);
        // What cloud-init says is of this boot.
        state.facts.cloud = at_once.or(record.cloud);
    }
    let waits = has_to_wait(wanted, &state.facts, complete);
    if let Some(provider) = found.provider.filter(|_| waits) {
        match ask(provider, &config, wanted.facts.budget).await {
            Ok(told) => learn(&mut state, told, clock.now()),
            Err(error) => {
                tracing::warn!(error = chain(&error), "The cloud did not tell its facts in time.");
                let (hint, retry) = (error.hint(), error.retry());
                state.trouble = Some(Trouble::new(&error, hint, retry, clock.now()));
            }
        }
    }
    let (provider, machine) = (found.provider, found.machine);
    FactsPlan { state, provider, config, machine, wanted: wanted.clone() }
}

/// The state once the cloud has spoken.
pub(in crate::agent) fn learn(state: &mut FactsState, told: Told, now: SystemTime) {
    let mut before = std::mem::take(&mut state.facts.cloud);
    // A tag that is gone is gone; of one that could not be read nothing is known.
    before.tags.retain(|key, _| told.unread.contains(key));
    state.facts.cloud = told.cloud.or(before);
    state.source = Origin::Metadata;
    state.learned_at = Some(now);
    state.trouble = None;
}

fn source(facts: &Facts) -> Origin {
    if facts.cloud.is_empty() { Origin::None } else { Origin::CloudInit }
}

/// A template that nothing else fills is waited for at every start. What may be missing is waited
/// for once: a cloud that has told all before may have nothing more to tell.
fn has_to_wait(wanted: &config::Workload, facts: &Facts, told_before: bool) -> bool {
    let lacks = wanted.needs().any(|fact| facts.get(fact).is_none());
    let may_lack = !wanted.facts.platform.tags.is_empty() || facts.cloud.region.is_none();
    lacks || (!told_before && may_lack && wanted.wants_cloud())
}

fn remembered(paths: &Paths, machine: &str) -> Option<Record> {
    Record::read(&paths.facts(), machine).unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "What the cloud said before is forgotten.");
        None
    })
}

impl FactsPlan {
    /// Why nothing is known of a cloud; `None` where something is.
    pub(super) fn lack(&self) -> Option<String> {
        match (&self.state.trouble, self.provider) {
            (Some(trouble), _) => Some(trouble.what.clone()),
            (None, None) if self.state.facts.cloud.is_empty() => {
                let vendor = self.state.facts.host.vendor.as_deref();
                let vendor = vendor.map(|vendor| format!(", made by {vendor:?}"));
                Some(format!(
                    "this machine{} is in no cloud that is known",
                    vendor.unwrap_or_default()
                ))
            }
            _ => None,
        }
    }
}
