//! A WorkloadGroup (istio/api `networking/v1alpha3/workload_group.proto`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Manifest, OperatorError};
use crate::kube::Object;
use crate::workload::is_subdomain;

/// What a WorkloadGroup says of its machines.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The machines' service account.
    pub service_account: String,
    /// The template of their WorkloadEntries.
    pub(super) template: Value,
    /// Their labels; those of the template win.
    pub(super) labels: BTreeMap<String, String>,
    /// How the application is probed.
    pub(super) probe: Option<Value>,
    /// Annotations with parts of Istio's ProxyConfig, in YAML, the later winning.
    pub(super) proxy_configs: Vec<String>,
    /// The whole, as it is applied.
    body: Value,
}

impl Group {
    /// Reads one; without a namespace of its own it is in `namespace`.
    ///
    /// # Errors
    /// When it is something else, or lacks a name.
    pub fn from_value(value: &Value, namespace: &str) -> Result<Self, OperatorError> {
        let wrong = |why: &str| OperatorError::Group { why: why.to_owned() };
        let text =
            |at: &str| value.pointer(at).and_then(Value::as_str).filter(|text| !text.is_empty());
        let version = text("/apiVersion").unwrap_or_default();
        if text("/kind") != Some("WorkloadGroup") || !version.starts_with("networking.istio.io/") {
            return Err(wrong("expected kind WorkloadGroup of networking.istio.io"));
        }
        let name = text("/metadata/name").ok_or_else(|| wrong("it has no metadata.name"))?;
        let namespace = text("/metadata/namespace").unwrap_or(namespace);
        let account = text("/spec/template/serviceAccount").unwrap_or("default");
        for name in [name, namespace, account] {
            if !is_subdomain(name) {
                return Err(wrong(&format!("{name:?} is no name of Kubernetes")));
            }
        }
        let at = |at: &str| value.pointer(at);
        let mut labels = texts(at("/spec/metadata/labels"))?;
        labels.extend(texts(at("/spec/template/labels"))?);
        let annotations = ["/metadata/annotations", "/spec/metadata/annotations"];
        let proxy_config =
            |at: &str| value.pointer(at)?.get("proxy.istio.io/config")?.as_str().map(str::to_owned);
        Ok(Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            template: at("/spec/template").cloned().unwrap_or_else(|| json!({})),
            labels,
            probe: at("/spec/probe").filter(|probe| probe.is_object()).cloned(),
            proxy_configs: annotations.into_iter().filter_map(proxy_config).collect(),
            body: value.clone(),
        })
    }

    /// The labels of its machines, with those by which Istio names workloads.
    pub(super) fn machine_labels(&self) -> BTreeMap<String, String> {
        let first = |keys: &[&str], usual: &str| {
            let found = keys.iter().find_map(|key| self.labels.get(*key));
            found.map_or_else(|| usual.to_owned(), Clone::clone)
        };
        let names = [CANONICAL_NAME, "app.kubernetes.io/name", "app"];
        let revisions = [CANONICAL_REVISION, "app.kubernetes.io/version", "version"];
        let mut labels = self.labels.clone();
        labels.insert(CANONICAL_NAME.to_owned(), first(&names, &self.name));
        labels.insert(CANONICAL_REVISION.to_owned(), first(&revisions, "latest"));
        labels
    }

    /// The group itself, to be applied.
    #[must_use]
    pub fn manifest(&self) -> Manifest {
        let mut body = self.body.clone();
        // What a server added is not ours to say.
        if let Some(object) = body.as_object_mut() {
            object.remove("status");
        }
        if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".to_owned(), json!(self.namespace));
            for field in
                ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"]
            {
                metadata.remove(field);
            }
        }
        let object = object(&self.namespace, &self.name);
        // The path says `v1`, whatever version the file was written in.
        if let Some(version) = body.get_mut("apiVersion") {
            *version = json!(object.group_version);
        }
        Manifest { object, body, only_if_missing: false }
    }
}

pub(super) fn object(namespace: &str, name: &str) -> Object {
    Object {
        group_version: "networking.istio.io/v1",
        resource: "workloadgroups",
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn texts(value: Option<&Value>) -> Result<BTreeMap<String, String>, OperatorError> {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    let pair = |(key, value): (&String, &Value)| match value.as_str() {
        Some(text) => Ok((key.clone(), text.to_owned())),
        None => {
            let why = format!("its label {key:?} is {value}, expected a text (in quotes)");
            Err(OperatorError::Group { why })
        }
    };
    pairs.map(pair).collect()
}

pub(super) const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
pub(super) const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_says_who_its_machines_are() {
        let value = json!({
            "apiVersion": "networking.istio.io/v1beta1", "kind": "WorkloadGroup",
            "metadata": {"name": "details", "annotations": {"proxy.istio.io/config": "concurrency: 1"}, "uid": "x"},
            "spec": {"metadata": {"labels": {"app": "details", "a": "1"}},
                     "template": {"serviceAccount": "d", "labels": {"a": "2"}}, "probe": {"tcpSocket": {"port": 1}}},
        });
        let group = Group::from_value(&value, "vms").unwrap();
        assert_eq!((group.namespace.as_str(), group.service_account.as_str()), ("vms", "d"));
        assert_eq!(
            group.labels,
            [("app", "details"), ("a", "2")].map(|(k, v)| (k.into(), v.into())).into()
        );
        assert_eq!(group.proxy_configs, ["concurrency: 1"]);
        let applied = group.manifest().body;
        assert_eq!(
            (&applied["apiVersion"], &applied["metadata"]["namespace"]),
            (&json!("networking.istio.io/v1"), &json!("vms"))
        );
        assert_eq!(applied["metadata"].get("uid"), None);
    }

    #[test]
    fn what_is_no_group_is_said() {
        let of = |value: Value| Group::from_value(&value, "vms").unwrap_err().to_string();
        assert!(
            of(json!({"kind": "Pod", "apiVersion": "v1"})).contains("expected kind WorkloadGroup")
        );
        let head = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup"});
        assert!(of(head.clone()).contains("no metadata.name"));
        let mut odd = head;
        odd["metadata"] = json!({"name": "x' || true || '"});
        assert!(of(odd.clone()).contains("no name of Kubernetes"));
        odd["metadata"] = json!({"name": "x"});
        odd["spec"] = json!({"metadata": {"labels": {"version": 1}}});
        assert!(of(odd).contains("expected a text"));
    }
}
