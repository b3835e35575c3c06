use std::time::Duration;

use super::*;
use crate::config::{Document, Paths, load, parse_yaml};
use crate::identity::Roots;
use crate::operator::group::{CANONICAL_NAME, CANONICAL_REVISION};
use crate::operator::{Group, Istio, Machines};

fn roots() -> Roots {
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    Roots::from_pem(pem.as_bytes()).unwrap()
}

fn order(group: &Value, registration: Registration) -> Order {
    Order {
        group: Group::from_value(group, "vms").unwrap(),
        istio: Istio {
            namespace: "istio-system".to_owned(),
            revision: None,
            discovery_address: None,
            gateway: None,
            gateway_service: String::new(),
            cluster_id: None,
        },
        registration,
        machines: Machines { name: Some("vm1".to_owned()), ..Machines::default() },
        life: Duration::from_secs(600),
        renew_with: String::new(),
    }
}

fn mesh(proxy_config: Value) -> Mesh {
    Mesh {
        proxy_config: proxy_config.as_object().unwrap().clone(),
        trust_domain: "example.com".to_owned(),
        discovery_address: "istiod-blue.istio-system.svc:15012".to_owned(),
        gateway: Some("lb.example.com".to_owned()),
        cluster_id: "east".to_owned(),
        roots: roots(),
    }
}

fn group() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": {"name": "details", "annotations": {"proxy.istio.io/config": "concurrency: 1\nproxyMetadata: {A: group, ISTIO_META_X: x}"}},
        "spec": {
            "metadata": {"labels": {"app": "details", "version": "v1"}},
            "template": {"serviceAccount": "d", "ports": {"http": 9080, "admin": 9901}, "network": "n1",
                         "locality": "eu/a", "weight": 7},
            "probe": {"tcpSocket": {"port": 9080}},
        },
    })
}

#[test]
fn a_machine_learns_all_that_the_group_and_the_mesh_say() {
    let server = "https://k:6443".to_owned();
    let order = order(&group(), Registration::Kubernetes { server, roots: roots() });
    let mesh = mesh(
        json!({"meshId": "m", "proxyMetadata": {"A": "mesh", "B": "mesh", "SECRET_TTL": "2h"}}),
    );
    let tree = Value::Object(settings(&order, &mesh, parse_yaml, &mut Vec::new()).unwrap());
    let expected = json!({
        "name": "vm1", "namespace": "vms", "serviceAccount": "d", "group": "details",
        "labels": {"app": "details", "version": "v1", CANONICAL_NAME: "details", CANONICAL_REVISION: "v1"},
        "ports": {"http": 9080, "admin": 9901}, "network": "n1", "locality": "eu/a", "weight": 7,
    });
    assert_eq!(tree["workload"], expected);
    assert_eq!(
        tree["registration"],
        json!({"mode": "kubernetes", "kubernetes": {"server": "https://k:6443"}})
    );
    let mesh = &tree["mesh"];
    for (at, value) in [
        ("/discoveryAddress", "istiod-blue.istio-system.svc:15012"),
        ("/connectTo", "lb.example.com"),
        ("/trustDomain", "example.com"),
        ("/clusterId", "east"),
        ("/meshId", "m"),
        ("/metadata/X", "x"),
        ("/metadata/WORKLOAD_NAME", "details"),
        ("/proxyConfig/proxyMetadata/A", "group"),
        ("/proxyConfig/proxyMetadata/B", "mesh"),
    ] {
        assert_eq!(mesh.pointer(at), Some(&json!(value)), "{at}");
    }
    assert_eq!(mesh["proxyConfig"]["readinessProbe"], json!({"tcpSocket": {"port": 9080}}));
    assert_eq!(tree["capture"]["inboundPorts"], "9901,9080");
    assert_eq!(tree["identity"]["ttl"], "2h", "as istioctl's files are translated");
    let mut document = Document::new();
    document.add(&tree, &|_| String::new());
    document.set(&["registration", "kubernetes", "caFile"].map(str::to_owned), "/a".into(), "");
    document.set(&["registration", "kubernetes", "tokenFile"].map(str::to_owned), "/a".into(), "");
    load(&document, &Paths::new(std::path::Path::new("/"))).unwrap();
}

#[test]
fn a_group_that_says_little_is_enough() {
    let least = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "metadata": {"name": "g"}});
    let mut order = order(&least, Registration::Istiod);
    order.machines.name = None;
    let mesh = Mesh { gateway: None, ..mesh(json!({})) };
    let tree = Value::Object(settings(&order, &mesh, parse_yaml, &mut Vec::new()).unwrap());
    assert_eq!(tree["workload"]["serviceAccount"], "default");
    assert_eq!(
        tree["workload"]["labels"],
        json!({CANONICAL_NAME: "g", CANONICAL_REVISION: "latest"})
    );
    assert_eq!((tree["workload"].get("name"), tree["mesh"].get("connectTo")), (None, None));
    assert_eq!(tree["registration"], json!({"mode": "istiod"}));
    let mut odd = least;
    odd["metadata"]["annotations"] = json!({"proxy.istio.io/config": "["});
    order.group = Group::from_value(&odd, "vms").unwrap();
    let told = settings(&order, &mesh, parse_yaml, &mut Vec::new()).unwrap_err().to_string();
    assert!(told.contains("WorkloadGroup vms/g: annotation proxy.istio.io/config"), "{told}");
}
