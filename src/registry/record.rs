//! The entry of the agent's last run, on disk: what an agent goes on with that starts while the API
//! server is away.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::fsio::{self, FileError};

/// An entry that was applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    namespace: String,
    name: String,
    /// All of its fields that are the agent's, with the machine that it belongs to.
    wanted: Value,
    pub(super) uid: Option<String>,
}

impl Record {
    pub(super) fn of(namespace: &str, name: &str, wanted: Value, uid: Option<String>) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), wanted, uid }
    }

    /// The entry that was kept; `None` where there is none, or not a readable one.
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fsio::read(path, FILE_BYTES).ok()?).ok()
    }

    /// Whether it is the entry that is wanted now.
    pub(super) fn is_of(&self, namespace: &str, name: &str, wanted: &Value) -> bool {
        self.namespace == namespace && self.name == name && self.wanted == *wanted
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        fsio::replace(path, &serde_json::to_vec(self).unwrap_or_default(), fsio::SECRET)
    }
}

/// Labels and ports are bounded.
const FILE_BYTES: u64 = 1 << 20;
