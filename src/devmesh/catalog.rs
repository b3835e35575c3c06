//! The mesh's services as the objects describe them: ServiceEntries, and the WorkloadEntries that
//! they select (`pilot/pkg/serviceregistry/serviceentry`). Who is asked about them is not known
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::Resource;
use super::policy::{MutualTls, Policies};
use super::store::Objects;
use crate::identity::TrustDomain;

/// All that proxies are configured from, at one revision.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Catalog {
    /// Sorted by host; one for each host.
    pub(super) services: Vec<Service>,
    pub(super) policies: Policies,
}

/// A name that can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    /// The ServiceEntry's namespace.
    pub(super) namespace: String,
    /// The ServiceEntry's name.
    pub(super) entry: String,
    pub(super) host: String,
    /// Where callers send to; made up where none is given and the name is no pattern.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<Port>,
    pub(super) resolution: Resolution,
    /// The healthy and the unhealthy ones.
    pub(super) endpoints: Vec<Endpoint>,
    exported: Vec<String>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) protocol: Protocol,
    target: Option<u16>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2, also as gRPC.
    Http2,
    /// Anything; it is passed through as it is.
    Tcp,
}

/// How the endpoints of a service are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// By name; the proxy asks.
    Dns,
    /// The caller's address is the endpoint.
    None,
    /// They are listed.
    Static,
}

/// Something that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Its WorkloadEntry, `namespace/name`; `None` for one that a ServiceEntry lists itself.
    pub(super) entry: Option<String>,
    pub(super) namespace: String,
    /// An address, or a name under [`Resolution::Dns`].
    pub(super) address: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) account: String,
    /// `region/zone/subzone`.
    pub(super) locality: String,
    /// At least one.
    pub(super) weight: u32,
    pub(super) healthy: bool,
    /// What ended its last health report, where it is unhealthy.
    pub(super) trouble: String,
    ports: BTreeMap<String, u16>,
}

impl Catalog {
    /// What the objects say now. An object that cannot be understood is left out and logged.
    pub(super) fn read(objects: &Objects) -> Self {
        let found = objects.list(Resource::ServiceEntries, None);
        // Where nothing is called, thousands of entries need not be read.
        let entries = if found.is_empty() {
            Vec::new()
        } else {
            objects.list(Resource::WorkloadEntries, None)
        };
        let entries: Vec<Endpoint> = entries.iter().filter_map(workload).collect();
        let mut services = BTreeMap::new();
        for object in found {
            for service in services_of(&object, &entries) {
                services.entry(service.host.clone()).or_insert(service);
            }
        }
        let mut services: Vec<Service> = services.into_values().collect();
        allocate(&mut services);
        Self { services, policies: Policies::read(objects) }
    }

    /// True when calls of an endpoint are made with mutual TLS.
    pub(super) fn is_secured(&self, endpoint: &Endpoint, default: MutualTls) -> bool {
        let Endpoint { namespace, labels, .. } = endpoint;
        let mode = self.policies.mutual_tls(namespace, labels, default);
        endpoint.is_meshed() && mode != MutualTls::Disable
    }

    /// The services that a namespace may see.
    pub(super) fn visible<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Service> {
        self.services.iter().filter(move |service| service.is_visible(namespace))
    }
}

impl Service {
    fn is_visible(&self, namespace: &str) -> bool {
        self.exported.is_empty()
            || self.exported.iter().any(|to| match to.as_str() {
                "*" => true,
                "." => namespace == self.namespace,
                other => namespace == other,
            })
    }

    /// True for a name such as `*.example.com`.
    pub(super) fn is_pattern(&self) -> bool {
        self.host.starts_with('*')
    }

    pub(super) fn cluster(&self, port: &Port) -> String {
        format!("outbound|{}||{}", port.number, self.host)
    }
}

impl Port {
    pub(super) fn is_http(&self) -> bool {
        self.protocol != Protocol::Tcp
    }
}

impl Protocol {
    /// By Istio's words (`pkg/config/protocol`); an unknown one is passed through.
    fn read(word: &str) -> Self {
        match word.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP_PROXY" => Self::Http,
            "GRPC" | "GRPC-WEB" | "HTTP2" => Self::Http2,
            _ => Self::Tcp,
        }
    }
}

impl Endpoint {
    /// The port of it that stands for a service's port.
    pub(super) fn port(&self, port: &Port) -> u16 {
        self.ports.get(&port.name).copied().or(port.target).unwrap_or(port.number)
    }

    /// The SPIFFE ID that callers want to see.
    pub(super) fn id(&self, domain: &TrustDomain) -> Option<String> {
        let Self { namespace, account, .. } = self;
        (!account.is_empty()).then(|| format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
    }

    /// Its WorkloadEntry's name; empty without one.
    pub(super) fn name(&self) -> &str {
        let path = self.entry.as_deref().unwrap_or_default();
        path.split_once('/').map_or("", |(_, name)| name)
    }

    /// True when it takes part in mutual TLS by itself (`getTLSModeFromWorkloadEntry`).
    pub(super) fn is_meshed(&self) -> bool {
        let wish = self.labels.get("security.istio.io/tlsMode");
        wish.map_or(!self.account.is_empty(), |mode| mode == "istio")
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<PortSpec>,
    resolution: String,
    endpoints: Vec<EndpointSpec>,
    workload_selector: Option<Selector>,
    export_to: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortSpec {
    number: u16,
    name: String,
    protocol: String,
    target_port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EndpointSpec {
    address: String,
    ports: BTreeMap<String, u16>,
    labels: BTreeMap<String, String>,
    locality: String,
    weight: u32,
    service_account: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Selector {
    labels: BTreeMap<String, String>,
}

impl EndpointSpec {
    fn endpoint(self, namespace: &str) -> Endpoint {
        Endpoint {
            entry: None,
            namespace: namespace.to_owned(),
            address: self.address,
            labels: self.labels,
            account: self.service_account,
            locality: self.locality,
            weight: self.weight.max(1),
            healthy: true,
            trouble: String::new(),
            ports: self.ports,
        }
    }
}

/// True when the labels have all that is selected.
pub(super) fn selects(
    selector: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The spec of an object; `None`, and a word in the log, when it is not of that form.
pub(super) fn spec<T: DeserializeOwned>(object: &Value) -> Option<T> {
    let spec = object.get("spec").cloned().unwrap_or_else(|| Value::Object(Default::default()));
    let read = serde_json::from_value(spec);
    read.inspect_err(|error| {
        let (kind, (namespace, name)) = (text(object, "/kind"), whose(object));
        tracing::warn!(%error, "{kind} {namespace}/{name} is left out: it cannot be understood.");
    })
    .ok()
}

/// Namespace and name of an object.
pub(super) fn whose(object: &Value) -> (&str, &str) {
    (text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

pub(super) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn workload(object: &Value) -> Option<Endpoint> {
    let (namespace, name) = whose(object);
    let mut endpoint = spec::<EndpointSpec>(object)?.endpoint(namespace);
    endpoint.entry = Some(format!("{namespace}/{name}"));
    let own = object.pointer("/metadata/labels").and_then(Value::as_object);
    for (key, value) in own.into_iter().flatten() {
        let value = value.as_str().unwrap_or_default().to_owned();
        endpoint.labels.entry(key.clone()).or_insert(value);
    }
    let checked = "/metadata/annotations/proxy.istio.io~1health-checks-enabled";
    if text(object, checked) == "true" {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let health = conditions.into_iter().flatten().find(|one| text(one, "/type") == "Healthy");
        // Until it was found healthy, it is not.
        endpoint.healthy = health.is_some_and(|health| text(health, "/status") == "True");
        let words = health.map(|health| text(health, "/message")).unwrap_or_default();
        endpoint.trouble = if endpoint.healthy { String::new() } else { words.to_owned() };
    }
    Some(endpoint)
}

fn services_of(object: &Value, entries: &[Endpoint]) -> Vec<Service> {
    let Some(spec) = spec::<ServiceSpec>(object) else { return Vec::new() };
    let (namespace, entry) = whose(object);
    let mut endpoints: Vec<Endpoint> =
        spec.endpoints.into_iter().map(|one| one.endpoint(namespace)).collect();
    if let Some(selector) = &spec.workload_selector {
        let chosen =
            |one: &&Endpoint| one.namespace == namespace && selects(&selector.labels, &one.labels);
        endpoints.extend(entries.iter().filter(chosen).cloned());
    }
    let resolution = match spec.resolution.as_str() {
        "STATIC" => Resolution::Static,
        "DNS" | "DNS_ROUND_ROBIN" => Resolution::Dns,
        _ => Resolution::None,
    };
    let port = |port: &PortSpec| Port {
        number: port.number,
        name: port.name.clone(),
        protocol: Protocol::read(&port.protocol),
        target: port.target_port.filter(|&port| port > 0),
    };
    let service = |host: &String| Service {
        namespace: namespace.to_owned(),
        entry: entry.to_owned(),
        host: host.clone(),
        addresses: spec.addresses.iter().filter_map(|one| address(one)).collect(),
        ports: spec.ports.iter().map(port).collect(),
        resolution,
        endpoints: endpoints.clone(),
        exported: spec.export_to.clone(),
    };
    spec.hosts.iter().map(service).collect()
}

/// A single address; networks are not served.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(text);
    bare.parse().ok()
}

/// Gives services without an address one of the network that Istio takes for it. A host keeps
/// its address as long as no other host hashes to it.
fn allocate(services: &mut [Service]) {
    let mut taken = BTreeSet::new();
    for service in services {
        let fixed = !service.addresses.is_empty() || service.is_pattern();
        if fixed || service.resolution == Resolution::None {
            continue;
        }
        let start = fnv(&service.host);
        let free = (0..=u16::MAX).map(|step| start.wrapping_add(step)).find(|number| {
            let [_, low] = number.to_be_bytes();
            low != 0 && low != u8::MAX && !taken.contains(number)
        });
        if let Some(number) = free {
            taken.insert(number);
            let [high, low] = number.to_be_bytes();
            service.addresses = vec![Ipv4Addr::new(240, 240, high, low).into()];
        }
    }
}

/// Fowler, Noll and Vo's hash (FNV-1a, 32 bits), folded to 16.
fn fnv(text: &str) -> u16 {
    let hash = text
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    u16::from_be_bytes([a ^ c, b ^ d])
}
