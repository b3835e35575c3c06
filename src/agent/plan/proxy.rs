//! How Envoy is started: its bootstrap and its arguments.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{FactsPlan, RegistrationPlan};
use crate::base::user_file::Opener;
use crate::config::{Paths, Settings};
use crate::envoy::{self, BootstrapInputs, ProxyUser, Register, bootstrap};
use crate::registry::Mode;
use crate::sds;
use crate::systemd::ServiceManager;
use crate::workload::{ProxyConfig, Workload};

/// What was found out before.
pub(super) struct Inputs<'a> {
    pub(super) settings: &'a Settings,
    pub(super) paths: &'a Paths,
    pub(super) workload: &'a Workload,
    pub(super) facts: &'a FactsPlan,
    pub(super) registration: &'a RegistrationPlan,
}

/// What was decided before.
pub(super) struct Choices {
    /// Whether the agent answers DNS queries of applications.
    pub(super) names: bool,
    /// Whether inbound connections arrive by transparent sockets.
    pub(super) transparent: bool,
    pub(super) launcher: PathBuf,
    pub(super) binary: PathBuf,
    pub(super) user: Option<ProxyUser>,
}

pub(super) fn proxy(inputs: &Inputs<'_>, choices: Choices) -> envoy::Config {
    let Inputs { settings, paths, workload, facts, registration } = *inputs;
    let Choices { names, transparent, launcher, binary, user } = choices;
    let mesh = &settings.mesh;
    let register = match registration.mode {
        Mode::Istiod => workload.group.clone().map_or(Register::None, Register::Group),
        Mode::Kubernetes => Register::Entry(registration.name.clone()),
        Mode::None => Register::None,
    };
    let admin_port = super::outline::admin_port(settings);
    let bootstrap = bootstrap(&BootstrapInputs {
        workload,
        proxy: &with_probe(&mesh.proxy_config),
        cluster_id: &mesh.cluster_id,
        mesh_id: &mesh.mesh_id,
        metadata: &mesh.metadata,
        platform: &facts.state.facts.cloud.node_metadata(),
        register,
        dns_capture: names,
        transparent,
        status_port: settings.status.listen.port(),
        admin_port,
    });
    let config = &mesh.proxy_config;
    let termination_drain = settings.proxy.termination_drain;
    envoy::Config {
        launcher,
        launch_socket: launch_socket(paths),
        binary,
        user,
        transparent,
        directory: paths.run_directory(),
        bootstrap,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        admin_port,
        log_level: settings.proxy.log_level.clone(),
        drain_time: config.drain_duration,
        termination_drain: termination_drain.unwrap_or(config.termination_drain_duration),
        concurrency: settings.proxy.concurrency.or(config.concurrency).filter(|&count| count > 0),
        only_ipv6: !workload.instance_ips.is_empty()
            && workload.instance_ips.iter().all(IpAddr::is_ipv6),
        extra_args: settings.proxy.extra_args.clone(),
    }
}

/// Files are opened with the proxy's rights, by the launcher where the agent has no right to act as
/// another user, and never below the agent's own directories.
pub(super) fn secret_files(
    settings: &Settings,
    paths: &Paths,
    envoy: &envoy::Config,
) -> sds::FilesConfig {
    let own = [paths.state_directory(), paths.config_directory(), paths.run_directory()];
    let real = own.iter().filter_map(|path| path.canonicalize().ok());
    let refused = own.iter().cloned().chain(real).collect();
    let opener =
        envoy.launch_socket.clone().map_or(Opener::Own, |socket| Opener::Launcher(socket.into()));
    sds::FilesConfig {
        opener,
        user: envoy.user.map(|user| (user.uid, user.gid)),
        allowed: settings.proxy.secret_directories.clone(),
        refused,
        every: SECRET_FILES,
    }
}

/// Only a service manager that has started us starts our proxy; it knows one root.
pub(super) fn launch_socket(paths: &Paths) -> Option<PathBuf> {
    let socket = paths.launch_socket();
    let is_served = ServiceManager.is_there() && paths.root() == Path::new("/");
    // An agent that cannot become another user has no other way: a socket that is missing now is tried at each start of
    // the proxy.
    (is_served && (socket.exists() || !may_change_user())).then_some(socket)
}

/// Whether this process may start programs as other users (capabilities(7)).
fn may_change_user() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SETUID))
}

/// istiod takes health reports only of machines that say that they are probed. Every machine is:
/// without a probe of the application it is as healthy as its proxy. So a machine gets its first
/// request when its proxy can take it, and none any more once it says that it is leaving.
fn with_probe(config: &ProxyConfig) -> ProxyConfig {
    let mut config = config.clone();
    let probe = || json!({"httpGet": {"path": "/healthz/ready", "port": 15_021}});
    let said = config.raw.get("readinessProbe").is_some_and(Value::is_object);
    if !said {
        config.raw.insert("readinessProbe".to_owned(), probe());
    }
    config
}

/// A change of a certificate file is served within this time, long before anything expires.
const SECRET_FILES: Duration = Duration::from_secs(5);
