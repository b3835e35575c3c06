//! Who may do what with the Kubernetes API: by Roles and RoleBindings, and by what was granted past
//! them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde::Deserialize;

use super::answer::Act;
use super::catalog::{text, whose};
use super::kind::Resource;
use super::lock;
use super::store::Objects;
use super::token::Account;

/// Who may do what: verb and resource, per user and namespace.
#[derive(Default)]
pub(super) struct Permissions {
    granted: Mutex<BTreeSet<[String; 4]>>,
}

/// A rule of a Role.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

/// A subject of a RoleBinding.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
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

    /// Whether it is allowed for all objects of the resource, or for this one by its name.
    pub(super) fn allow(&self, objects: &Objects, user: &str, act: &Act<'_>) -> bool {
        let named = format!("{} {}", act.plural, act.name);
        let granted = [act.plural, &named].into_iter().any(|what| {
            let one = [user, act.namespace, act.verb, what].map(str::to_owned);
            lock(&self.granted).contains(&one)
        });
        granted || by_role(objects, user, act)
    }
}

fn by_role(objects: &Objects, user: &str, act: &Act<'_>) -> bool {
    if act.namespace.is_empty() {
        return false;
    }
    objects.list(Resource::RoleBindings, Some(act.namespace)).iter().any(|binding| {
        let subjects = binding.get("subjects").cloned().unwrap_or_default();
        let subjects: Vec<Subject> = serde_json::from_value(subjects).unwrap_or_default();
        let role = text(binding, "/roleRef/name");
        let bound = subjects.iter().any(|subject| subject.is(user, whose(binding).0));
        let role = objects.get(Resource::Roles, act.namespace, role).filter(|_| bound);
        let rules = role.and_then(|role| role.get("rules").cloned()).unwrap_or_default();
        let rules: Vec<Rule> = serde_json::from_value(rules).unwrap_or_default();
        rules.iter().any(|rule| rule.allows(act))
    })
}

impl Subject {
    fn is(&self, user: &str, namespace: &str) -> bool {
        let namespace = if self.namespace.is_empty() { namespace } else { self.namespace.as_str() };
        match self.kind.as_str() {
            "ServiceAccount" => Account::new(namespace, &self.name).user() == user,
            "User" => self.name == user,
            _ => false,
        }
    }
}

impl Rule {
    fn allows(&self, act: &Act<'_>) -> bool {
        let has =
            |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        has(&self.api_groups, act.group)
            && has(&self.resources, act.plural)
            && has(&self.verbs, act.verb)
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == act.name))
    }
}
