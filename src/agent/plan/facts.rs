//! What is known of the machine when it starts: what can be told at once, and what its cloud says
//! within the budget, where it has not said it before.

use std::time::SystemTime;

use crate::base::clock::{SharedClock, from_unix_seconds};
use crate::base::trouble::{Trouble, chain};
use crate::config::{self, Paths};
use crate::platform::{
    self, Cloud, Facts, FactsState, Origin, Provider, Record, Told, ask, survey,
};

/// What is asked while the agent runs.
#[derive(Clone, Debug)]
pub struct FactsPlan {
    /// What is known at the start.
    pub state: FactsState,
    /// What cloud-init says.
    pub at_once: Cloud,
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
    let at_once = state.facts.cloud.clone();
    let record = found.provider.and_then(|_| remembered(paths, &found.machine));
    let record = record.filter(|record| !is_another(&at_once, &record.cloud));
    let complete = record.as_ref().is_some_and(|record| config.tags.is_subset(&record.asked));
    if let Some(record) = record {
        state.learned_at = Some(from_unix_seconds(record.learned_at));
        state.source = Origin::Remembered;
        // What cloud-init says is of this boot.
        state.facts.cloud = at_once.clone().or(record.cloud);
    }
    let waits = !wanted.facts.budget.is_zero() && has_to_wait(wanted, &state.facts, complete);
    if let Some(provider) = found.provider.filter(|_| waits) {
        match ask(provider, &config, wanted.facts.budget).await {
            Ok(told) => learn(&mut state, told, &at_once, clock.now()),
            Err(error) => {
                tracing::warn!(error = chain(&error), "The cloud did not tell its facts in time.");
                let (hint, retry) = (error.hint(), error.retry());
                state.trouble = Some(Trouble::new(&error, hint, retry, clock.now()));
            }
        }
    }
    let (provider, machine) = (found.provider, found.machine);
    FactsPlan { state, at_once, provider, config, machine, wanted: wanted.clone() }
}

/// The state once the cloud has spoken.
pub(in crate::agent) fn learn(
    state: &mut FactsState,
    told: Told,
    at_once: &Cloud,
    now: SystemTime,
) {
    let mut tags = std::mem::take(&mut state.facts.cloud.tags);
    // A tag that is gone is gone; of one that could not be read nothing is known.
    tags.retain(|key, _| told.unread.contains(key));
    state.facts.cloud = told.cloud.or(at_once.clone()).or(Cloud { tags, ..Cloud::default() });
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

/// Whether cloud-init runs on another machine than the one that is remembered.
fn is_another(at_once: &Cloud, before: &Cloud) -> bool {
    let ids = at_once.instance_id.as_ref().zip(before.instance_id.as_ref());
    ids.is_some_and(|(now, before)| !now.eq_ignore_ascii_case(before))
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
            (None, Some(provider)) if self.wanted.facts.budget.is_zero() => Some(format!(
                "{} was not waited for: workload.facts.budget is zero",
                provider.name()
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(id: &str, zone: Option<&str>, tags: &[(&str, &str)]) -> Cloud {
        Cloud {
            instance_id: Some(id.to_owned()),
            zone: zone.map(str::to_owned),
            tags: tags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            ..Cloud::default()
        }
    }

    #[test]
    fn what_the_cloud_no_longer_says_is_forgotten_but_for_tags_that_could_not_be_read() {
        let mut state = FactsState::default();
        state.facts.cloud = cloud("i-1", Some("a"), &[("env", "prod"), ("team", "web")]);
        let told = Told {
            cloud: cloud("i-1", None, &[]),
            unread: std::collections::BTreeSet::from(["env".to_owned()]),
        };
        learn(&mut state, told, &Cloud::default(), SystemTime::UNIX_EPOCH);
        assert_eq!(state.facts.cloud, cloud("i-1", None, &[("env", "prod")]));
        let told = Told { cloud: cloud("i-1", None, &[]), ..Told::default() };
        learn(&mut state, told, &cloud("i-1", Some("b"), &[]), SystemTime::UNIX_EPOCH);
        assert_eq!(state.facts.cloud, cloud("i-1", Some("b"), &[]));
        assert_eq!(state.source, Origin::Metadata);
    }

    #[test]
    fn a_copied_disk_is_told_by_the_instance_that_cloud_init_names() {
        let (one, other) = (cloud("i-1", None, &[]), cloud("i-2", None, &[]));
        assert!(is_another(&one, &other) && !is_another(&one, &cloud("I-1", None, &[])));
        assert!(!is_another(&Cloud::default(), &one));
    }
}
