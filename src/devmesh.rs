//! A small control plane that speaks the real protocols, on loopback: Istio's certificate service,
//! the aggregated discovery service, and the part of the Kubernetes API that the agent uses.
//!
//! It is for trying out and for tests (feature `devmesh`); no line of it is in the shipped agent.
//! Faults can be switched on while it runs.

mod accounts;
mod admin;
mod ads;
mod answer;
mod apply;
mod ca;
mod catalog;
mod cloud;
mod csr;
mod discovery;
mod disk;
mod faults;
mod join;
mod kind;
mod kube;
mod ledger;
mod patch;
mod permissions;
mod picture;
mod pki;
mod policy;
mod proxy;
mod registration;
mod resources;
mod rest;
mod rotation;
mod schema;
mod seen;
mod selector;
mod store;
mod subscription;
mod table;
mod target;
mod telemetry;
mod tls;
mod token;
mod view;
mod watch;
mod wire;
mod workload_api;

#[cfg(test)]
mod tests;

pub use cloud::{CloudFault, CloudService, Instance};
pub use csr::Approval;
pub use disk::DiskError;
pub use faults::{Fault, Faults, Service};
pub use join::{JoinSpec, write_join_directory};
pub use kind::{API_VERSION, GROUP, Resource};
pub use picture::{
    Changes, Configuration, Denial, EndpointPicture, Identity, Machine, Picture, PolicyPicture,
    PortPicture, Root, ServicePicture, StreamPicture,
};
pub use policy::MutualTls;
pub use resources::{CLUSTERS, ENDPOINTS, HEALTH, LISTENERS, NAME_TABLE, ROUTES};
pub use seen::{
    DEADLINE, NotSeen, Proof, RECORDS, Seen, SeenAnswer, SeenCall, SeenCaller, SeenCsr, SeenHealth,
    Witness,
};
pub use store::Objects;
pub use telemetry::{Agent, Certificate, Condition, Flow, Proxy, Report};
pub use token::{ISTIO_AUDIENCE, KUBERNETES_AUDIENCE};
pub use workload_api::WorkloadApi;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{DistinguishedName, DnType, KeyPair};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::base::clock::{self, SharedClock};
use crate::base::tasks::Tasks;
use crate::identity::{SpiffeIdError, TrustDomain};
use crate::proto::nds::NameInfo;
use answer::Refusal;
use catalog::Catalog;
use disk::Disk;
use ledger::Denied;
use pki::{Authorities, Authority, DAY, Order};
use rotation::Servers;
use store::Key;
use tls::Door;
use token::{Account, Claims, Tokens};

/// What kind of mesh it shall be. The default is istiod's.
#[derive(Clone)]
pub struct Options {
    /// The directory with objects and keys; `None`: they are gone with the mesh.
    pub state: Option<PathBuf>,
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// The only cluster that a token's bearer may claim to be in.
    pub cluster_id: String,
    /// The mesh's name, for join directories.
    pub mesh_id: String,
    /// The lifetime of certificates where none is asked for.
    pub default_ttl: Duration,
    /// The longest lifetime that may be asked for.
    pub max_ttl: Duration,
    /// True: an intermediate signs, and is part of every chain.
    pub intermediate: bool,
    /// Where istiod listens; port 0 for one of the system's choice. A loopback or
    /// a private address.
    pub listen: SocketAddr,
    /// Where the Kubernetes API listens, likewise.
    pub kube_listen: SocketAddr,
    /// Where the administrator's door is, if there is one: plain HTTP.
    pub admin_listen: Option<SocketAddr>,
    /// What workloads ask of their callers where no PeerAuthentication says it.
    pub mutual_tls: MutualTls,
    /// How long a disconnected machine's entry is left.
    pub grace: Duration,
    /// How often such entries are swept away; `None`: only by [`Mesh::sweep`].
    pub sweep_every: Option<Duration>,
    /// The shortest lifetime of a token that may be asked of the Kubernetes API.
    pub least_token_life: Duration,
    /// The longest lifetime that such a token is given, whatever is asked for.
    pub longest_token_life: Duration,
    /// When the Kubernetes API ends a watch, whatever is asked for.
    pub longest_watch: Duration,
    /// The port of the machines' status servers, where each is asked every second how it is;
    /// `None`: nobody is asked.
    pub status_port: Option<u16>,
    /// The clock of certificates, tokens and objects.
    pub clock: SharedClock,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            state: None,
            trust_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            mesh_id: "devmesh".to_owned(),
            default_ttl: DAY,
            max_ttl: 90 * DAY,
            intermediate: false,
            listen: any,
            kube_listen: any,
            admin_listen: None,
            mutual_tls: MutualTls::Strict,
            grace: Duration::from_secs(10),
            sweep_every: None,
            least_token_life: Duration::from_secs(600),
            longest_token_life: 365 * DAY,
            // The API server ends one after half an hour to an hour.
            longest_watch: Duration::from_secs(1800),
            status_port: None,
            clock: clock::system(),
        }
    }
}

/// Why the mesh did not start, or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// Connections did not end in time.
    #[error("connections did not end within {LAST_CALL:?}")]
    Busy,
    /// A port cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Tokens and certificates of this mesh are for everyone who can reach it.
    #[error(
        "{0} is neither a loopback nor a private address: the development mesh is not for others"
    )]
    Public(SocketAddr),
    /// What the mesh shall remember cannot be had.
    #[error("cannot remember")]
    Disk(#[from] DiskError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The trust domain is none.
    #[error("{0:?} is no trust domain")]
    TrustDomain(String, #[source] SpiffeIdError),
}

/// A certificate with its key, for a client.
pub struct ClientIdentity {
    /// Leaf and intermediate, PEM.
    pub chain_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: SecretString,
}

/// What the services share.
pub(crate) struct State {
    options: Options,
    trust_domain: TrustDomain,
    authorities: Mutex<Authorities>,
    stranger: Authority,
    tokens: Tokens,
    faults: Faults,
    seen: Sender<Seen>,
    /// Counts pushes; every stream answers again at each.
    pushes: Sender<u64>,
    names: Mutex<BTreeMap<String, NameInfo>>,
    objects: Objects,
    /// What was read from the objects last, and at which revision.
    catalog: Mutex<(u64, Arc<Catalog>)>,
    /// Counts what changes for some proxy.
    configured: Sender<u64>,
    ledger: ledger::Ledger,
    telemetry: telemetry::Telemetry,
    disk: Option<Arc<Disk>>,
    permissions: permissions::Permissions,
    requests: csr::Requests,
    /// Streams per auto-registered entry.
    live: Mutex<BTreeMap<Key, u32>>,
    /// Cancelled to break all connections.
    cut: Mutex<CancellationToken>,
}

impl State {
    fn see(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(change);
    }

    /// What the objects say now.
    fn catalog(&self) -> Arc<Catalog> {
        let revision = self.objects.revision();
        let mut cached = lock(&self.catalog);
        if cached.0 != revision {
            *cached = (revision, Arc::new(Catalog::read(&self.objects)));
        }
        Arc::clone(&cached.1)
    }

    /// Gives a namespace what each has.
    fn found(&self, namespace: &str) {
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
    fn known(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), Refusal> {
        let exists = self.objects.has_no(Resource::Namespaces)
            || self.objects.get(resource, namespace, name).is_some();
        if exists { Ok(()) } else { Err(Refusal::not_found(resource, name)) }
    }

    /// Notes that somebody did not get what they asked for.
    fn deny(&self, who: &str, what: &'static str, why: &str) {
        let (at, who, why) = (self.options.clock.now(), who.to_owned(), why.to_owned());
        self.ledger.deny(Denied { at, who, what, why });
    }
}

/// A running mesh. It ends when it is dropped.
pub struct Mesh {
    state: Arc<State>,
    servers: Servers,
    address: SocketAddr,
    kube_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    tasks: Mutex<Tasks>,
}

impl Mesh {
    /// Starts a mesh.
    ///
    /// # Errors
    /// When a port or a certificate cannot be had, or an address is public.
    pub async fn start(options: Options) -> Result<Self, MeshError> {
        let grpc = listen(options.listen).await?;
        let api = listen(options.kube_listen).await?;
        let address = |listener: &TcpListener, wanted| {
            listener.local_addr().map_err(|source| MeshError::Listen { address: wanted, source })
        };
        let (address, kube_address) =
            (address(&grpc, options.listen)?, address(&api, options.kube_listen)?);
        let admin = match options.admin_listen {
            Some(wanted) => Some(listen(wanted).await?),
            None => None,
        };
        let admin_address = admin.as_ref().and_then(|listener| listener.local_addr().ok());
        let state = Arc::new(State::new(options)?);
        let (istiod, kubernetes) = state.settings()?;
        let servers = Servers {
            state: Arc::clone(&state),
            istiod: Arc::new(Mutex::new(istiod)),
            kubernetes: Arc::new(Mutex::new(kubernetes)),
        };
        let tasks = Mutex::new(Tasks::new().0);
        let mesh = Self { state, servers, address, kube_address, admin_address, tasks };
        mesh.serve(grpc, api);
        if let Some(listener) = admin {
            mesh.open_admin(listener);
        }
        Ok(mesh)
    }

    fn serve(&self, grpc: TcpListener, api: TcpListener) {
        let tasks = lock(&self.tasks).clone();
        let state = &self.state;
        let services = tonic::service::Routes::new(ca::service(Arc::clone(state)))
            .add_service(ads::service(Arc::clone(state), tasks.clone()));
        let istiod = Door {
            listener: grpc,
            settings: Arc::clone(&self.servers.istiod),
            router: services.prepare().into_axum_router(),
        };
        let kubernetes = Door {
            listener: api,
            settings: Arc::clone(&self.servers.kubernetes),
            router: kube::router(Arc::clone(state)),
        };
        for (name, door) in [("devmesh-istiod", istiod), ("devmesh-kubernetes", kubernetes)] {
            tasks.spawn(name, tls::serve(door, Arc::clone(state), tasks.clone()));
        }
        if let Some(port) = state.options.status_port {
            let drawn = Arc::clone(state);
            let telemetry = state.telemetry.clone();
            let asked = telemetry.follow(move || picture::make(&drawn), port);
            tasks.spawn("devmesh-telemetry", asked);
        }
        tasks.spawn("devmesh-configuration", ads::follow(Arc::clone(state)));
        if let Some(every) = state.options.sweep_every {
            let state = Arc::clone(state);
            tasks.spawn("devmesh-sweep", async move {
                loop {
                    tokio::time::sleep(every).await;
                    registration::sweep(&state, state.options.grace);
                }
            });
        }
    }

    /// The administrator's door is open for as long as the first services run.
    fn open_admin(&self, listener: TcpListener) {
        let tasks = lock(&self.tasks).clone();
        let router =
            admin::router(admin::Door { servers: self.servers.clone(), tasks: tasks.clone() });
        tasks.spawn("devmesh-admin", async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "The administrator's door is shut.");
            }
        });
    }

    /// Goes away: nobody listens, and every connection breaks.
    ///
    /// # Errors
    /// [`MeshError::Busy`] when the last tasks do not end in time.
    pub async fn go_away(&self) -> Result<(), MeshError> {
        let tasks = std::mem::replace(&mut *lock(&self.tasks), Tasks::new().0);
        if tasks.finish(LAST_CALL).await { Ok(()) } else { Err(MeshError::Busy) }
    }

    /// Comes back on the same ports, with the same roots and objects. Only after
    /// [`Mesh::go_away`].
    ///
    /// # Errors
    /// When a port was taken meanwhile.
    pub async fn come_back(&self) -> Result<(), MeshError> {
        let (grpc, api) = (listen(self.address).await?, listen(self.kube_address).await?);
        self.serve(grpc, api);
        Ok(())
    }

    /// Breaks all connections, as istiod does at their greatest age; it goes on listening.
    pub fn cut_connections(&self) {
        std::mem::take(&mut *lock(&self.state.cut)).cancel();
    }

    /// istiod's address: certificates and configuration.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's door, where there is one.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The Kubernetes API's address.
    #[must_use]
    pub fn kube_address(&self) -> SocketAddr {
        self.kube_address
    }

    /// All roots, of istiod and of the Kubernetes API, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        lock(&self.state.authorities).roots_pem()
    }

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

    /// A token of a service account; one with a life of zero has expired.
    #[must_use]
    pub fn token(&self, namespace: &str, account: &str, audience: &str, life: Duration) -> String {
        let account = Account::new(namespace, account);
        let claims = Claims { account: &account, audiences: &[audience], life };
        self.state.tokens.make(&claims, self.state.options.clock.now())
    }

    /// The token of the Kubernetes API's administrator.
    #[must_use]
    pub fn admin_token(&self) -> &str {
        self.state.tokens.admin()
    }

    /// A kubeconfig of the Kubernetes API's administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let roots = lock(&self.state.authorities).kubernetes.root_pem();
        let roots = STANDARD.encode(roots);
        let server = format!("https://{}", self.kube_address);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "devmesh",
            "clusters": [{
                "name": "devmesh",
                "cluster": {"server": server, "certificate-authority-data": roots},
            }],
            "users": [{"name": "admin", "user": {"token": self.admin_token()}}],
            "contexts": [{"name": "devmesh", "context": {"cluster": "devmesh", "user": "admin"}}],
        });
        format!("{config:#}\n")
    }

    /// Refuses the account's tokens from now on, as when it is deleted.
    pub fn delete_service_account(&self, namespace: &str, account: &str) {
        self.state.tokens.delete(Account::new(namespace, account));
    }

    /// A certificate of a workload, valid between these times, signed as the mesh signs now.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn workload_certificate(
        &self,
        id: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<ClientIdentity, MeshError> {
        self.sign(Order::workload(id, not_before, not_after)?)
    }

    /// A client certificate of a Kubernetes user for a day; the group `system:masters` may do
    /// everything.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn user_certificate(
        &self,
        user: &str,
        groups: &[&str],
    ) -> Result<ClientIdentity, MeshError> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, user);
        for &group in groups {
            subject.push(DnType::OrganizationName, group);
        }
        let now = self.state.options.clock.now();
        let (not_before, not_after) = (pki::before(now, DAY), pki::after(now, DAY));
        self.sign(Order { names: Vec::new(), subject, not_before, not_after })
    }

    fn sign(&self, order: Order) -> Result<ClientIdentity, MeshError> {
        let key = KeyPair::generate()?;
        let authority = Arc::clone(&lock(&self.state.authorities).signing);
        let leaf = authority.sign(order, &key)?.pem();
        let chain_pem = leaf + &authority.intermediate_pem().unwrap_or_default();
        Ok(ClientIdentity { chain_pem, key_pem: key.serialize_pem().into() })
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

    /// What istioctl would write for a WorkloadGroup and its service account, with a token that
    /// lives an hour. The fields can be changed before [`write_join_directory`].
    #[must_use]
    pub fn join_spec(&self, namespace: &str, group: &str, service_account: &str) -> JoinSpec {
        let options = &self.state.options;
        let life = Duration::from_secs(3600);
        JoinSpec {
            group: group.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), group.to_owned())]),
            ports: BTreeMap::new(),
            probe: None,
            discovery_address: format!("{ISTIOD}:{}", self.address.port()),
            gateway: Some(self.address.ip()),
            cluster_id: options.cluster_id.clone(),
            mesh_id: options.mesh_id.clone(),
            network: String::new(),
            trust_domain: options.trust_domain.clone(),
            auto_register: true,
            capture_dns: true,
            root_pem: self.root_pem(),
            token: self.token(namespace, service_account, ISTIO_AUDIENCE, life),
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        lock(&self.tasks).stop();
    }
}

impl State {
    fn new(options: Options) -> Result<Self, MeshError> {
        let (now, domain) = (options.clock.now(), options.trust_domain.clone());
        let disk = options.state.as_ref().map(|state| Disk::open(&state.join(DATABASE)));
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
            ledger: ledger::Ledger::default(),
            telemetry: telemetry::Telemetry::default(),
            disk,
            permissions: permissions::Permissions::default(),
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
    fn keep_authorities(&self) -> Result<(), DiskError> {
        let authorities = lock(&self.authorities).write();
        self.disk.as_ref().map_or(Ok(()), |disk| disk.keep(AUTHORITIES, &authorities))
    }

    /// The TLS settings of istiod and of the Kubernetes API.
    fn settings(
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
}

/// The error of keys that are there and are none.
fn unreadable(disk: Option<&Arc<Disk>>) -> MeshError {
    let foreign = disk.map(|disk| disk.unreadable());
    foreign.map_or(MeshError::Certificate(rcgen::Error::CouldNotParseKeyPair), MeshError::Disk)
}

async fn listen(address: SocketAddr) -> Result<TcpListener, MeshError> {
    if !is_near(address.ip()) {
        return Err(MeshError::Public(address));
    }
    TcpListener::bind(address).await.map_err(|source| MeshError::Listen { address, source })
}

/// Loopback, and networks that are not routed in the Internet (RFC 1918, RFC 4193).
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file in the state's directory.
const DATABASE: &str = "devmesh.redb";
/// Names of what is kept beside the objects.
const AUTHORITIES: &str = "authorities";
const TOKENS: &str = "tokens";
/// The name that istiod's certificate carries.
const ISTIOD: &str = "istiod.istio-system.svc";
/// Dropping connections takes no time; this is for a machine that swaps.
const LAST_CALL: Duration = Duration::from_secs(10);
