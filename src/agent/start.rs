//! The start: everything that can fail at once is done first, then the rooms run.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::bearings::Bearings;
use super::chronicle::Chronicle;
use super::doors::Doors;
use super::identity::Keeper;
use super::owner::settle;
use super::registration::Registration;
use super::reload::{Configuration, Reload};
use super::{Agent, Hears, Plan, facts, rooms, roots};
use crate::base::clock::SharedClock;
use crate::base::fsio::FileError;
use crate::base::tasks::Tasks;
use crate::base::uds::Peers;
use crate::config::{CaptureMode, Settings};
use crate::controlplane::{Dialer, Trust};
use crate::credential::Ladder;
use crate::dns;
use crate::envoy::{Supervisor, resolve_user};
use crate::health;
use crate::kube::{Client, KubeError};
use crate::sds;
use crate::secrets::Vault;
use crate::status::{self, Board, ConfigurationState, Desk};
use crate::systemd::Kept;
use crate::workload::Workload;
use crate::xds::{self, Relay};

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory or socket cannot be made.
    #[error("this host does not let the agent start")]
    File(#[from] FileError),
    /// A port for DNS is taken.
    #[error(transparent)]
    Dns(#[from] dns::OpenError),
    /// The proxy's group cannot be taken on.
    #[error("cannot take on the proxy's group, by which redirect rules know the agent")]
    Group(#[source] io::Error),
    /// The Kubernetes API cannot be used.
    #[error("the Kubernetes API cannot be used")]
    Kube(#[from] KubeError),
    /// Certificates come through the Kubernetes API, which is not set up.
    #[error("identity.source is kubernetes, but registration.kubernetes names no Kubernetes API")]
    NoKubernetes,
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

impl Agent {
    /// Starts an agent by the plan that was made of this configuration, with the sockets that the
    /// service manager kept.
    ///
    /// # Errors
    /// When the host refuses; nothing runs then.
    pub async fn start(
        mut plan: Plan,
        configuration: Configuration,
        kept: Kept,
        clock: SharedClock,
    ) -> Result<Self, StartError> {
        let doors = Doors::open(&plan, kept).await?;
        settle(&plan.paths, &plan.workload.name, plan.secrets.export_directory.as_deref())?;
        let (tasks, ends) = Tasks::new();
        let vault = Vault::open(plan.secrets.clone(), Arc::clone(&clock));
        let kube = client(&mut plan, &clock)?;
        let keeper = Keeper::new(vault.source().clone(), kube.as_ref())?;
        let ladder = Ladder::new(plan.credential.clone(), kube.as_ref(), Arc::clone(&clock));
        let dialer = Dialer::new(plan.ca.clone(), ladder.clone(), vault.subscribe(), clock.clone());
        let ca = dialer.with_trust(trust(&tasks, &plan, &vault, kube.as_ref(), &clock));
        let who = follow(&tasks, &plan, configuration, &clock);
        let registration = Registration::open(&plan, kube, who.workload.clone(), &clock)?;
        let (relay, says) = open_relay(&plan, &registration, &ca, &clock, &tasks);
        let Plan { paths, envoy, discovery, capture, .. } = plan;
        let secrets_for = secrets_for(&envoy, plan.secret_files, &clock);
        let (supervisor, proxy) = Supervisor::new(envoy, Arc::clone(&clock), tasks.clone());
        let up = rooms::readiness(&tasks, proxy.state());
        let captured = rooms::capture(&tasks, capture.as_ref(), up.clone(), says.delay, &clock);
        let names = rooms::names(&tasks, plan.names, doors.names, relay.name_table(), &clock);
        let health = health::Inputs { proxy: up, target: who.target };
        let health = rooms::health(&tasks, plan.health, health, &clock);
        let (draining, is_draining) = watch::channel(false);
        rooms::tell(&tasks, health.clone(), is_draining.clone(), proxy.state(), says.health);
        let (chronicle, registered, timings) = Chronicle::new(registration.wanted(), tasks.pulse());
        let known =
            facts::follow(&tasks, plan.facts, (plan.workload.address, paths.facts()), &clock);
        let board = Arc::new(Board {
            clock,
            skew: plan.secrets.skew,
            started: Instant::now(),
            workload: who.workload,
            configuration: who.configuration,
            facts: known,
            endpoint: discovery.endpoint.to_string(),
            identity: vault.subscribe(),
            credential: ladder.state(),
            renewal: vault.renewal(),
            upstream: relay.state(),
            registration: registered,
            proxy: proxy.state(),
            capture: captured,
            names,
            health,
            sds: Arc::clone(&secrets_for.counters),
            secret_files: secrets_for.files.trouble(),
            draining: is_draining,
            timings,
        });
        roots::settle(&tasks, vault.clone(), relay.state());
        serve_proxy(&tasks, &relay, doors.sds, doors.xds, secrets_for, &vault);
        rooms::credential(&tasks, ladder, &vault);
        // Before the first key: making one holds up everything for some ten milliseconds. Not a
        // child of the group's stop: it ends last, by its own handle.
        tasks.detached("proxy", supervisor.run());
        keeper.run(&tasks, &vault, ca);
        let chronicle = chronicle.run(Arc::clone(&board), registration.state(), says.admission);
        tasks.critical("chronicle", never_ends(chronicle));
        let orders = open_desk(&tasks, &board, plan.status, doors.status, doors.admin);
        let leaving = registration.run(&tasks, says.claims, relay.state(), says.services, capture);
        let hears = Hears { ends, orders, signals: doors.signals, reload: who.reload };
        Ok(Self { paths, tasks, hears, board, vault, proxy, leaving, draining, lock: doors.lock })
    }
}

/// What Envoy's secrets are served with.
fn secrets_for(
    envoy: &crate::envoy::Config,
    files: sds::FilesConfig,
    clock: &SharedClock,
) -> sds::Config {
    let files = sds::Files::new(files, Arc::clone(clock));
    sds::Config { peers: proxy_peers(envoy), counters: Arc::default(), files }
}

/// Who the machine is, while that may change.
struct Who {
    workload: watch::Receiver<Arc<Workload>>,
    target: watch::Receiver<IpAddr>,
    configuration: watch::Receiver<ConfigurationState>,
    reload: mpsc::Sender<()>,
}

fn follow(tasks: &Tasks, plan: &Plan, configuration: Configuration, clock: &SharedClock) -> Who {
    let (workload, seen) = watch::channel(Arc::new(plan.workload.clone()));
    let (target, aimed) = watch::channel(plan.health.target);
    let (reload, configuration) = Reload::new(configuration, Arc::clone(clock));
    let (order, ordered) = mpsc::channel(1);
    let (discovery, clock) = (plan.discovery.clone(), Arc::clone(clock));
    let facts = plan.facts.state.facts.clone();
    let bearings = Bearings { reload, discovery, facts, clock, workload, target };
    tasks.essential("bearings", bearings.run(ordered));
    Who { workload: seen, target: aimed, configuration, reload: order }
}

/// The one client of the Kubernetes API, where there is one.
fn client(plan: &mut Plan, clock: &SharedClock) -> Result<Option<Arc<Client>>, KubeError> {
    let Some(config) = plan.kube.take() else { return Ok(None) };
    let client = Client::new(config, Arc::clone(clock))?;
    Ok(Some(Arc::new(client.measuring(plan.secrets.skew.clone()))))
}

/// Whom the lines to istiod believe.
fn trust(
    tasks: &Tasks,
    plan: &Plan,
    vault: &Vault,
    kube: Option<&Arc<Client>>,
    clock: &SharedClock,
) -> Trust {
    let refresh = kube.map(|kube| {
        let keeper = roots::Keeper {
            kube: Arc::clone(kube),
            namespace: plan.workload.id.namespace().to_string(),
            root_cert: plan.secrets.root_cert.clone(),
            vault: vault.clone(),
            clock: Arc::clone(clock),
        };
        roots::keep(tasks, keeper)
    });
    Trust { learned: Some(vault.learned_roots()), refresh, ..Trust::default() }
}

/// Envoy's two doors: its secrets and its configuration.
fn serve_proxy(
    tasks: &Tasks,
    relay: &Relay,
    sds_door: UnixListener,
    xds_door: UnixListener,
    secrets_for: sds::Config,
    vault: &Vault,
) {
    let files = secrets_for.files.clone().run(tasks.stop_signal());
    tasks.critical("secret-files", never_ends(files));
    let sds = sds::serve(sds_door, secrets_for, vault.subscribe(), tasks.clone());
    tasks.critical("secrets", sds);
    tasks.critical("relay", relay.serve(xds_door));
}

/// What the relay is told while it runs.
struct Says {
    health: watch::Sender<Option<xds::Health>>,
    admission: watch::Sender<bool>,
    claims: watch::Sender<xds::Claims>,
    delay: rooms::Delay,
    services: rooms::Services,
}

fn open_relay(
    plan: &Plan,
    registration: &Registration,
    ca: &Dialer,
    clock: &SharedClock,
    tasks: &Tasks,
) -> (Relay, Says) {
    let (admission, admitted) = watch::channel(false);
    let (health, healthy) = watch::channel(None);
    let (claims, claimed) = watch::channel(registration.first_claims());
    let (inbound_delayed, is_delayed) = watch::channel(false);
    let inputs = xds::Inputs {
        health: healthy.clone(),
        admission: admitted,
        claims: claimed,
        inbound_delayed: is_delayed,
    };
    let config = xds::Config {
        peers: proxy_peers(&plan.envoy),
        name_table: plan.names.is_some(),
        workload: Arc::new(plan.workload.clone()),
        labels_of_entry: plan.registration.mode != crate::registry::Mode::Kubernetes,
        services_file: Some(plan.paths.services_record()),
        notice: plan.registration.leave_delay,
    };
    let line = ca.towards(&plan.discovery);
    let relay = xds::relay(config, line, inputs, Arc::clone(clock), tasks.clone());
    let delay = rooms::Delay { until: relay.inbound_delay(), delayed: inbound_delayed };
    let services = rooms::Services { health: healthy, inbound_delay: relay.inbound_delay() };
    (relay, Says { health, admission, claims, delay, services })
}

/// The redirect rules leave alone what is sent by the proxy's group: this process gets it beside its
/// own user, which many other programs have too. It has to be the first thing: names are looked up
/// and servers are dialled while the rules of an agent stand that is gone, or hangs.
///
/// # Errors
/// When the kernel refuses. A proxy's user that does not exist is for others to report.
pub fn join_proxy_group(settings: &Settings) -> Result<(), StartError> {
    if settings.capture.mode == CaptureMode::None {
        return Ok(());
    }
    let Ok(Some(user)) = resolve_user(settings.proxy.user.as_deref()) else { return Ok(()) };
    let gid = nix::unistd::Gid::from_raw(user.gid);
    if nix::unistd::getegid() == gid {
        return Ok(());
    }
    nix::unistd::setegid(gid).map_err(|error| StartError::Group(error.into()))
}

/// The pages of status and administration, and the orders that arrive there.
fn open_desk(
    tasks: &Tasks,
    board: &Arc<Board>,
    config: status::Config,
    status: TcpListener,
    admin: UnixListener,
) -> mpsc::Receiver<status::Order> {
    let (orders, taken) = mpsc::channel(ORDERS);
    let desk = Desk { board: Arc::clone(board), orders };
    tasks.critical("status", status::serve(status, config, desk.clone(), tasks.clone()));
    let own = Peers::new(vec![nix::unistd::geteuid().as_raw()]);
    tasks.critical("admin", status::serve_admin(admin, own, desk, tasks.stop_signal()));
    taken
}

pub(super) async fn never_ends(
    task: impl Future<Output = ()>,
) -> Result<(), std::convert::Infallible> {
    task.await;
    Ok(())
}

fn proxy_peers(envoy: &crate::envoy::Config) -> Peers {
    let own = nix::unistd::geteuid().as_raw();
    Peers::new(vec![envoy.user.map_or(own, |user| user.uid)])
}

/// Orders come one at a time from people.
const ORDERS: usize = 4;
