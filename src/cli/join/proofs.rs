//! What would be refused later, found out beforehand: nothing that serves is given up for it.

use std::sync::Arc;

use crate::agent::{Plan, prove_identity, prove_registration};
use crate::base::backoff::Retry;
use crate::base::clock::{SharedClock, rfc3339};
use crate::base::trouble::chain;
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::kube::Client;

/// What is proved, and for whom.
pub(super) struct Proofs<'a> {
    pub(super) plan: &'a Plan,
    pub(super) kube: Option<&'a Arc<Client>>,
    pub(super) clock: &'a SharedClock,
    /// Whether the machine is in a mesh and serves.
    pub(super) serves: bool,
}

impl Proofs<'_> {
    /// That the WorkloadEntry would be accepted, with its policies and other owners.
    pub(super) async fn registration(&self, progress: &Progress) -> Result<(), Failure> {
        let Err(error) = prove_registration(self.plan, self.kube, self.clock).await else {
            return Ok(());
        };
        if error.retry() == Retry::Soon && !self.serves {
            progress.warn(&format!("{} (it is tried again)", chain(&error)), None);
            return Ok(());
        }
        let hint = error.hint();
        Err(Failure::new(Exit::Registration, error).hint(hint))
    }

    /// That the identity is issued. A machine that does not serve finds that out itself: it has
    /// nothing to lose by it.
    pub(super) async fn identity(&self, progress: &Progress) -> Result<(), Failure> {
        if !self.serves {
            return Ok(());
        }
        match prove_identity(self.plan, self.kube, self.clock).await {
            Ok(None) => Ok(()),
            Ok(Some(end)) => {
                let id = &self.plan.secrets.id;
                progress.note("identity", &format!("{id} is issued, until {}", rfc3339(end)));
                Ok(())
            }
            Err(error) => {
                let exit =
                    if error.is_of_credential() { Exit::Credential } else { Exit::ControlPlane };
                let hint = error.hint();
                Err(Failure::new(exit, error).hint(hint))
            }
        }
    }
}
