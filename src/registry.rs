//! The machine's WorkloadEntry: wanted, found, applied, removed; or left to istiod.

mod course;
mod direct;
mod entry;
mod fields;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod machine;
mod preflight;
mod record;
mod removal;
mod rival;
mod sight;
mod sweep;
mod tenant;
mod told;

use std::time::SystemTime;

use serde::Serialize;

pub use direct::{Config, Direct, RegisterError, Standing};
pub use entry::{MANAGED_BY, entry, object, place};
pub use machine::{MACHINE, Machine};
pub use removal::{RemoveError, remove};
pub use rival::new_instance;
pub use sight::{Holder, Sight, Verdict};
pub use sweep::Sweep;
pub use told::Told;

use crate::base::backoff::Retry;
use crate::base::clock;
use crate::base::trouble::Trouble;

/// Who writes the WorkloadEntry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// istiod, from the WorkloadGroup, when our configuration stream arrives.
    Istiod,
    /// We, through the Kubernetes API.
    Kubernetes,
    /// Somebody else, or nobody.
    None,
}

/// Where the registration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistrationPhase {
    /// The last try failed.
    Failed,
    /// Not asked for.
    Off,
    /// Not tried yet, or on its way.
    Pending,
    /// The entry stands.
    Registered,
}

/// The registration at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct RegistrationState {
    /// Who writes it.
    pub mode: Mode,
    /// The WorkloadEntry's namespace.
    pub namespace: String,
    /// The WorkloadEntry's name.
    pub name: String,
    /// Where it stands.
    pub phase: RegistrationPhase,
    /// The entry stands: the same as the phase `registered`.
    pub registered: bool,
    /// The entry is taken for what it was at the agent's last run: the API server has not answered
    /// since the start.
    pub assumed: bool,
    /// Since when, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub since: Option<SystemTime>,
    /// Our name towards Kubernetes' field ownership, where we write the entry.
    pub manager: Option<String>,
    /// When it was applied last, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub applied_at: Option<SystemTime>,
    /// How often it was applied.
    pub applies: u64,
    /// How often it was found otherwise than it was applied.
    pub drift: u64,
    /// How often others were found to hold fields of ours.
    pub conflicts: u64,
    /// The fields that others hold now.
    pub contested: Vec<String>,
    /// Whether the API server tells at once what happens to it.
    pub watching: bool,
    /// Why it does not stand, or is not as it should be.
    pub trouble: Option<Trouble>,
}

impl RegistrationState {
    /// The state before the first try.
    #[must_use]
    pub fn new(mode: Mode, namespace: String, name: String) -> Self {
        let off = mode == Mode::None;
        let phase = if off { RegistrationPhase::Off } else { RegistrationPhase::Pending };
        Self {
            mode,
            namespace,
            name,
            phase,
            registered: false,
            assumed: false,
            since: None,
            manager: None,
            applied_at: None,
            applies: 0,
            drift: 0,
            conflicts: 0,
            contested: Vec::new(),
            watching: false,
            trouble: None,
        }
    }

    /// Whether nothing more has to happen before the machine can be called ready.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, RegistrationPhase::Registered | RegistrationPhase::Off)
    }

    /// The entry stands.
    pub fn stands(&mut self, now: SystemTime) {
        self.phase = RegistrationPhase::Registered;
        self.registered = true;
        self.assumed = false;
        self.since.get_or_insert(now);
        self.trouble = None;
    }

    /// The API server does not answer, and the entry was as it should be at the last run.
    pub(crate) fn assume(&mut self, now: SystemTime) {
        let trouble = self.trouble.take();
        self.stands(now);
        self.assumed = true;
        self.trouble = trouble;
    }

    /// A try failed. An entry that stood is still believed to stand: nobody took it away.
    pub fn failed(&mut self, mut trouble: Trouble) {
        if let Some(old) = &self.trouble {
            trouble.since = old.since;
        }
        if !self.registered {
            self.phase = RegistrationPhase::Failed;
        }
        self.trouble = Some(trouble);
    }

    /// The entry is not ours, or not ours any more.
    pub fn lost(&mut self, trouble: Trouble) {
        self.registered = false;
        self.assumed = false;
        self.since = None;
        self.contested.clear();
        self.failed(trouble);
    }

    /// In the mode `istiod`: istiod registers a machine before its first answer on the stream, and
    /// ends the stream when it cannot.
    pub fn follow_stream(&mut self, answered: bool, trouble: Option<&Trouble>, now: SystemTime) {
        if self.mode != Mode::Istiod {
            return;
        }
        match trouble {
            None if answered => self.stands(now),
            // istiod has refused the stream: it removes the entry after its grace period.
            Some(trouble) if trouble.retry != Retry::Soon && self.registered => {
                self.lost(trouble.clone());
            }
            Some(trouble) if trouble.retry != Retry::Soon => self.failed(trouble.clone()),
            _ => {}
        }
    }
}
