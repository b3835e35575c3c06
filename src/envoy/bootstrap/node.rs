//! Who Envoy says it is: `node`, from which istiod makes its configuration (Istio
//! `pkg/bootstrap/config.go`, `pkg/model/proxy.go`).

use serde_json::{Map, Value, json};

use super::{BootstrapInputs, Register};
use crate::workload::Workload;

pub(super) fn node(inputs: &BootstrapInputs<'_>) -> Value {
    let workload = inputs.workload;
    let namespace = workload.id.namespace();
    let ip =
        workload.instance_ips.first().map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string);
    json!({
        "id": format!("sidecar~{ip}~{}.{namespace}~{namespace}.svc.cluster.local", workload.name),
        "cluster": cluster(inputs),
        "locality": locality(workload),
        "metadata": metadata(inputs),
    })
}

/// The ProxyConfig's, or the workload's canonical name.
fn cluster(inputs: &BootstrapInputs<'_>) -> String {
    let workload = inputs.workload;
    if let Some(cluster) = &inputs.proxy.service_cluster {
        return cluster.clone();
    }
    let by_label = NAME_LABELS.iter().find_map(|label| workload.labels.get(*label));
    let by_workload = inputs.metadata.get("WORKLOAD_NAME");
    let name = by_label.or(by_workload).map_or("istio-proxy", String::as_str);
    format!("{name}.{}", workload.id.namespace())
}

fn locality(workload: &Workload) -> Value {
    let mut fields = Map::new();
    if let Some(locality) = &workload.locality {
        let parts = [
            ("region", &locality.region),
            ("zone", &locality.zone),
            ("sub_zone", &locality.sub_zone),
        ];
        for (name, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
            fields.insert(name.to_owned(), json!(value));
        }
    }
    Value::Object(fields)
}

fn metadata(inputs: &BootstrapInputs<'_>) -> Value {
    let workload = inputs.workload;
    let mut fields: Map<String, Value> =
        inputs.metadata.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let ips: Vec<String> = workload.instance_ips.iter().map(ToString::to_string).collect();
    let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    set("CLUSTER_ID", json!(inputs.cluster_id));
    set("ENVOY_PROMETHEUS_PORT", json!(super::listeners::PROMETHEUS_PORT));
    set("ENVOY_SKIP_DEPRECATED_LOGS", json!("true"));
    set("ENVOY_STATUS_PORT", json!(super::listeners::HEALTH_PORT));
    set("INSTANCE_IPS", json!(ips.join(",")));
    set("LABELS", json!(workload.labels));
    set("MESH_ID", json!(inputs.mesh_id));
    set("METADATA_DISCOVERY", json!("false"));
    set("NAME", json!(workload.name));
    set("NAMESPACE", json!(workload.id.namespace().as_str()));
    set("NETWORK", json!(workload.network));
    set("PILOT_SAN", json!([discovery_host(&inputs.proxy.discovery_address)]));
    set("PROXY_CONFIG", Value::Object(inputs.proxy.raw.clone()));
    set("SERVICE_ACCOUNT", json!(workload.id.service_account().as_str()));
    set("STATIC_LABELS", json!(workload.labels));
    set("DNS_CAPTURE", json!(inputs.dns_capture.to_string()));
    if !inputs.platform.is_empty() {
        set("PLATFORM_METADATA", json!(inputs.platform));
    }
    if inputs.transparent {
        set("INTERCEPTION_MODE", json!("TPROXY"));
    }
    // Which of the two is there tells istiod that this is a VM, and what to do about its entry.
    fields.remove("AUTO_REGISTER_GROUP");
    match &inputs.register {
        Register::Group(group) => {
            drop(fields.insert("AUTO_REGISTER_GROUP".to_owned(), json!(group)))
        }
        Register::Entry(name) => drop(fields.insert("WORKLOAD_ENTRY".to_owned(), json!(name))),
        Register::None => {}
    }
    Value::Object(fields)
}

fn discovery_host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    if host == "localhost" { "istiod.istio-system.svc" } else { host }
}

/// In the order in which Istio looks for a name (`pkg/bootstrap/config.go`).
const NAME_LABELS: [&str; 3] = ["app", "app.kubernetes.io/name", "service.istio.io/canonical-name"];
