//! Our own hand on the WorkloadEntry, through the Kubernetes API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::course::Course;
use super::machine::{Machine, is_agent};
use super::record::Record;
use super::removal::{self, RemoveError};
use super::{Mode, RegistrationState, entry, object};
use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::kube::{Client, FieldConflict, KubeError, Object};
use crate::workload::Workload;

/// Applies the entry and keeps it applied.
pub struct Direct {
    pub(super) client: Arc<Client>,
    pub(super) config: Config,
    pub(super) clock: SharedClock,
    pub(super) workload: watch::Receiver<Arc<Workload>>,
    pub(super) state: watch::Sender<RegistrationState>,
    pub(super) standing: watch::Sender<Option<Standing>>,
    running: watch::Sender<bool>,
}

/// An entry that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it shows.
    pub workload: Arc<Workload>,
    /// Which entry it is: one that was deleted and made anew is another one, without istiod's notes
    /// on the one before.
    pub uid: Option<String>,
}

/// How the entry is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose entry it is.
    pub machine: Machine,
    /// Whether fields that others own are taken over.
    pub force: bool,
    /// After which absence another machine has lost its name to us.
    pub take_over_after: Duration,
    /// Where the applied entry is kept for an agent that starts while the API server is away.
    pub record: Option<PathBuf>,
}

/// Why the entry is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The API server refused, or could not be reached.
    #[error("the WorkloadEntry could not be applied")]
    Kube(#[from] KubeError),
    /// Others own some of its fields.
    #[error("somebody else holds fields of WorkloadEntry {entry}: {}", listed(fields))]
    Contested {
        /// Namespace and name.
        entry: String,
        /// The fields and their owners.
        fields: Vec<FieldConflict>,
    },
    /// Another machine has its name.
    #[error("WorkloadEntry {entry} belongs to another machine, at {address}, which {how}")]
    Taken {
        /// Namespace and name.
        entry: String,
        /// The other machine's address.
        address: String,
        /// How we know that it is there.
        how: String,
        /// What would remove the entry.
        removal: String,
    },
    /// The entry of that name has another service account, and policy keeps it.
    #[error(
        "WorkloadEntry {entry} belongs to service account {theirs}, and this machine would be {ours}"
    )]
    OtherAccount {
        /// Namespace and name.
        entry: String,
        /// The service account in the entry.
        theirs: String,
        /// The service account of this workload.
        ours: String,
        /// Whether this machine itself made the entry, as a workload of the other account.
        is_own: bool,
        /// The refusal.
        #[source]
        source: KubeError,
    },
    /// Another machine has the same machine ID, and the entry.
    #[error(
        "another machine with this machine's ID, at {address}, holds WorkloadEntry {entry}: this one, \
         at {own}, does not register"
    )]
    Duplicate {
        /// Namespace and name.
        entry: String,
        /// The other machine's address.
        address: String,
        /// This machine's.
        own: String,
    },
    /// Another machine has the same machine ID, and asks for our entry.
    #[error(
        "another machine with this machine's ID, at {address}, asks for WorkloadEntry {entry}: it is \
         refused, as this one, at {own}, holds it"
    )]
    Rival {
        /// Namespace and name.
        entry: String,
        /// The other machine's address.
        address: String,
        /// This machine's.
        own: String,
    },
}

impl RegisterError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Kube(error) => error.retry(),
            Self::Contested { .. }
            | Self::Duplicate { .. }
            | Self::OtherAccount { .. }
            | Self::Rival { .. }
            | Self::Taken { .. } => Retry::Later,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kube(error) => error.hint(),
            Self::Contested { .. } => Some(
                "have them let go of it, or take it over with --set registration.force=true"
                    .to_owned(),
            ),
            Self::OtherAccount { is_own: true, theirs, .. } => Some(format!(
                "this machine registered it as service account {theirs}: run `vm-agent leave` \
                 first, with the configuration of that account"
            )),
            Self::OtherAccount { is_own: false, .. } => Some(
                "give this machine another name with --name, or have the owner of the entry delete it"
                    .to_owned(),
            ),
            Self::Duplicate { .. } | Self::Rival { .. } => Some(DUPLICATE_HINT.to_owned()),
            Self::Taken { removal, .. } => Some(format!(
                "give this machine another name with --name, or remove the entry if that machine \
                 is gone: `{removal}`"
            )),
        }
    }
}

impl Direct {
    /// A hand on this workload's entry, which follows the workload's changes.
    #[must_use]
    pub fn new(
        client: Arc<Client>,
        workload: watch::Receiver<Arc<Workload>>,
        config: Config,
        clock: SharedClock,
    ) -> Self {
        let Object { namespace, name, .. } = object(&workload.borrow());
        let mut state = RegistrationState::new(Mode::Kubernetes, namespace, name);
        state.manager = Some(config.machine.field_manager());
        let (state, standing) = (watch::Sender::new(state), watch::Sender::new(None));
        let running = watch::Sender::new(false);
        Self { client, config, clock, workload, state, standing, running }
    }

    /// The registration, whenever it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.subscribe()
    }

    /// The entry that stands; `None` while there is none of ours.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Option<Standing>> {
        self.standing.subscribe()
    }

    /// Applies the entry, and whenever it is not as it should be, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        self.running.send_replace(true);
        // A task that is dropped has ended, too.
        let _running = Running(&self.running);
        Course::new(self).run(&stop).await;
    }

    /// Waits until [`Self::run`] has ended.
    pub async fn ended(&self) {
        // The sender lives as long as `self`.
        drop(self.running.subscribe().wait_for(|running| !running).await);
    }

    /// Removes the entry, if it is ours: exactly the version that was looked at, so that an entry
    /// that another machine has taken over in between stays. [`Self::run`] must have ended, or it
    /// would make the entry anew.
    ///
    /// # Errors
    /// When it is somebody else's, or the API server refuses.
    pub async fn remove(&self) -> Result<(), RemoveError> {
        let object = object(&self.workload.borrow());
        self.forget();
        removal::remove(&self.client, &object, &self.config.machine).await
    }

    /// The kept entry, if it is the one that is wanted now.
    pub(super) fn recalled(&self) -> Option<Record> {
        let workload = self.workload.borrow().clone();
        let Object { namespace, name, .. } = object(&workload);
        let wanted = entry(&workload, &self.config.machine);
        Record::read(self.config.record.as_ref()?)
            .filter(|record| record.is_of(&namespace, &name, &wanted))
    }

    /// Keeps the entry that has been applied, unless it is kept already.
    pub(super) fn keep(&self, workload: &Workload, uid: Option<String>) {
        let Some(path) = &self.config.record else { return };
        let Object { namespace, name, .. } = object(workload);
        let wanted = entry(workload, &self.config.machine);
        let record = Record::of(&namespace, &name, wanted, uid);
        if Record::read(path).as_ref() == Some(&record) {
            return;
        }
        if let Err(error) = record.write(path) {
            tracing::warn!(error = chain(&error), "Cannot keep the registration for a restart");
        }
    }

    /// Goes on with the entry of the last run: the API server does not answer.
    pub(super) fn assume(&self, workload: Arc<Workload>, uid: Option<String>) {
        if self.state.borrow().registered {
            return;
        }
        tracing::warn!(
            entry = workload.name,
            "The Kubernetes API does not answer: continuing with the WorkloadEntry of the last run"
        );
        self.standing.send_replace(Some(Standing { workload, uid }));
        self.state.send_modify(|state| state.assume(self.clock.now()));
    }

    /// Nothing is registered any more.
    pub(super) fn forget(&self) {
        let Some(path) = &self.config.record else { return };
        if let Err(error) = fsio::remove(path) {
            tracing::warn!(error = chain(&error), "Cannot remove the record of the registration");
        }
    }
}

/// The time of a reconciler; its end is said when this is dropped.
struct Running<'a>(&'a watch::Sender<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// Whether a conflict is with the agent of another machine.
pub(super) fn is_with_machine(conflict: &FieldConflict) -> bool {
    conflict.field == MACHINE_FIELD || is_agent(&conflict.manager)
}

fn listed(fields: &[FieldConflict]) -> String {
    let one = |conflict: &FieldConflict| format!("{} ({})", conflict.field, conflict.manager);
    fields.iter().map(one).collect::<Vec<_>>().join(", ")
}

const DUPLICATE_HINT: &str = "the machines are copies of one disk: on one of them remove \
                              /etc/machine-id, run `systemd-machine-id-setup`, and restart vm-agent";
/// The field in which two machines of one name meet.
const MACHINE_FIELD: &str = ".metadata.annotations.vm-agent.io/machine";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_which_field_is_said_and_what_to_do() {
        let conflict = |field: &str, manager: &str| FieldConflict {
            field: field.to_owned(),
            manager: manager.to_owned(),
        };
        let fields =
            vec![conflict(".spec.weight", "kubectl-edit"), conflict(".spec.address", "helm")];
        assert!(!fields.iter().any(is_with_machine));
        assert!(is_with_machine(&conflict(MACHINE_FIELD, "kubectl")));
        assert!(is_with_machine(&conflict(".spec.address", "vm-agent-0123456789ab")));
        let error = RegisterError::Contested { entry: "vms/vm1".to_owned(), fields };
        assert_eq!(
            error.to_string(),
            "somebody else holds fields of WorkloadEntry vms/vm1: .spec.weight (kubectl-edit), \
             .spec.address (helm)"
        );
        assert!(error.hint().unwrap().contains("registration.force=true"));
        assert_eq!(error.retry(), Retry::Later);
    }
}
