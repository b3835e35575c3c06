//! Who may do what with the Kubernetes API.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::answer::Act;
use super::lock;
use super::token::Account;

/// Who may do what: verb and resource, per user and namespace.
#[derive(Default)]
pub(super) struct Permissions {
    granted: Mutex<BTreeSet<[String; 4]>>,
}

impl Permissions {
    pub(super) fn grant(&self, account: &Account, verbs: &[&str], plural: &str) {
        let mut granted = lock(&self.granted);
        for &verb in verbs {
            let one = [&account.user(), &account.namespace, verb, plural].map(str::to_owned);
            granted.insert(one);
        }
    }

    /// For what belongs to the whole cluster.
    pub(super) fn grant_cluster(&self, account: &Account, verbs: &[&str], plural: &str) {
        for &verb in verbs {
            let one = [&account.user(), "", verb, plural].map(str::to_owned);
            lock(&self.granted).insert(one);
        }
    }

    /// Whether it is granted for all objects of the resource, or for this one by its name.
    pub(super) fn allow(&self, user: &str, act: &Act<'_>) -> bool {
        let named = format!("{} {}", act.plural, act.name);
        let granted = lock(&self.granted);
        [act.plural, &named]
            .into_iter()
            .any(|what| granted.contains(&[user, act.namespace, act.verb, what].map(str::to_owned)))
    }
}
