//! What the services of one mesh share, made new or read from its directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

use super::answer::Refusal;
use super::catalog::Catalog;
use super::disk::{Disk, DiskError};
use super::faults::Faults;
use super::kind::Resource;
use super::ledger::{Denied, Ledger};
use super::options::Options;
use super::permissions::Permissions;
use super::pki::{Authorities, Authority};
use super::seen::Seen;
use super::store::{Key, Objects};
use super::telemetry::Telemetry;
use super::token::Tokens;
use super::{MeshError, csr, lock, registration, tls};
use crate::identity::TrustDomain;
use crate::proto::nds::NameInfo;

/// What the services share.
pub(super) struct State {
    pub(super) options: Options,
    pub(super) trust_domain: TrustDomain,
    pub(super) authorities: Mutex<Authorities>,
    pub(super) stranger: Authority,
    pub(super) tokens: Tokens,
    pub(super) faults: Faults,
    pub(super) seen: Sender<Seen>,
    /// Counts pushes; every stream answers again at each.
    pub(super) pushes: Sender<u64>,
    pub(super) names: Mutex<BTreeMap<String, NameInfo>>,
    pub(super) objects: Objects,
    /// What was read from the objects last, and at which revision.
    catalog: Mutex<(u64, Arc<Catalog>)>,
    /// Counts what changes for some proxy.
    pub(super) configured: Sender<u64>,
    pub(super) ledger: Ledger,
    pub(super) telemetry: Telemetry,
    disk: Option<Arc<Disk>>,
    pub(super) permissions: Permissions,
    pub(super) requests: csr::Requests,
    /// Streams per auto-registered entry.
    pub(super) live: Mutex<BTreeMap<Key, u32>>,
    /// Cancelled to break all connections.
    pub(super) cut: Mutex<CancellationToken>,
}

impl State {
    pub(super) fn new(options: Options) -> Result<Self, MeshError> {
        let (now, domain) = (options.clock.now(), options.trust_domain.clone());
        let disk = options.state.as_ref().map(|directory| Disk::open(directory));
        let disk = disk.transpose()?.map(Arc::new);
        let objects = Objects::new(Arc::clone(&options.clock), disk.clone())?;
        let kept = |name| disk.as_ref().map_or(Ok(None), |disk| disk.secret(name));
        let authorities = match kept(AUTHORITIES)? {
            Some(kept) => Authorities::read(&kept).ok_or_else(|| unreadable(disk.as_ref()))?,
            None => Authorities::new(Authority::new("devmesh", now, options.intermediate)?),
        };
        let secrets = kept(TOKENS)?.unwrap_or_else(Tokens::fresh);
        let tokens = Tokens::new(&secrets).ok_or_else(|| unreadable(disk.as_ref()))?;
        if let Some(disk) = &disk {
            disk.keep(TOKENS, &secrets)?;
        }
        let state = Self {
            trust_domain: domain.parse().map_err(|error| MeshError::TrustDomain(domain, error))?,
            authorities: Mutex::new(authorities),
            stranger: Authority::new("stranger", now, options.intermediate)?,
            tokens,
            faults: Faults::default(),
            seen: Sender::default(),
            pushes: Sender::default(),
            names: Mutex::default(),
            objects,
            catalog: Mutex::default(),
            configured: Sender::default(),
            ledger: Ledger::default(),
            telemetry: Telemetry::default(),
            disk,
            permissions: Permissions::default(),
            requests: csr::Requests::default(),
            live: Mutex::default(),
            cut: Mutex::default(),
            options,
        };
        state.keep_authorities()?;
        registration::nobody_is_connected(&state);
        Ok(state)
    }

    /// Keeps the authorities as they are now.
    pub(super) fn keep_authorities(&self) -> Result<(), DiskError> {
        let authorities = lock(&self.authorities).write();
        self.disk.as_ref().map_or(Ok(()), |disk| disk.keep(AUTHORITIES, &authorities))
    }

    /// The TLS settings of istiod and of the Kubernetes API.
    pub(super) fn settings(
        &self,
    ) -> Result<(Arc<rustls::ServerConfig>, Arc<rustls::ServerConfig>), MeshError> {
        let authorities = lock(&self.authorities).clone();
        let Authorities { serving, kubernetes, .. } = &authorities;
        let make = |authority, names: &[&str], address: SocketAddr, protocols| {
            let address = address.ip().to_string();
            let mut names = names.to_vec();
            names.extend(["localhost", "127.0.0.1"]);
            names.extend(Some(address.as_str()).filter(|address| *address != "127.0.0.1"));
            let identity = tls::Identity { names: &names, protocols };
            tls::settings((&authorities, authority), identity, &self.options.clock)
        };
        let istiod = make(serving, &[ISTIOD], self.options.listen, &["h2"])?;
        let names = ["kubernetes.default.svc", "kubernetes"];
        let kubernetes = make(kubernetes, &names, self.options.kube_listen, &["h2", "http/1.1"])?;
        Ok((istiod, kubernetes))
    }

    pub(super) fn see(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(change);
    }

    /// What the objects say now.
    pub(super) fn catalog(&self) -> Arc<Catalog> {
        let revision = self.objects.revision();
        let mut cached = lock(&self.catalog);
        if cached.0 != revision {
            *cached = (revision, Arc::new(Catalog::read(&self.objects)));
        }
        Arc::clone(&cached.1)
    }

    /// Gives a namespace what each has.
    pub(super) fn found(&self, namespace: &str) {
        let place = Key::new(Resource::Namespaces, "", namespace);
        let active = json!({"phase": "Active"});
        let _exists = self.objects.modify(&place, |object| {
            if let Some(object) = object.as_object_mut() {
                object.insert("status".to_owned(), active);
            }
        });
        self.objects.put(Resource::ServiceAccounts, namespace, "default", json!({}));
    }

    /// An error when an object does not exist, in a mesh that has namespaces at all.
    pub(super) fn known(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
    ) -> Result<(), Refusal> {
        let exists = self.objects.has_no(Resource::Namespaces)
            || self.objects.get(resource, namespace, name).is_some();
        if exists { Ok(()) } else { Err(Refusal::not_found(resource, name)) }
    }

    /// Notes that somebody did not get what they asked for.
    pub(super) fn deny(&self, who: &str, what: &'static str, why: &str) {
        let (at, who, why) = (self.options.clock.now(), who.to_owned(), why.to_owned());
        self.ledger.deny(Denied { at, who, what, why });
    }
}

/// The error of keys that are there and are none.
fn unreadable(disk: Option<&Arc<Disk>>) -> MeshError {
    let foreign = disk.map(|disk| disk.unreadable());
    foreign.map_or(MeshError::Certificate(rcgen::Error::CouldNotParseKeyPair), MeshError::Disk)
}

/// Names of what is kept beside the objects.
const AUTHORITIES: &str = "authorities";
const TOKENS: &str = "tokens";
/// The name that istiod's certificate carries.
pub(super) const ISTIOD: &str = "istiod.istio-system.svc";
