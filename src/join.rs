//! Joining: a source is read and translated, and its parts are placed on the host, all or none.

mod istioctl;
mod layout;
mod shell;

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;
use serde_json::Value;

use crate::base::problem::Problem;

pub use istioctl::read_directory;
pub use layout::{Files, Layout, wipe};

/// What a join source says.
#[derive(Debug)]
pub struct Source {
    /// Where it lies.
    pub directory: PathBuf,
    /// Settings, in the form of `config.yaml`.
    pub document: Value,
    /// Where each of them, or the section around it, stands.
    pub origins: BTreeMap<Vec<String>, String>,
    /// The mesh's roots, PEM.
    pub root_pem: Option<String>,
    /// The token.
    pub token: Option<SecretString>,
    /// What is strange, but no error.
    pub warnings: Vec<Problem>,
}

impl Source {
    /// Where a setting came from: `FILE:LINE` where that is known. An empty path is the token.
    #[must_use]
    pub fn origin(&self, setting: &[String]) -> String {
        if setting.is_empty() {
            return self.directory.join("istio-token").display().to_string();
        }
        let known = (1..=setting.len())
            .rev()
            .find_map(|length| self.origins.get(setting.get(..length).unwrap_or_default()));
        known.cloned().unwrap_or_else(|| self.directory.display().to_string())
    }
}
