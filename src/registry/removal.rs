//! Taking this machine's entry away, whatever else of the machine is left.

use serde_json::Value;

use super::machine::Machine;
use super::{rival, tenant};
use crate::kube::{Client, KubeError, Object, Version};

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

/// Deletes the machine's entry: exactly the one that was found to be its own, as another machine may
/// take over the name between the look and the call.
///
/// # Errors
/// When it is somebody else's, or the API server refuses.
pub async fn remove(
    client: &Client,
    object: &Object,
    machine: &Machine,
) -> Result<(), RemoveError> {
    let mut tries = TRIES;
    loop {
        let found = match client.get(object).await {
            Err(error) if error.code() == Some(404) => return Ok(()),
            found => found?,
        };
        if !is_of(&found, machine) {
            let Object { namespace, name, .. } = object.clone();
            return Err(RemoveError::NotOurs { namespace, name });
        }
        let deleted = match Version::of(&found) {
            Some(version) => client.delete_only(object, &version).await,
            None => client.delete(object).await,
        };
        tries = tries.saturating_sub(1);
        match deleted {
            // It has changed since: istiod writes its health.
            Err(error) if error.code() == Some(409) && tries > 0 => {}
            Err(error) => return Err(error.into()),
            Ok(()) => {
                tracing::info!(entry = object.name, "Removed the WorkloadEntry.");
                return Ok(());
            }
        }
    }
}

/// Whether this machine's agent made an entry: it bears its mark, or, where somebody took the mark
/// away, its fields.
pub(super) fn is_of(found: &Value, machine: &Machine) -> bool {
    if let Some(marked) = tenant::machine(found) {
        return marked == machine.hash() && !rival::is_rivals(found, machine);
    }
    let own = machine.field_manager();
    let managers = found.pointer("/metadata/managedFields").and_then(Value::as_array);
    managers
        .into_iter()
        .flatten()
        .any(|one| one.get("manager").and_then(Value::as_str) == Some(own.as_str()))
}

/// istiod's notes on an entry come a few times a second at most.
const TRIES: u32 = 10;
