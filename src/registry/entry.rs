//! The WorkloadEntry that we want (istio/api `networking/v1alpha3/workload_entry.proto`).

use serde_json::{Map, Value, json};

use super::machine::{MACHINE, Machine};
use crate::kube::Object;
use crate::workload::Workload;

/// The value of the label `app.kubernetes.io/managed-by`.
pub const MANAGED_BY: &str = "vm-agent";

/// The object's place.
#[must_use]
pub fn object(workload: &Workload) -> Object {
    place(workload.id.namespace().as_str(), &workload.name)
}

/// The place of the entry of this name.
#[must_use]
pub fn place(namespace: &str, name: &str) -> Object {
    Object {
        group_version: "networking.istio.io/v1",
        resource: "workloadentries",
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// The object, with every field that is ours and no other.
#[must_use]
pub fn entry(workload: &Workload, machine: &Machine) -> Value {
    let mut spec = Map::new();
    spec.insert("address".to_owned(), json!(workload.address.to_string()));
    spec.insert("serviceAccount".to_owned(), json!(workload.id.service_account().as_str()));
    if !workload.labels.is_empty() {
        spec.insert("labels".to_owned(), json!(workload.labels));
    }
    if !workload.ports.is_empty() {
        spec.insert("ports".to_owned(), json!(workload.ports));
    }
    if !workload.network.is_empty() {
        spec.insert("network".to_owned(), json!(workload.network));
    }
    if let Some(locality) = &workload.locality {
        spec.insert("locality".to_owned(), json!(locality.to_string()));
    }
    if let Some(weight) = workload.weight {
        spec.insert("weight".to_owned(), json!(weight));
    }
    let mut labels = workload.labels.clone();
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": workload.name,
            "namespace": workload.id.namespace().as_str(),
            "labels": labels,
            // Its health is reported: without a good report it is no endpoint.
            "annotations": {
                MACHINE: machine.hash(),
                "proxy.istio.io/health-checks-enabled": "true",
            },
        },
        "spec": spec,
    })
}

/// Kubernetes' recommended label for the tool that keeps an object.
pub(super) const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::identity::SpiffeId;

    pub(in crate::registry) fn workload() -> Workload {
        Workload {
            name: "vm1".to_owned(),
            id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
            group: None,
            address: "10.0.0.1".parse().unwrap(),
            instance_ips: vec![],
            labels: [("app".to_owned(), "client".to_owned())].into(),
            ports: [("http".to_owned(), 9080)].into(),
            network: "n1".to_owned(),
            locality: Some("eu/a".parse().unwrap()),
            weight: Some(7),
        }
    }

    #[test]
    fn every_field_that_was_asked_for_is_there_and_no_other() {
        let (mut workload, machine) = (workload(), Machine::of("id"));
        let spec = json!({"address": "10.0.0.1", "serviceAccount": "client", "labels": {"app": "client"},
            "ports": {"http": 9080}, "network": "n1", "locality": "eu/a", "weight": 7});
        let full = entry(&workload, &machine);
        assert_eq!(full["spec"], spec);
        assert_eq!(full["metadata"]["annotations"][MACHINE], machine.hash());
        workload.labels.clear();
        workload.ports.clear();
        workload.network.clear();
        (workload.locality, workload.weight) = (None, None);
        let least = json!({"address": "10.0.0.1", "serviceAccount": "client"});
        assert_eq!(entry(&workload, &machine)["spec"], least);
    }
}
