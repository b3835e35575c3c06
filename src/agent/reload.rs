//! Reading the configuration again: it is judged as a whole, and of a good one that which can
//! change while the agent runs is taken.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::sync::watch;

use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::base::problem::Problems;
use crate::base::trouble::Trouble;
use crate::config::{Effective, Loaded, Settings};
use crate::status::ConfigurationState;

/// The settings of the start, and where they come from.
pub struct Configuration {
    /// As they were read.
    pub loaded: Loaded,
    /// Reads them again.
    pub read: Box<dyn Fn() -> Result<Loaded, Problems> + Send + Sync>,
}

/// Keeps the settings that count.
pub(super) struct Reload {
    configuration: Configuration,
    state: watch::Sender<ConfigurationState>,
    clock: SharedClock,
}

impl Reload {
    pub(super) fn new(
        configuration: Configuration,
        clock: SharedClock,
    ) -> (Self, watch::Receiver<ConfigurationState>) {
        let (state, shown) = watch::channel(ConfigurationState::default());
        (Self { configuration, state, clock }, shown)
    }

    /// The settings that count now.
    pub(super) fn settings(&self) -> &Settings {
        &self.configuration.loaded.settings
    }

    /// Reads the configuration again. With a bad one nothing changes.
    pub(super) fn read(&mut self) {
        let now = self.clock.now();
        let loaded = match (self.configuration.read)() {
            Ok(loaded) => loaded,
            Err(problems) => {
                let hint =
                    Some("correct it and reload again; until then nothing changes".to_owned());
                let trouble = Trouble::new(&Refused(&problems), hint, Retry::Later, now);
                tracing::error!(%trouble, "The configuration was read again and is not taken.");
                self.state.send_modify(|state| {
                    state.reads = state.reads.saturating_add(1);
                    state.trouble = Some(trouble);
                });
                return;
            }
        };
        let changed = changed(&self.configuration.loaded.effective, &loaded.effective);
        let (live, restart): (Vec<_>, Vec<_>) = changed.into_iter().partition(|name| is_live(name));
        tracing::info!(?live, "The configuration was read again.");
        if !restart.is_empty() {
            tracing::warn!(
                ?restart,
                "These settings have changed and need a restart of the agent."
            );
        }
        take(&mut self.configuration.loaded, loaded);
        self.state.send_modify(|state| {
            state.reads = state.reads.saturating_add(1);
            state.read_at = Some(now);
            state.restart = restart;
            state.trouble = None;
        });
    }
}

/// Problems of a configuration in one sentence.
#[derive(Debug)]
struct Refused<'a>(&'a Problems);

impl std::fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the configuration is not taken: {}", self.0.to_string().replace('\n', "; "))
    }
}

impl std::error::Error for Refused<'_> {}

/// Takes what can change while the agent runs; what needs a restart stays as it was, so that it is
/// named again as long as it is so.
fn take(kept: &mut Loaded, new: Loaded) {
    let (old, new_workload) = (&mut kept.settings.workload, new.settings.workload);
    old.labels = new_workload.labels;
    old.ports = new_workload.ports;
    old.weight = new_workload.weight;
    old.locality = new_workload.locality;
    old.network = new_workload.network;
    old.address = new_workload.address;
    old.instance_ips = new_workload.instance_ips;
    old.templates = new_workload.templates;
    kept.effective.retain(|one| !is_live(&one.setting));
    kept.effective.extend(new.effective.into_iter().filter(|one| is_live(&one.setting)));
}

fn is_live(setting: &str) -> bool {
    LIVE.iter().any(|live| {
        setting.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The settings that are not the same in both.
fn changed(old: &[Effective], new: &[Effective]) -> Vec<String> {
    let values = |all: &[Effective]| -> BTreeMap<String, Value> {
        // A map without entries stands for itself, one with entries by those.
        let real = all.iter().filter(|one| one.value.as_object().is_none_or(|map| !map.is_empty()));
        real.map(|one| (one.setting.clone(), one.value.clone())).collect()
    };
    let (old, new) = (values(old), values(new));
    let mut names: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| old.get(name) != new.get(name));
    names
}

/// What a reload takes.
const LIVE: [&str; 7] = [
    "workload.address",
    "workload.instanceIps",
    "workload.labels",
    "workload.locality",
    "workload.network",
    "workload.ports",
    "workload.weight",
];

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;
    use crate::base::clock;
    use crate::base::problem::Problem;
    use crate::config::{Document, Paths, load};

    fn loaded(change: &Value) -> Result<Loaded, Problems> {
        let mut document = Document::new();
        let base = json!({
            "workload": {"namespace": "vms", "group": "client", "labels": {"app": "a"}},
            "mesh": {"discoveryAddress": "istiod:15012"},
        });
        document.add(&base, &|_| "file".to_owned());
        if change != &json!({}) {
            document.add(change, &|_| "file".to_owned());
        }
        load(&document, &Paths::new(std::path::Path::new("/")))
    }

    fn reload(next: Arc<Mutex<Value>>) -> (Reload, watch::Receiver<ConfigurationState>) {
        let read = Box::new(move || loaded(&next.lock().unwrap()));
        let configuration = Configuration { loaded: loaded(&json!({})).unwrap(), read };
        Reload::new(configuration, clock::system())
    }

    #[test]
    fn what_can_change_is_taken_and_the_rest_is_named_until_it_is_as_before() {
        let next = Arc::new(Mutex::new(json!({
            "workload": {"labels": {"app": "b", "v": "2"}, "weight": 3, "name": "other"},
            "status": {"port": 15099},
        })));
        let (mut reload, state) = reload(Arc::clone(&next));
        reload.read();
        let labels = &reload.settings().workload.labels;
        assert_eq!(labels.len(), 2);
        assert_eq!(reload.settings().workload.weight, Some(3));
        assert_eq!(reload.settings().workload.name, None);
        assert_eq!(state.borrow().restart, ["status.port", "workload.name"]);
        reload.read();
        assert_eq!(state.borrow().restart, ["status.port", "workload.name"], "it still is so");
        *next.lock().unwrap() = json!({});
        reload.read();
        assert_eq!(state.borrow().restart, Vec::<String>::new());
        assert_eq!(reload.settings().workload.labels["app"], "a");
        assert_eq!(state.borrow().reads, 3);
    }

    #[test]
    fn with_a_bad_configuration_nothing_changes_and_that_is_said() {
        let next =
            Arc::new(Mutex::new(json!({"workload": {"labels": {"app": "b"}, "weight": "x"}})));
        let (mut reload, state) = reload(Arc::clone(&next));
        reload.read();
        assert_eq!(reload.settings().workload.labels["app"], "a");
        let trouble = state.borrow().trouble.clone().unwrap();
        assert!(trouble.what.contains("workload.weight"), "{}", trouble.what);
        *next.lock().unwrap() = json!({});
        reload.read();
        assert_eq!(state.borrow().trouble, None);
    }

    #[test]
    fn several_problems_are_one_sentence() {
        let problem = |what: &str| Problem::new("file:1", "a", what);
        let problems = Problems(vec![problem("x"), problem("y")]);
        assert!(Refused(&problems).to_string().ends_with("file:1: a: x; file:1: a: y"));
    }
}
