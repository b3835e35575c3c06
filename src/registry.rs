//! The machine's WorkloadEntry: wanted, found, applied, removed; or left to istiod.

mod direct;
mod entry;

use std::time::SystemTime;

use serde::Serialize;

pub use direct::{Direct, RemoveError};
pub use entry::{FIELD_MANAGER, entry, object};

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
    /// Since when, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub since: Option<SystemTime>,
    /// Why it does not stand.
    pub trouble: Option<Trouble>,
}

impl RegistrationState {
    /// The state before the first try.
    #[must_use]
    pub fn new(mode: Mode, namespace: String, name: String) -> Self {
        let off = mode == Mode::None;
        let phase = if off { RegistrationPhase::Off } else { RegistrationPhase::Pending };
        Self { mode, namespace, name, phase, registered: false, since: None, trouble: None }
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
        self.since.get_or_insert(now);
        self.trouble = None;
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

    /// In the mode `istiod`: istiod registers a machine before its first answer on the stream, and
    /// ends the stream when it cannot.
    pub fn follow_stream(&mut self, answered: bool, trouble: Option<&Trouble>, now: SystemTime) {
        if self.mode != Mode::Istiod {
            return;
        }
        match trouble {
            None if answered => self.stands(now),
            Some(trouble) if trouble.retry != Retry::Soon && !self.registered => {
                self.failed(trouble.clone());
            }
            _ => {}
        }
    }
}
