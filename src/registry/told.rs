//! What istiod made our entry from, in the mode `istiod`. It never changes an entry for a machine
//! that says something else of itself later (Istio `pilot/pkg/autoregistration/controller.go`): the
//! old entry has to go first.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{object, tenant};
use crate::base::fsio::{self, FileError};
use crate::kube::{Client, KubeError, Object, Version};
use crate::workload::Workload;

/// What istiod was told when it made the entry. It is kept on disk: settings may change while the
/// agent is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// The entry's name, which address, group and network are part of.
    name: String,
    labels: BTreeMap<String, String>,
    locality: Option<String>,
}

impl Told {
    /// What is told of this workload, whose entry has this name.
    #[must_use]
    pub fn of(workload: &Workload, name: &str) -> Self {
        let locality = workload.locality.as_ref().map(ToString::to_string);
        Self { name: name.to_owned(), labels: workload.labels.clone(), locality }
    }

    /// What was told last; `None` when nothing is known of it.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fsio::read(path, FILE_BYTES).ok()?).ok()
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        fsio::replace(path, &serde_json::to_vec(self).unwrap_or_default(), fsio::SECRET)
    }

    /// The entry's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether istiod would go on using the entry of these claims for those.
    #[must_use]
    pub fn hides(&self, new: &Self) -> bool {
        self.name == new.name && self != new
    }

    /// Removes the entry that istiod made from it, through the Kubernetes API; one that is not
    /// there, or is not istiod's, stays as it is.
    ///
    /// # Errors
    /// When the API server cannot be reached or refuses.
    pub async fn forget(&self, client: &Client, workload: &Workload) -> Result<(), KubeError> {
        let object = Object { name: self.name.clone(), ..object(workload) };
        let found = match client.get(&object).await {
            Err(error) if error.code() == Some(404) => return Ok(()),
            found => found?,
        };
        let group = workload.group.as_deref();
        if group.is_none() || tenant::group(&found) != group {
            return Ok(());
        }
        match Version::of(&found) {
            Some(version) => client.delete_only(&object, &version).await,
            None => Ok(()),
        }
    }
}

/// Labels are bounded.
const FILE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::entry::tests::workload;

    #[test]
    fn what_was_told_is_kept_and_what_it_hides_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registration.json");
        assert_eq!(Told::read(&path), None);
        let mut workload = workload();
        let told = Told::of(&workload, "client-10.0.0.1");
        told.write(&path).unwrap();
        assert_eq!(Told::read(&path).as_ref(), Some(&told));
        assert!(!told.hides(&told));
        workload.labels.insert("version".to_owned(), "2".to_owned());
        let relabelled = Told::of(&workload, "client-10.0.0.1");
        assert!(told.hides(&relabelled));
        assert!(!told.hides(&Told::of(&workload, "client-10.0.0.2")), "it gets its own entry");
        workload.labels.remove("version");
        workload.weight = Some(1);
        assert!(!told.hides(&Told::of(&workload, "client-10.0.0.1")), "istiod is not told of it");
        fsio::replace(&path, b"{", fsio::SECRET).unwrap();
        assert_eq!(Told::read(&path), None);
    }
}
