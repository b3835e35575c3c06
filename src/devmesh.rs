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
mod clients;
mod cloud;
mod controls;
mod csr;
mod discovery;
mod disk;
mod faults;
mod join;
mod kind;
mod kube;
mod ledger;
mod options;
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
mod state;
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

pub use clients::ClientIdentity;
pub use cloud::{CloudFault, CloudService, Instance};
pub use csr::Approval;
pub use disk::DiskError;
pub use faults::{Fault, Faults, Service};
pub use join::{JoinSpec, write_join_directory};
pub use kind::{API_VERSION, GROUP, Resource};
pub use options::Options;
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

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;

use crate::base::tasks::Tasks;
use crate::identity::SpiffeIdError;
use rotation::Servers;
use state::State;
use tls::Door;

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
}

impl Drop for Mesh {
    fn drop(&mut self) {
        lock(&self.tasks).stop();
    }
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

/// Dropping connections takes no time; this is for a machine that swaps.
const LAST_CALL: Duration = Duration::from_secs(10);
