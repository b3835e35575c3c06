//! Joining: a source is read and translated, and its parts are placed on the host, all or none.

mod allowed;
mod bundle;
mod istioctl;
mod layout;
mod remains;
mod shell;

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde_json::Value;

use crate::base::problem::Problem;
use crate::identity::Roots;

pub use allowed::{Setting, leaves, outside, programs};
pub use bundle::{Bundle, BundleMetadata};
pub use istioctl::{read_directory, translate};
pub use layout::{Change, Fate, Files, Layout, What};
pub use remains::Remains;

/// What a join source says.
#[derive(Debug)]
pub struct Source {
    /// Where it lies: a directory, a file, or standard input.
    pub place: String,
    /// Settings, in the form of `config.yaml`.
    pub document: Value,
    /// Where each of them, or the section around it, stands.
    pub origins: BTreeMap<Vec<String>, String>,
    /// The mesh's roots, PEM.
    pub root_pem: Option<String>,
    /// The token for istiod.
    pub token: Option<SecretString>,
    /// The Kubernetes API, where the machine may use it.
    pub kubernetes: Option<KubernetesAccess>,
    /// What a bundle asks of the machine that joins with it.
    pub terms: Option<Terms>,
    /// What is strange, but no error.
    pub warnings: Vec<Problem>,
}

/// Whom we trust at the Kubernetes API, and who we are to it.
#[derive(Debug)]
pub struct KubernetesAccess {
    /// Its roots.
    pub roots: Roots,
    /// A service-account token.
    pub token: SecretString,
}

/// What a bundle asks of the machine that joins with it, and what it advises.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// What the machine's name must begin with; empty where any will do.
    pub name_prefix: String,
    /// The command that makes a fresh bundle; empty where it does not say.
    pub renew_with: String,
}

impl Source {
    /// Where a setting came from: `FILE:LINE` where that is known.
    #[must_use]
    pub fn origin(&self, setting: &[String]) -> String {
        let known = (1..=setting.len())
            .rev()
            .find_map(|length| self.origins.get(setting.get(..length).unwrap_or_default()));
        known.cloned().unwrap_or_else(|| self.place.clone())
    }
}
