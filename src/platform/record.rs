//! What the cloud said last, kept for the next start.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::Cloud;
use crate::base::fsio::{self, FileError};

/// Facts about the cloud that were learned before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// The machine that they are true of.
    pub machine: String,
    /// When they were learned, in seconds since the Unix epoch.
    pub learned_at: u64,
    /// The tags that were asked for.
    pub asked: BTreeSet<String>,
    /// The facts.
    pub cloud: Cloud,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("facts cannot be kept")]
    File(#[from] FileError),
    /// It is no record.
    #[error("{} holds no facts", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl Record {
    /// What was learned of this machine; `None` when there is nothing, or it is another machine's,
    /// whose disk was copied.
    ///
    /// # Errors
    /// When the file cannot be read or is no record.
    pub fn read(path: &Path, machine: &str) -> Result<Option<Self>, RecordError> {
        let bytes = match fsio::read(path, BYTES) {
            Err(error) if error.is_missing() => return Ok(None),
            read => read?,
        };
        let wrong = |source| RecordError::Form { path: path.to_owned(), source };
        let record: Self = serde_json::from_slice(&bytes).map_err(wrong)?;
        Ok((record.machine == machine).then_some(record))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let wrong = |source| RecordError::Form { path: path.to_owned(), source };
        let bytes = serde_json::to_vec(self).map_err(wrong)?;
        Ok(fsio::replace(path, &bytes, fsio::SECRET)?)
    }
}

/// All tags at their longest.
const BYTES: u64 = 1 << 18;
