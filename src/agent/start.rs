//! The start: everything that can fail at once is done first, then the rooms run.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::chronicle::Chronicle;
use super::signals::Signals;
use super::{Agent, Plan};
use crate::base::clock::SharedClock;
use crate::base::fsio::{self, FileError};
use crate::base::tasks::Tasks;
use crate::base::uds::{self, Peers};
use crate::ca::IstiodIssuer;
use crate::config::Paths;
use crate::controlplane::Dialer;
use crate::envoy::Supervisor;
use crate::kube::{Client, KubeError};
use crate::registry::{Direct, RegistrationState};
use crate::sds;
use crate::secrets::{self, Vault};
use crate::status::{self, Board, Desk};
use crate::xds;

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory or socket cannot be made.
    #[error("this host does not let the agent start")]
    File(#[from] FileError),
    /// The Kubernetes API cannot be used.
    #[error("the Kubernetes API cannot be used")]
    Kube(#[from] KubeError),
    /// The status port is taken.
    #[error("cannot listen at {address} for status")]
    Port {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another agent runs with this root.
    #[error("another agent is running with this root ({} is locked)", path.display())]
    Running {
        /// The lock file.
        path: PathBuf,
    },
    /// Signals cannot be received.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
}

/// What has to be there before anything runs.
struct Doors {
    lock: File,
    status: TcpListener,
    admin: UnixListener,
    sds: UnixListener,
    xds: UnixListener,
    signals: Signals,
}

impl Agent {
    /// Starts an agent.
    ///
    /// # Errors
    /// When the host refuses; nothing runs then.
    pub async fn start(
        plan: Plan,
        version: Option<String>,
        clock: SharedClock,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        let doors = open_doors(&plan).await?;
        let (tasks, ends) = Tasks::new();
        let vault = Vault::open(plan.secrets, Arc::clone(&clock));
        let dialer = |config| Dialer::new(config, vault.subscribe(), Arc::clone(&clock));
        let issuer = IstiodIssuer::new(dialer(plan.ca));
        let (admission, admitted) = watch::channel(false);
        let (health, healthy) = watch::channel(None);
        let endpoint = plan.discovery.endpoint.to_string();
        let relay = xds::relay(
            xds::Config { peers: proxy_peers(&plan.envoy), name_table: false },
            dialer(plan.discovery),
            xds::Inputs { health: healthy, admission: admitted },
            Arc::clone(&clock),
            tasks.clone(),
        );
        let registration =
            direct(plan.registration.kube, &plan.workload, plan.registration.force, &clock)?;
        let wanted = RegistrationState::new(
            plan.registration.mode,
            plan.workload.id.namespace().to_string(),
            plan.registration.name,
        );
        let counters = Arc::new(sds::Counters::default());
        let secrets_for =
            sds::Config { peers: proxy_peers(&plan.envoy), counters: Arc::clone(&counters) };
        let (supervisor, proxy) =
            Supervisor::new(plan.envoy, version, Arc::clone(&clock), tasks.clone());
        let (draining, is_draining) = watch::channel(false);
        let (chronicle, registered, timings) = Chronicle::new(started, wanted);
        let board = Arc::new(Board {
            clock: Arc::clone(&clock),
            started,
            workload: plan.workload,
            endpoint,
            identity: vault.subscribe(),
            renewal: vault.renewal(),
            upstream: relay.state(),
            registration: registered,
            proxy: proxy.state(),
            sds: counters,
            draining: is_draining,
            timings,
        });
        let (orders, taken) = mpsc::channel(ORDERS);
        let desk = Desk { board: Arc::clone(&board), orders };
        let stop = tasks.stop_signal();
        tasks.critical(
            "secrets",
            sds::serve(doors.sds, secrets_for, vault.subscribe(), tasks.clone()),
        );
        tasks.critical("relay", relay.serve(doors.xds));
        tasks.critical("status", status::serve(doors.status, desk.clone(), stop.clone()));
        let own = Peers::new(vec![nix::unistd::geteuid().as_raw()]);
        tasks.critical("admin", status::serve_admin(doors.admin, own, desk, stop.clone()));
        tasks.critical("renewal", never_ends(secrets::renew(vault, issuer, stop.clone())));
        tasks.critical(
            "chronicle",
            never_ends(chronicle.run(
                Arc::clone(&board),
                registration.as_ref().map(|direct| direct.state()),
                admission,
                health,
            )),
        );
        let registrar = tasks.child();
        if let Some(direct) = &registration {
            let (direct, stop) = (Arc::clone(direct), registrar.stop_signal());
            registrar.critical("registration", never_ends(async move { direct.run(stop).await }));
        }
        // Not a child of the group's stop: it ends last, by its own handle.
        tasks.detached("proxy", supervisor.run());
        Ok(Self {
            paths: plan.paths,
            tasks,
            ends,
            orders: taken,
            signals: doors.signals,
            board,
            proxy,
            registration,
            registrar,
            remove_on_stop: plan.registration.remove_on_stop,
            draining,
            _lock: doors.lock,
        })
    }
}

async fn never_ends(task: impl Future<Output = ()>) -> Result<(), std::convert::Infallible> {
    task.await;
    Ok(())
}

fn direct(
    kube: Option<crate::kube::Config>,
    workload: &crate::workload::Workload,
    force: bool,
    clock: &SharedClock,
) -> Result<Option<Arc<Direct>>, StartError> {
    let Some(config) = kube else { return Ok(None) };
    let client = Client::new(config, Arc::clone(clock))?;
    Ok(Some(Arc::new(Direct::new(client, workload, force, Arc::clone(clock)))))
}

fn proxy_peers(envoy: &crate::envoy::Config) -> Peers {
    let own = nix::unistd::geteuid().as_raw();
    Peers::new(vec![envoy.user.map_or(own, |user| user.uid)])
}

async fn open_doors(plan: &Plan) -> Result<Doors, StartError> {
    let paths = &plan.paths;
    // The proxy's user enters it as its working directory.
    fsio::make_directory(&paths.run_directory(), 0o755)?;
    let lock = lock(paths)?;
    fsio::make_directory(&paths.state_directory(), 0o700)?;
    let address = plan.status.listen;
    let status = TcpListener::bind(address).await;
    let status = status.map_err(|source| StartError::Port { address, source })?;
    Ok(Doors {
        lock,
        status,
        admin: uds::bind(&paths.admin_socket())?,
        sds: uds::bind(&paths.sds_socket())?,
        xds: uds::bind(&paths.xds_socket())?,
        signals: Signals::new().map_err(StartError::Signals)?,
    })
}

/// The kernel lets go of the lock when the process ends, however it ends.
fn lock(paths: &Paths) -> Result<File, StartError> {
    let path = paths.lock_file();
    let failed = |source| FileError { action: "lock", path: path.clone(), source };
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::Running { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source).into()),
    }
}

/// Orders come one at a time from people.
const ORDERS: usize = 4;
