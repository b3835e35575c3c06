//! The mesh as one value, to be shown: machines, services, identities, policies and refusals. It
//! is made from what the services keep and changes nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::sync::watch;

use super::catalog::{Catalog, Endpoint, Service};
use super::kind::Resource;
use super::ledger::{Issued, Pages, Stream};
use super::policy::{Action, MutualTls, Policy};
use super::resources::{CLUSTERS, ENDPOINTS, LISTENERS, NAME_TABLE, ROUTES};
use super::seen::Proof;
use super::{State, lock, pki};
use crate::base::clock::rfc3339;

/// The mesh at one time. Times are RFC 3339.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Picture {
    /// When it was made.
    pub at: String,
    /// The revision of the objects.
    pub revision: u64,
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// What workloads ask of their callers where no policy says it.
    pub mutual_tls: &'static str,
    /// The roots that are trusted, the newest, which signs, first.
    pub roots: Vec<Root>,
    /// Connected proxies, and WorkloadEntries without one.
    pub machines: Vec<Machine>,
    /// The services by host.
    pub services: Vec<ServicePicture>,
    /// The certificates that were issued, without those that were replaced.
    pub identities: Vec<Identity>,
    /// Who may call whom.
    pub policies: Vec<PolicyPicture>,
    /// Who was refused something by the control plane, oldest first.
    pub denials: Vec<Denial>,
}

/// A root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Its subject.
    pub subject: String,
    /// Its serial number, lower-case hex.
    pub serial: String,
    /// When it ends.
    pub expires: String,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Its name, or its WorkloadEntry's where it is not connected.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its first address.
    pub address: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: String,
    /// Its WorkloadEntry, `namespace/name`.
    pub entry: Option<String>,
    /// What it asks of its callers: `STRICT`, `PERMISSIVE` or `DISABLE`.
    pub mutual_tls: &'static str,
    /// Its stream; `None` when it has none.
    pub stream: Option<StreamPicture>,
}

/// A proxy's configuration stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamPicture {
    /// The node's ID.
    pub node: String,
    /// The SPIFFE ID that it is authenticated with.
    pub identity: String,
    /// The serial number of the certificate that proved it; `None`: a token.
    pub serial: Option<String>,
    /// Since when.
    pub since: String,
    /// What it was sent: `clusters`, `endpoints`, `listeners`, `names`, `routes`.
    pub configuration: BTreeMap<&'static str, Configuration>,
}

/// How far a proxy is with a type of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Configuration {
    /// How many there are.
    pub resources: usize,
    /// The version that was sent last.
    pub sent: String,
    /// The version that it took last.
    pub taken: Option<String>,
    /// Why it refused the version that was sent last.
    pub refused: Option<String>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServicePicture {
    /// Its host.
    pub host: String,
    /// Its ServiceEntry's namespace.
    pub namespace: String,
    /// Its ServiceEntry's name.
    pub entry: String,
    /// Where callers send to.
    pub addresses: Vec<String>,
    /// Its ports.
    pub ports: Vec<PortPicture>,
    /// All endpoints; callers are told of the healthy ones.
    pub endpoints: Vec<EndpointPicture>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortPicture {
    /// Its number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// True when HTTP is spoken on it.
    pub http: bool,
}

/// An endpoint of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EndpointPicture {
    /// Its WorkloadEntry, `namespace/name`.
    pub entry: Option<String>,
    /// Its address.
    pub address: String,
    /// Its ports by the service's ports.
    pub ports: BTreeMap<u16, u16>,
    /// The SPIFFE ID that callers want to see; empty when it has none.
    pub identity: String,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: String,
    /// Its share of calls.
    pub weight: u32,
    /// Whether callers are told of it.
    pub healthy: bool,
    /// Why it is not healthy, in the words of its last report.
    pub trouble: String,
    /// True when it is called with mutual TLS.
    pub secured: bool,
}

/// A certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The SPIFFE ID.
    pub id: String,
    /// The serial number, lower-case hex.
    pub serial: String,
    /// The serial number of the certificate that it replaced; `None`: it was had for a token.
    pub replaces: Option<String>,
    /// When it was issued.
    pub issued: String,
    /// When it ends.
    pub expires: String,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyPicture {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `ALLOW` or `DENY`.
    pub action: &'static str,
    /// The labels of the workloads that it protects; empty for all.
    pub selector: BTreeMap<String, String>,
    /// The callers that it names.
    pub principals: Vec<String>,
    /// The paths that it names.
    pub paths: Vec<String>,
}

/// Somebody who did not get what they asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// When.
    pub at: String,
    /// Who, as far as it is known.
    pub who: String,
    /// What they wanted: `certificate`, `configuration` or `kubernetes`.
    pub what: &'static str,
    /// Why they did not get it.
    pub why: String,
}

/// Wakes whenever a new picture could look different.
#[derive(Clone, Debug)]
pub struct Changes {
    objects: watch::Receiver<u64>,
    pages: watch::Receiver<Pages>,
}

impl Changes {
    pub(super) fn of(state: &State) -> Self {
        Self { objects: state.objects.changed(), pages: state.ledger.pages() }
    }

    /// Waits for the next change; false when the mesh has ended.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            objects = self.objects.changed() => objects.is_ok(),
            pages = self.pages.changed() => pages.is_ok(),
        }
    }
}

/// The mesh now.
pub(super) fn make(state: &State) -> Picture {
    let catalog = state.catalog();
    let pages = state.ledger.pages().borrow().clone();
    let default = state.options.mutual_tls;
    let policies = catalog.policies.authorization.iter().map(policy).collect();
    Picture {
        at: rfc3339(state.options.clock.now()),
        revision: state.objects.revision(),
        trust_domain: state.trust_domain.to_string(),
        mutual_tls: word(default),
        roots: roots(state),
        machines: machines(state, &catalog, &pages),
        services: catalog.services.iter().map(|one| service(state, &catalog, one)).collect(),
        identities: pages.certificates.values().map(identity).collect(),
        policies,
        denials: pages
            .denials
            .iter()
            .map(|one| Denial {
                at: rfc3339(one.at),
                who: one.who.clone(),
                what: one.what,
                why: one.why.clone(),
            })
            .collect(),
    }
}

fn roots(state: &State) -> Vec<Root> {
    let trusted = lock(&state.authorities).trusted.clone();
    let root = |der: &[u8]| {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Some(Root {
            subject: certificate.subject().to_string(),
            serial: pki::serial_of(der)?,
            expires: rfc3339(certificate.validity().not_after.to_datetime().into()),
        })
    };
    trusted.iter().filter_map(|authority| root(&authority.root_der())).collect()
}

/// Connected proxies first, then entries that no proxy stands for.
fn machines(state: &State, catalog: &Catalog, pages: &Pages) -> Vec<Machine> {
    let default = state.options.mutual_tls;
    let entries = state.objects.list(Resource::WorkloadEntries, None);
    let mut entries: Vec<Endpoint> = entries.iter().filter_map(super::catalog::workload).collect();
    let mut all = BTreeMap::new();
    for stream in pages.streams.values() {
        let machine = connected(catalog, default, stream);
        // Of two streams of a machine the newer one counts.
        all.insert((machine.namespace.clone(), machine.name.clone()), machine);
    }
    let mut all: Vec<Machine> = all.into_values().collect();
    for machine in &mut all {
        let own =
            |one: &Endpoint| one.namespace == machine.namespace && one.address == machine.address;
        if let Some(at) = entries.iter().position(own) {
            machine.entry = entries.remove(at).entry;
        }
    }
    all.extend(entries.into_iter().map(|one| Machine {
        name: one.name().to_owned(),
        mutual_tls: word(catalog.policies.mutual_tls(&one.namespace, &one.labels, default)),
        namespace: one.namespace,
        address: one.address,
        labels: one.labels,
        locality: one.locality,
        entry: one.entry,
        stream: None,
    }));
    all
}

fn connected(catalog: &Catalog, default: MutualTls, stream: &Stream) -> Machine {
    let proxy = &stream.proxy;
    let (namespace, labels) = (proxy.namespace().to_owned(), proxy.labels());
    let serial = serial(&stream.proof);
    let mut configuration = BTreeMap::new();
    for (type_url, name) in TYPES {
        let Some(progress) = stream.types.get(type_url) else { continue };
        let progress = progress.clone();
        let shown = Configuration {
            resources: progress.resources,
            sent: progress.sent,
            taken: progress.taken,
            refused: progress.refused,
        };
        configuration.insert(name, shown);
    }
    let stream = StreamPicture {
        node: proxy.id.clone(),
        identity: stream.id.clone(),
        serial,
        since: rfc3339(stream.since),
        configuration,
    };
    Machine {
        name: proxy.name().to_owned(),
        address: proxy.addresses().first().map(ToString::to_string).unwrap_or_default(),
        mutual_tls: word(catalog.policies.mutual_tls(&namespace, &labels, default)),
        namespace,
        labels,
        locality: proxy.locality.clone(),
        entry: None,
        stream: Some(stream),
    }
}

fn service(state: &State, catalog: &Catalog, one: &Service) -> ServicePicture {
    let endpoint = |endpoint: &Endpoint| EndpointPicture {
        entry: endpoint.entry.clone(),
        address: endpoint.address.clone(),
        ports: one.ports.iter().map(|port| (port.number, endpoint.port(port))).collect(),
        identity: endpoint.id(&state.trust_domain).unwrap_or_default(),
        locality: endpoint.locality.clone(),
        weight: endpoint.weight,
        healthy: endpoint.healthy,
        trouble: endpoint.trouble.clone(),
        secured: catalog.is_secured(endpoint, state.options.mutual_tls),
    };
    ServicePicture {
        host: one.host.clone(),
        namespace: one.namespace.clone(),
        entry: one.entry.clone(),
        addresses: one.addresses.iter().map(ToString::to_string).collect(),
        ports: one
            .ports
            .iter()
            .map(|port| PortPicture {
                number: port.number,
                name: port.name.clone(),
                http: port.is_http(),
            })
            .collect(),
        endpoints: one.endpoints.iter().map(endpoint).collect(),
    }
}

fn policy(one: &Policy) -> PolicyPicture {
    let sources = one.rules.iter().flat_map(|rule| rule.sources());
    let operations = one.rules.iter().flat_map(|rule| rule.operations());
    PolicyPicture {
        namespace: one.namespace.clone(),
        name: one.name.clone(),
        action: match one.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
        },
        selector: one.selector.clone(),
        principals: sources.flat_map(|source| source.principals.clone()).collect(),
        paths: operations.flat_map(|operation| operation.paths.clone()).collect(),
    }
}

fn identity(one: &Issued) -> Identity {
    Identity {
        id: one.id.clone(),
        serial: one.serial.clone(),
        replaces: serial(&one.proof),
        issued: rfc3339(one.at),
        expires: rfc3339(one.expires),
    }
}

fn serial(proof: &Proof) -> Option<String> {
    match proof {
        Proof::Certificate { serial } => Some(serial.clone()),
        Proof::Token => None,
    }
}

/// Istio's word for a mode.
fn word(mode: MutualTls) -> &'static str {
    match mode {
        MutualTls::Disable => "DISABLE",
        MutualTls::Permissive => "PERMISSIVE",
        MutualTls::Strict => "STRICT",
    }
}

const TYPES: [(&str, &str); 5] = [
    (CLUSTERS, "clusters"),
    (ENDPOINTS, "endpoints"),
    (LISTENERS, "listeners"),
    (NAME_TABLE, "names"),
    (ROUTES, "routes"),
];
