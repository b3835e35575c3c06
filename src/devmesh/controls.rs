//! What a test or a demonstration does to a mesh that runs, and what it looks at: roots, objects
//! and rights, certificate requests, pushes, faults, the picture.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch::Receiver;

use super::csr::{self, Approval};
use super::faults::{Fault, Faults, Service};
use super::kind::Resource;
use super::picture::{self, Changes, Picture};
use super::seen::Witness;
use super::store::Objects;
use super::token::Account;
use super::{Mesh, MeshError, lock, registration};
use crate::proto::nds::NameInfo;

impl Mesh {
    /// From now on a new root signs certificates. The old ones are still trusted, and the servers
    /// still show certificates of the old one.
    ///
    /// # Errors
    /// When the root cannot be made.
    pub fn rotate_root(&self) -> Result<(), MeshError> {
        self.servers.introduce()?;
        self.servers.promote()
    }

    /// Only the newest root is left; the servers show certificates of it. New connections with
    /// older client certificates fail.
    ///
    /// # Errors
    /// When the servers' certificates cannot be made.
    pub fn retire_old_roots(&self) -> Result<(), MeshError> {
        lock(&self.state.authorities).retire();
        self.servers.renew()
    }

    /// Refuses the account's tokens from now on, as when it is deleted.
    pub fn delete_service_account(&self, namespace: &str, account: &str) {
        self.state.tokens.delete(Account::new(namespace, account));
    }

    /// The Kubernetes objects, past all permissions.
    #[must_use]
    pub fn objects(&self) -> Objects {
        self.state.objects.clone()
    }

    /// Adds a namespace. A mesh without any takes objects of every namespace.
    pub fn add_namespace(&self, name: &str) {
        if self.state.objects.get(Resource::Namespaces, "", name).is_none() {
            self.state.objects.put(Resource::Namespaces, "", name, json!({}));
            self.state.found(name);
        }
    }

    /// Adds a WorkloadGroup, `namespace/name`, whose template's service account has the group's
    /// name. Others are put with [`Objects::put`].
    pub fn add_group(&self, group: &str) {
        let (namespace, name) = group.split_once('/').unwrap_or(("default", group));
        let template = json!({"serviceAccount": name});
        let object = json!({"spec": {"template": template}});
        self.state.objects.put(Resource::WorkloadGroups, namespace, name, object);
    }

    /// Lets a service account read and write WorkloadEntries of its namespace, and make tokens for
    /// itself.
    pub fn grant(&self, namespace: &str, account: &str) {
        let verbs = ["get", "list", "watch", "create", "update", "patch", "delete"];
        self.grant_verbs(namespace, account, &verbs, Resource::WorkloadEntries.plural());
        let own = format!("serviceaccounts/token {account}");
        self.grant_verbs(namespace, account, &["create"], &own);
    }

    /// Lets a service account do this with a resource of its namespace, such as `create` with
    /// `serviceaccounts/token`.
    pub fn grant_verbs(&self, namespace: &str, account: &str, verbs: &[&str], resource: &str) {
        self.state.permissions.grant(&Account::new(namespace, account), verbs, resource);
    }

    /// Lets a service account make, follow and delete certificate requests.
    pub fn grant_requests(&self, namespace: &str, account: &str) {
        let (account, verbs) =
            (Account::new(namespace, account), ["create", "get", "watch", "delete"]);
        self.state.permissions.grant_cluster(&account, &verbs, "certificatesigningrequests");
    }

    /// What becomes of new certificate requests.
    pub fn set_approval(&self, approval: Approval) {
        self.state.requests.set_approval(approval);
    }

    /// The certificate requests, by name, and all changes.
    #[must_use]
    pub fn requests(&self) -> Receiver<BTreeMap<String, Value>> {
        self.state.requests.names()
    }

    /// Approves and signs a certificate request; false when it is none.
    pub fn approve_request(&self, name: &str) -> bool {
        csr::approve(&self.state, name)
    }

    /// A WorkloadEntry, `namespace/name`.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<Value> {
        let (namespace, name) = key.split_once('/')?;
        self.state.objects.get(Resource::WorkloadEntries, namespace, name)
    }

    /// Removes the entries of machines that have been disconnected for the grace time or longer;
    /// tells how many.
    pub fn sweep(&self, grace: Duration) -> usize {
        registration::sweep(&self.state, grace)
    }

    /// Sends everything again to every proxy, with a new version.
    pub fn push(&self) {
        self.state.pushes.send_modify(|count| *count += 1);
    }

    /// Replaces the name table and pushes.
    pub fn set_names(&self, names: BTreeMap<String, NameInfo>) {
        *lock(&self.state.names) = names;
        self.push();
    }

    /// The switches of what goes wrong.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.state.faults.clone()
    }

    /// Lets something go wrong with certificates from now on.
    pub fn set_fault(&self, fault: Fault) {
        self.state.faults.set(Service::Ca, fault);
    }

    /// The mesh as it is now, to be shown.
    #[must_use]
    pub fn picture(&self) -> Picture {
        picture::make(&self.state)
    }

    /// Wakes whenever the picture changes.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::of(&self.state)
    }

    /// What has been seen, to look at and to wait for.
    #[must_use]
    pub fn seen(&self) -> Witness {
        Witness::new(self.state.seen.subscribe())
    }
}
