//! Our own hand on the WorkloadEntry, through the Kubernetes API.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{FIELD_MANAGER, Mode, RegistrationState, entry, object};
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock::SharedClock;
use crate::base::trouble::Trouble;
use crate::kube::{Client, KubeError, Object};
use crate::workload::Workload;

/// Applies the entry and keeps it applied.
pub struct Direct {
    client: Arc<Client>,
    object: Object,
    body: Value,
    force: bool,
    clock: SharedClock,
    state: watch::Sender<RegistrationState>,
}

/// An entry that was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It is somebody else's.
    #[error("WorkloadEntry {namespace}/{name} was not made by vm-agent and stays")]
    NotOurs {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The API server refused, or could not be reached.
    #[error("cannot remove the WorkloadEntry")]
    Kube(#[from] KubeError),
}

impl Direct {
    /// A hand on this workload's entry. With `force`, fields that others own are taken over.
    #[must_use]
    pub fn new(client: Arc<Client>, workload: &Workload, force: bool, clock: SharedClock) -> Self {
        let object = object(workload);
        let state =
            RegistrationState::new(Mode::Kubernetes, object.namespace.clone(), object.name.clone());
        Self {
            client,
            object,
            body: entry(workload),
            force,
            clock,
            state: watch::Sender::new(state),
        }
    }

    /// The registration, whenever it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.subscribe()
    }

    /// Applies the entry until it stands, and again from time to time, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let forever = async {
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            loop {
                let pause = match self.apply().await {
                    Ok(()) => {
                        backoff.reset();
                        AGAIN
                    }
                    Err(error) => backoff.delay_for(error.retry()),
                };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = forever => {}
            () = stop.cancelled() => {}
        }
    }

    /// Removes the entry, if it is ours.
    ///
    /// # Errors
    /// When it is somebody else's, or the API server refuses.
    pub async fn remove(&self) -> Result<(), RemoveError> {
        let found = match self.client.get(&self.object).await {
            Err(error) if error.code() == Some(404) => return Ok(()),
            found => found?,
        };
        if !is_ours(&found) {
            let Object { namespace, name, .. } = self.object.clone();
            return Err(RemoveError::NotOurs { namespace, name });
        }
        self.client.delete(&self.object, None).await?;
        tracing::info!(entry = self.object.name, "Removed the WorkloadEntry.");
        Ok(())
    }

    async fn apply(&self) -> Result<(), KubeError> {
        let applied = self.client.apply(&self.object, &self.body, FIELD_MANAGER, self.force).await;
        let now = self.clock.now();
        match applied {
            Ok(_) => {
                if !self.state.borrow().registered {
                    tracing::info!(entry = self.object.name, "The WorkloadEntry stands.");
                }
                self.state.send_modify(|state| state.stands(now));
                Ok(())
            }
            Err(error) => {
                let trouble = Trouble::new(&error, error.hint(), error.retry(), now);
                tracing::warn!(%trouble, "The WorkloadEntry could not be applied.");
                let alarming = error.retry() != Retry::Soon || !self.state.borrow().registered;
                self.state.send_modify(|state| {
                    if alarming {
                        state.failed(trouble);
                    }
                });
                Err(error)
            }
        }
    }
}

/// Whether our field manager is among those that made it.
fn is_ours(found: &Value) -> bool {
    let managers = found.pointer("/metadata/managedFields").and_then(Value::as_array);
    managers.is_some_and(|managers| {
        managers.iter().any(|one| one.get("manager").and_then(Value::as_str) == Some(FIELD_MANAGER))
    })
}

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An entry that somebody deleted is back after this time.
const AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_our_field_manager_made_is_ours() {
        let by = |name: &str| json!({"metadata": {"managedFields": [{"manager": name}]}});
        assert!(is_ours(&by("vm-agent")));
        assert!(!is_ours(&by("pilot-discovery")) && !is_ours(&json!({})));
    }
}
