//! A small control plane that speaks the real protocols, on loopback: Istio's certificate service,
//! the aggregated discovery service, and the part of the Kubernetes API that the agent uses.
//!
//! It is for trying out and for tests (feature `devmesh`); no line of it is in the shipped agent.
//! Faults can be switched on while it runs.

mod ads;
mod ca;
mod kube;
mod pki;
mod tls;
mod token;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::base::tasks::Tasks;
use pki::Authority;
use token::Tokens;

/// What goes wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Calls are never answered.
    Hang,
    /// The certificate is for somebody else.
    OtherIdentity,
    /// Calls are refused as unauthenticated.
    Refuse,
    /// The answer is no certificate.
    Rubbish,
    /// The certificate is signed by an unknown root.
    UntrustedRoot,
}

/// What the mesh has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Certificate requests that came with a client certificate.
    pub by_certificate: u64,
    /// Certificate requests that came with a token alone.
    pub by_token: u64,
    /// Certificate requests that were refused.
    pub refused: u64,
    /// Configuration streams.
    pub streams: u64,
    /// Responses that a proxy took.
    pub acks: u64,
    /// Responses that a proxy refused.
    pub nacks: u64,
}

/// Why the mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A port cannot be had.
    #[error("cannot listen on loopback")]
    Listen(#[from] std::io::Error),
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// What the services share.
pub(crate) struct State {
    authority: Authority,
    other: Authority,
    tokens: Tokens,
    fault: Mutex<Fault>,
    seen: watch::Sender<Seen>,
    groups: Mutex<Vec<String>>,
    kube: kube::Store,
}

/// A running mesh. It ends when it is dropped.
pub struct Mesh {
    state: Arc<State>,
    address: SocketAddr,
    kube_address: SocketAddr,
    tasks: Tasks,
}

impl Mesh {
    /// Starts a mesh on ports of the system's choice.
    ///
    /// # Errors
    /// When a port or a certificate cannot be had.
    pub async fn start() -> Result<Self, MeshError> {
        let state = Arc::new(State {
            authority: Authority::new("devmesh")?,
            other: Authority::new("stranger")?,
            tokens: Tokens::new(),
            fault: Mutex::default(),
            seen: watch::Sender::default(),
            groups: Mutex::default(),
            kube: kube::Store::default(),
        });
        let grpc = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let api = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, kube_address) = (grpc.local_addr()?, api.local_addr()?);
        let mesh = Self { state, address, kube_address, tasks: Tasks::new().0 };
        mesh.serve(grpc, api)?;
        Ok(mesh)
    }

    fn serve(&self, grpc: TcpListener, api: TcpListener) -> Result<(), MeshError> {
        let server = tls::server(&self.state.authority)?;
        let incoming = tls::accept(grpc, server.clone(), &self.tasks);
        let stop = self.tasks.stop_signal();
        let router = tonic::transport::Server::builder()
            .add_service(ca::service(Arc::clone(&self.state)))
            .add_service(ads::service(Arc::clone(&self.state), self.tasks.clone()))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        self.tasks.critical("grpc", router);
        self.tasks.critical(
            "kube",
            kube::serve(api, server, Arc::clone(&self.state), self.tasks.clone()),
        );
        Ok(())
    }

    /// Goes away: nobody listens, and every connection breaks.
    ///
    /// # Errors
    /// When the last tasks do not end in time.
    pub async fn go_away(&mut self) -> Result<(), std::io::Error> {
        let ended = self.tasks.finish(Duration::from_secs(10)).await;
        self.tasks = Tasks::new().0;
        if ended { Ok(()) } else { Err(std::io::ErrorKind::TimedOut.into()) }
    }

    /// Comes back on the same ports, with the same roots and objects.
    ///
    /// # Errors
    /// When a port was taken meanwhile.
    pub async fn come_back(&mut self) -> Result<(), MeshError> {
        let grpc = TcpListener::bind(self.address).await?;
        let api = TcpListener::bind(self.kube_address).await?;
        self.serve(grpc, api)
    }

    /// istiod's address: certificates and configuration.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The Kubernetes API's address.
    #[must_use]
    pub fn kube_address(&self) -> SocketAddr {
        self.kube_address
    }

    /// The roots of both, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.state.authority.root_pem()
    }

    /// A token of a service account.
    #[must_use]
    pub fn token(&self, namespace: &str, account: &str, audience: &str, life: Duration) -> String {
        self.state.tokens.make(namespace, account, audience, life)
    }

    /// Adds a WorkloadGroup, `namespace/name`.
    pub fn add_group(&self, group: &str) {
        lock(&self.state.groups).push(group.to_owned());
    }

    /// Lets something go wrong from now on.
    pub fn set_fault(&self, fault: Fault) {
        *lock(&self.state.fault) = fault;
    }

    /// Lets a service account write WorkloadEntries of its namespace.
    pub fn grant(&self, namespace: &str, account: &str) {
        self.state.kube.grant(namespace, account);
    }

    /// A WorkloadEntry, `namespace/name`.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<serde_json::Value> {
        self.state.kube.get(key)
    }

    /// What was seen, whenever it changes.
    #[must_use]
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.state.seen.subscribe()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl State {
    fn fault(&self) -> Fault {
        *lock(&self.fault)
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(change);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
