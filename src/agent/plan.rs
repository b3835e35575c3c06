//! The floor plan: what each room gets, decided before any of them is opened.

mod capture;
mod credential;
mod facts;
mod names;
pub mod outline;
mod proxy;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::owner::own_name;
use crate::base::clock::{SharedClock, SkewGauge};
use crate::capture::Interception;
use crate::config::{self, Kubernetes, Mesh, Paths, RegistrationMode, Settings, Unfilled};
use crate::controlplane::{self, Dialer, Endpoint};
use crate::credential::{self as ladder, Ladder};
use crate::dns;
use crate::envoy::{self, BinaryError, UserError, find_binary, resolve_user};
use crate::health;
use crate::identity::SpiffeId;
use crate::kube::{self, Auth, Ca, KubeconfigError, from_kubeconfig};
use crate::platform;
use crate::registry::Mode;
use crate::sds;
use crate::secrets;
use crate::status::{self, Orders};
use crate::workload::{Address, Workload, auto_registered_name, source_address_towards};

pub use capture::CapturePlan;
pub use facts::FactsPlan;
pub(super) use facts::learn;
pub use outline::Outline;

/// What the rooms are made with.
pub struct Plan {
    /// Where everything lies.
    pub paths: Paths,
    /// Who the machine is.
    pub workload: Workload,
    /// What is known of it, and who can tell more.
    pub facts: FactsPlan,
    /// The line to istiod.
    pub discovery: controlplane::Config,
    /// The line to the certificate service.
    pub ca: controlplane::Config,
    /// Tokens for istiod.
    pub credential: ladder::Config,
    /// The vault.
    pub secrets: secrets::Config,
    /// The Kubernetes API, where we may use it.
    pub kube: Option<kube::Config>,
    /// The WorkloadEntry.
    pub registration: RegistrationPlan,
    /// Envoy.
    pub envoy: envoy::Config,
    /// Secrets of Envoy's from files.
    pub secret_files: sds::FilesConfig,
    /// Redirected traffic, where there is any.
    pub capture: Option<CapturePlan>,
    /// Names for applications, where they are answered.
    pub names: Option<dns::Config>,
    /// Checks of the application.
    pub health: health::Config,
    /// The status server.
    pub status: status::Config,
}

/// How the WorkloadEntry is written.
#[derive(Clone, Debug)]
pub struct RegistrationPlan {
    /// By whom.
    pub mode: Mode,
    /// Under which name.
    pub name: String,
    /// Whether fields that others own are taken over.
    pub force: bool,
    /// Whether it is removed when the agent stops.
    pub remove_on_stop: bool,
    /// How long others have to hear that the machine is leaving before its proxy drains.
    pub leave_delay: Duration,
    /// After which absence another machine has lost its name to this one.
    pub take_over_after: Duration,
    /// After which absence entries of siblings are removed; `None` for never.
    pub remove_stale_after: Option<Duration>,
    /// How long istiod keeps the entry of a machine whose stream has ended.
    pub grace: Duration,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There is no address that others could connect to.
    #[error("cannot tell this machine's address: {why}")]
    Address {
        /// What was tried.
        why: String,
    },
    /// There is no Envoy.
    #[error("cannot start a proxy")]
    Binary(#[from] BinaryError),
    /// Only root can redirect traffic, and start the proxy as somebody else.
    #[error("capture.mode: only root can redirect traffic")]
    CaptureNeedsRoot,
    /// What root's programs do could not be told from what the proxy does.
    #[error("capture.mode: the proxy must not run as root where traffic is captured (proxy.user)")]
    CaptureOfRoot,
    /// Templates cannot be filled in.
    #[error("the settings of the workload cannot be completed{}", because(.why))]
    Facts {
        /// Which, and what they lack.
        #[source]
        source: Unfilled,
        /// Why the cloud's facts are not known.
        why: Option<String>,
    },
    /// A group of a setting does not exist.
    #[error("there is no group {name:?} on this machine")]
    Group {
        /// Its name.
        name: String,
    },
    /// The kubeconfig cannot be used.
    #[error("cannot use the Kubernetes API")]
    Kubeconfig(#[from] KubeconfigError),
    /// The proxy's user does not exist.
    #[error("proxy.user cannot be used")]
    User(#[from] UserError),
}

/// Makes the plan. `launcher` is our own binary; `search_path` is where Envoy is looked for.
///
/// # Errors
/// When the host lacks something.
pub async fn plan(
    settings: &Settings,
    paths: &Paths,
    launcher: PathBuf,
    search_path: Option<OsString>,
    clock: &SharedClock,
) -> Result<Plan, PlanError> {
    let outline = Outline::new(settings, paths);
    let (workload, facts) = outline.workload(settings, paths, clock).await?;
    let Outline { id, discovery, ca, credential } = outline;
    let binary = find_binary(settings.proxy.binary.as_deref(), search_path.as_deref())?;
    let user = resolve_user(settings.proxy.user.as_deref())?;
    let kube = kubernetes(settings)?;
    let registration = registration(settings, &workload);
    let capture = capture::capture(settings, paths, &workload, user)?;
    let names = names::names(settings, paths, capture.is_some());
    let inputs = proxy::Inputs {
        settings,
        paths,
        workload: &workload,
        facts: &facts,
        registration: &registration,
    };
    let transparent = settings.capture.interception == Interception::Tproxy && capture.is_some();
    let choices = proxy::Choices { names: names.is_some(), transparent, launcher, binary, user };
    let envoy = proxy::proxy(&inputs, choices);
    let secret_files = proxy::secret_files(settings, paths, &envoy);
    let secrets = secrets::Config {
        source: settings.identity.source.clone(),
        id,
        state_directory: paths.state_directory(),
        root_cert: settings.mesh.root_cert.clone(),
        key_algorithm: settings.identity.key_algorithm,
        ttl: settings.identity.ttl,
        renew_at: settings.identity.renew_at,
        jitter: settings.identity.renew_jitter,
        export_directory: settings.identity.export_directory.clone(),
        skew: SkewGauge::default(),
    };
    let status = status_pages(settings, &envoy);
    let health = checks(settings, &workload);
    let paths = paths.clone();
    Ok(Plan {
        paths,
        workload,
        facts,
        discovery,
        ca,
        credential,
        secrets,
        kube,
        registration,
        envoy,
        secret_files,
        capture,
        names,
        health,
        status,
    })
}

/// Probes that name no host go to the machine's first address that is really here: the one that
/// others use may be a gateway's.
pub(super) fn checks(settings: &Settings, workload: &Workload) -> health::Config {
    let here = platform::interface_addresses();
    let mut own = workload.instance_ips.iter().copied();
    let own = own.find(|ip| here.iter().any(|(_, address)| address == ip));
    let target = settings.health.host.or(own).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    match &settings.health.probe {
        Some(probe) => health::Config { target, ..probe.clone() },
        None => health::Config::of_proxy(target),
    }
}

fn status_pages(settings: &Settings, envoy: &envoy::Config) -> status::Config {
    let wanted = &settings.status;
    status::Config {
        listen: wanted.listen,
        metrics_on_loopback_only: wanted.metrics_on_loopback_only,
        status_on_loopback_only: wanted.status_on_loopback_only,
        orders: if wanted.orders_of_root { Orders::Root } else { Orders::None },
        proxy_user: envoy.user.map(|user| user.uid),
        sources: status::Sources {
            proxy: wanted.proxy_metrics.then(|| {
                http::Uri::from_static(if envoy.only_ipv6 {
                    PROXY_METRICS_IPV6
                } else {
                    PROXY_METRICS
                })
            }),
            application: wanted.application_metrics.clone(),
        },
    }
}

fn line(settings: &Settings, endpoint: &Endpoint) -> controlplane::Config {
    let Mesh { discovery, connect_to, server_name, root_cert, cluster_id, .. } = &settings.mesh;
    // Another host than istiod is not behind istiod's gateway.
    let same_host = endpoint.host == discovery.host;
    controlplane::Config {
        endpoint: endpoint.clone(),
        connect_to: connect_to.clone().filter(|_| same_host),
        server_name: server_name.clone().filter(|_| same_host),
        root_cert: root_cert.clone(),
        cluster_id: cluster_id.clone(),
        step_limit: STEP_LIMIT,
    }
}

/// The machine's address and the cloud's facts are found out side by side.
async fn workload(
    settings: &Settings,
    paths: &Paths,
    id: SpiffeId,
    discovery: &controlplane::Config,
    clock: &SharedClock,
) -> Result<(Workload, FactsPlan), PlanError> {
    let wanted = &settings.workload;
    let found = platform::addresses();
    let way = Way { discovery, id: &id, clock };
    let own = async {
        if wanted.has_address() {
            return None;
        }
        Some(own_address(&way, &found, None).await)
    };
    let (own, facts) = tokio::join!(own, facts::gather(wanted, paths, clock));
    let known = &facts.state.facts;
    let unfilled = |source| PlanError::Facts { source, why: facts.lack() };
    let address = match (wanted.said_address(known).map_err(unfilled)?, own) {
        (None, Some(own)) => Address::Ip(own?),
        (None, None) => Address::Ip(own_address(&way, &found, None).await?),
        (Some(address), _) => address,
    };
    let wanted = wanted.complete(known, &address).map_err(unfilled)?;
    let name = wanted.name.clone().or_else(platform::host_name);
    let name = own_name(paths, name.unwrap_or_else(|| "vm".to_owned()));
    Ok((whole(wanted, (name, id), address, found), facts))
}

/// Who the machine is by its settings and addresses now, while the agent runs. It keeps its name,
/// and, while nobody can tell the way to istiod, its address.
///
/// # Errors
/// When it has no address, or its settings cannot be completed by the facts that are known.
pub(super) async fn workload_now(
    settings: &Settings,
    known: &platform::Facts,
    way: &Way<'_>,
    before: &Workload,
) -> Result<Workload, PlanError> {
    let wanted = &settings.workload;
    let found = platform::addresses();
    let unfilled = |source| PlanError::Facts { source, why: None };
    let address = match wanted.said_address(known).map_err(unfilled)? {
        Some(address) => address,
        None => Address::Ip(own_address(way, &found, before.address.ip()).await?),
    };
    let wanted = wanted.complete(known, &address).map_err(unfilled)?;
    Ok(whole(wanted, (before.name.clone(), before.id.clone()), address, found))
}

fn whole(
    wanted: config::Workload,
    (name, id): (String, SpiffeId),
    address: Address,
    found: Vec<IpAddr>,
) -> Workload {
    let mut instance_ips = wanted.instance_ips;
    if instance_ips.is_empty() {
        instance_ips.extend(address.ip());
        instance_ips.extend(found.into_iter().filter(|ip| Some(*ip) != address.ip()));
    }
    Workload {
        name,
        id,
        group: wanted.group,
        address,
        instance_ips,
        labels: wanted.labels,
        ports: wanted.ports,
        network: wanted.network,
        locality: wanted.locality,
        weight: wanted.weight,
    }
}

fn because(why: &Option<String>) -> String {
    why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default()
}

/// The way to istiod.
pub(super) struct Way<'a> {
    pub(super) discovery: &'a controlplane::Config,
    pub(super) id: &'a SpiffeId,
    pub(super) clock: &'a SharedClock,
}

/// The source address of the route to istiod; with istiod's name unresolvable, the one from before
/// while it is there, else the first address of an interface.
async fn own_address(
    way: &Way<'_>,
    found: &[IpAddr],
    before: Option<IpAddr>,
) -> Result<IpAddr, PlanError> {
    let Way { discovery, id, clock } = *way;
    let tokens = ladder::Config::without_tokens(id.clone());
    let tokens = Ladder::new(tokens, None, clock.clone());
    let dialer = Dialer::new(discovery.clone(), tokens, watch::channel(None).1, clock.clone());
    let why = match dialer.resolve().await {
        Ok(istiod) => match source_address_towards(istiod) {
            Ok(ip) => return Ok(ip),
            Err(error) => crate::base::trouble::chain(&error),
        },
        Err(error) => crate::base::trouble::chain(&error),
    };
    let kept = before.filter(|ip| found.contains(ip));
    kept.or_else(|| found.first().copied()).ok_or(PlanError::Address { why })
}

fn kubernetes(settings: &Settings) -> Result<Option<kube::Config>, PlanError> {
    Ok(match &settings.registration.kubernetes {
        None => None,
        Some(Kubernetes::Kubeconfig { path, context }) => {
            Some(from_kubeconfig(path, context.as_deref())?)
        }
        Some(Kubernetes::Parts { server, ca_file, token_file }) => Some(kube::Config {
            server: server.clone(),
            ca: Ca::File(ca_file.clone()),
            auth: Auth::TokenFile(token_file.clone()),
            tls_server_name: None,
        }),
    })
}

fn registration(settings: &Settings, workload: &Workload) -> RegistrationPlan {
    let wanted = &settings.registration;
    let mode = match wanted.mode {
        RegistrationMode::Istiod => Mode::Istiod,
        RegistrationMode::Kubernetes => Mode::Kubernetes,
        RegistrationMode::None => Mode::None,
    };
    RegistrationPlan {
        mode,
        name: entry_name(mode, workload),
        force: wanted.force,
        remove_on_stop: wanted.remove_on_stop,
        leave_delay: wanted.leave_delay,
        take_over_after: wanted.take_over_after,
        remove_stale_after: Some(wanted.remove_stale_after).filter(|after| !after.is_zero()),
        grace: wanted.grace_period,
    }
}

/// The name of the machine's entry.
pub(super) fn entry_name(mode: Mode, workload: &Workload) -> String {
    if mode != Mode::Istiod {
        return workload.name.clone();
    }
    let ip = workload.instance_ips.first().copied();
    let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    auto_registered_name(workload.group.as_deref().unwrap_or_default(), ip, &workload.network)
}

/// The limit of each step of a dial to the control plane.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Envoy's own page, from the listener in its bootstrap.
const PROXY_METRICS: &str = "http://127.0.0.1:15090/stats/prometheus";
const PROXY_METRICS_IPV6: &str = "http://[::1]:15090/stats/prometheus";
