//! What machines of a group may do in the cluster, and nothing else: a Role, and an admission policy
//! for what a Role cannot say. `packaging/kubernetes/` shows the same with comments.

use serde_json::{Value, json};

use super::{Group, Machines};
use crate::kube::Object;

/// An object that shall be so.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its place.
    pub object: Object,
    /// The fields that we say.
    pub body: Value,
    /// Whether one that exists is left as it is.
    pub only_if_missing: bool,
}

impl Manifest {
    /// What it is, for people: `Role vms/details`.
    #[must_use]
    pub fn title(&self) -> String {
        let kind = self.body.get("kind").and_then(Value::as_str).unwrap_or(self.object.resource);
        let Object { namespace, name, .. } = &self.object;
        if namespace.is_empty() {
            format!("{kind} {name}")
        } else {
            format!("{kind} {namespace}/{name}")
        }
    }
}

/// The rights of the machines of a group.
#[derive(Clone, Copy, Debug)]
pub struct Grants<'a> {
    /// The group.
    pub group: &'a Group,
    /// Other groups with the same service account, whose machines are the same user.
    pub siblings: &'a [Group],
    /// Which machines.
    pub machines: &'a Machines,
    /// Whether the tokens of bundles are bound to a Secret, and those that machines make must be.
    pub bound: bool,
}

impl Grants<'_> {
    /// Whom the machines are.
    #[must_use]
    pub fn account(&self) -> Manifest {
        let Group { namespace, service_account: name, .. } = self.group;
        let body = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        });
        Manifest {
            object: place("v1", "serviceaccounts", namespace, name),
            body,
            only_if_missing: true,
        }
    }

    /// What they may do.
    #[must_use]
    pub fn rbac(&self) -> Vec<Manifest> {
        let Group { name: group, namespace, service_account: account, .. } = self.group;
        let name = format!("vm-agent-{group}");
        let metadata = json!({"name": name, "namespace": namespace});
        let istio = "networking.istio.io";
        let role = json!({
            "apiVersion": RBAC, "kind": "Role", "metadata": metadata,
            "rules": [
                {"apiGroups": [istio], "resources": ["workloadgroups"], "resourceNames": [group], "verbs": ["get"]},
                {"apiGroups": [istio], "resources": ["workloadentries"],
                 "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
                {"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [account], "verbs": ["create"]},
                {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["istio-ca-root-cert"], "verbs": ["get"]},
            ],
        });
        let binding = json!({
            "apiVersion": RBAC, "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        });
        [("roles", role), ("rolebindings", binding)]
            .map(|(resource, body)| {
                let object = place(RBAC, resource, namespace, &name);
                Manifest { object, body, only_if_missing: false }
            })
            .into()
    }
}

pub(super) fn place(
    group_version: &'static str,
    resource: &'static str,
    namespace: &str,
    name: &str,
) -> Object {
    Object { group_version, resource, namespace: namespace.to_owned(), name: name.to_owned() }
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
#[cfg(test)]
mod tests;
