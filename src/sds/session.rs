//! One stream's memory: what it subscribed to, and which version of each it was sent.

use std::collections::{BTreeMap, BTreeSet};

use super::files::Table;
use super::name::SecretName;
use super::source::Versioned;
use crate::identity::IssuedIdentity;

/// What one stream wants and has.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Name to the version last sent; `None` until it was.
    wanted: BTreeMap<String, Option<String>>,
}

impl Session {
    /// Adds names. One that is asked for again is sent again.
    pub(super) fn subscribe(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            if self.wanted.len() < NAMES || self.wanted.contains_key(&name) {
                self.wanted.insert(name, None);
            } else {
                tracing::warn!(name, "A stream asks for more secrets than any proxy needs.");
            }
        }
    }

    /// Drops names.
    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            self.wanted.remove(name);
        }
    }

    /// Makes the subscription exactly these names; those that it had already are not sent again.
    pub(super) fn replace(&mut self, names: Vec<String>) {
        self.wanted.retain(|name, _| names.contains(name));
        let added: Vec<String> =
            names.into_iter().filter(|name| !self.wanted.contains_key(name)).collect();
        self.subscribe(added);
    }

    /// The names that nobody knows; they are forgotten.
    pub(super) fn take_unknown(&mut self) -> Vec<String> {
        let unknown: Vec<String> =
            self.wanted.keys().filter(|name| SecretName::parse(name).is_none()).cloned().collect();
        self.unsubscribe(&unknown);
        unknown
    }

    /// The names of its file secrets.
    pub(super) fn files(&self) -> BTreeSet<String> {
        let is_file = |name: &&String| SecretName::parse(name).is_some_and(|name| name.is_file());
        self.wanted.keys().filter(is_file).cloned().collect()
    }

    /// What has to be sent now; it counts as sent.
    pub(super) fn due(
        &mut self,
        identity: Option<&IssuedIdentity>,
        files: &Table,
    ) -> Vec<Versioned> {
        let mut due = Vec::new();
        for (name, sent) in &mut self.wanted {
            let fresh = match SecretName::parse(name) {
                Some(SecretName::Workload) => identity.map(|one| Versioned::workload(name, one)),
                Some(SecretName::Roots) => {
                    identity.map(|one| Versioned::roots(name, one.roots().pem().as_bytes()))
                }
                Some(_) => files.get(name).and_then(|found| found.secret.clone()),
                None => None,
            };
            if let Some(fresh) = fresh.filter(|fresh| Some(&fresh.version) != sent.as_ref()) {
                *sent = Some(fresh.version.clone());
                due.push(fresh);
            }
        }
        due
    }
}

/// A sidecar needs two; a gateway one per listener's files.
const NAMES: usize = 256;
