//! What a path of the Kubernetes API means (`apiserver/pkg/endpoints/request`).

use std::collections::BTreeMap;

use axum::http::Method;

use super::answer::Act;
use super::kind::{Resource, VERSION};
use super::watch;

/// An object, or a collection of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    /// Empty for all namespaces, and for what stands in none.
    pub(super) namespace: String,
    /// Empty for a collection.
    pub(super) name: String,
    /// Such as `status`; empty for the object itself.
    pub(super) part: String,
}

impl Target {
    /// `None` for a path that is nobody's.
    pub(super) fn read(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", VERSION, rest @ ..] => ("", rest),
            ["apis", group, VERSION, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && *rest != ["status"] => {
                (*namespace, rest)
            }
            rest => ("", rest),
        };
        let (plural, rest) = rest.split_first()?;
        let resource = Resource::find(group, plural)?;
        let (name, part) = match rest {
            [] => ("", ""),
            [name] => (*name, ""),
            [name, part] => (*name, *part),
            _ => return None,
        };
        // An object of a namespace is asked for in its namespace.
        let placed = resource.is_namespaced() || namespace.is_empty();
        let whole = !resource.is_namespaced() || !namespace.is_empty() || name.is_empty();
        (placed && whole && ["", "status"].contains(&part)).then(|| Self {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            part: part.to_owned(),
        })
    }

    /// Kubernetes' verb of a call of it.
    pub(super) fn verb(&self, method: &Method, options: &BTreeMap<String, String>) -> &'static str {
        match (method.as_str(), self.name.is_empty()) {
            ("GET", true) if watch::is_wanted(options) => "watch",
            ("GET", true) => "list",
            ("GET", false) => "get",
            ("POST", true) => "create",
            ("PUT", false) => "update",
            ("PATCH", false) => "patch",
            ("DELETE", false) => "delete",
            _ => "other",
        }
    }

    pub(super) fn act(&self, verb: &'static str) -> Act<'_> {
        Act {
            verb,
            plural: self.resource.plural(),
            group: self.resource.group(),
            namespace: &self.namespace,
            name: &self.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Option<(Resource, String, String)> {
        Target::read(path).map(|target| (target.resource, target.namespace, target.name))
    }

    #[test]
    fn paths_of_objects_and_collections_are_told_apart() {
        let at = |resource, namespace: &str, name: &str| {
            Some((resource, namespace.to_owned(), name.to_owned()))
        };
        let group = "/apis/networking.istio.io/v1";
        let entries = Resource::WorkloadEntries;
        assert_eq!(read(&format!("{group}/workloadentries")), at(entries, "", ""));
        let all = format!("{group}/namespaces/vms/workloadentries");
        assert_eq!(read(&all), at(entries, "vms", ""));
        assert_eq!(read(&format!("{all}/vm1")), at(entries, "vms", "vm1"));
        assert_eq!(read(&format!("{all}/vm1/status")), at(entries, "vms", "vm1"));
        assert_eq!(read("/api/v1/namespaces"), at(Resource::Namespaces, "", ""));
        assert_eq!(read("/api/v1/namespaces/vms"), at(Resource::Namespaces, "", "vms"));
        let secrets = "/api/v1/namespaces/vms/secrets";
        assert_eq!(read(secrets), at(Resource::Secrets, "vms", ""));
        for nobodys in [
            "/api/v1",
            "/api/v1/pods",
            "/apis/x/v1/workloadentries",
            "/api/v1/secrets/x",
            "/api/v1/namespaces/vms/namespaces/x",
            "/api/v1/namespaces/vms/secrets/x/scale",
        ] {
            assert_eq!(read(nobodys), None, "{nobodys}");
        }
    }
}
