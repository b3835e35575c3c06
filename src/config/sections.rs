//! The settings, section by section.

mod capture;
mod credential;
mod dns;
mod facts;
mod health;
mod identity;
mod mesh;
mod proxy;
mod registration;
mod templates;
mod workload;

pub use capture::{Capture, CaptureMode};
pub use credential::Credential;
pub use dns::Dns;
pub use facts::Facts;
pub use health::Health;
pub use identity::Identity;
pub use mesh::Mesh;
pub use proxy::Proxy;
pub use registration::{Kubernetes, Registration, RegistrationMode};
pub use templates::{Templates, Unfilled};
pub use workload::Workload;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::paths::Paths;
use super::reader::Reader;
use crate::secrets::Source;

/// All settings, found good.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who the machine is.
    pub workload: Workload,
    /// The mesh that it joins.
    pub mesh: Mesh,
    /// Tokens for istiod.
    pub credential: Credential,
    /// Key and certificate.
    pub identity: Identity,
    /// The WorkloadEntry.
    pub registration: Registration,
    /// Envoy.
    pub proxy: Proxy,
    /// Redirected traffic.
    pub capture: Capture,
    /// Names.
    pub dns: Dns,
    /// Checks of the application.
    pub health: Health,
    /// The status server.
    pub status: Status,
    /// The log.
    pub log: Log,
}

/// `status`: the status server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether metrics are shown to this machine only.
    pub metrics_on_loopback_only: bool,
    /// Whether the status and its web page are shown to this machine only.
    pub status_on_loopback_only: bool,
    /// Whether root may give orders by `POST`.
    pub orders_of_root: bool,
    /// Whether Envoy's metrics are shown beside ours.
    pub proxy_metrics: bool,
    /// The application's own metrics page, shown there too.
    pub application_metrics: Option<http::Uri>,
}

/// `log`: the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line.
    pub json: bool,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

impl Settings {
    /// `None` when something that has no default is wrong; the reader knows what.
    pub(super) fn read(reader: &mut Reader<'_>, paths: &Paths) -> Option<Self> {
        let workload = Workload::read(reader);
        let mesh = Mesh::read(reader, paths);
        let credential = Credential::read(reader, paths);
        let identity = Identity::read(reader, paths);
        let registration = Registration::read(reader, paths);
        let proxy = Proxy::read(reader);
        let capture = Capture::read(reader, paths);
        let dns = Dns::read(reader);
        let health = Health::read(reader, mesh.as_ref().map(|mesh| &mesh.proxy_config));
        let status = read_status(reader, mesh.as_ref());
        let log = read_log(reader);
        let needs_group =
            registration.as_ref().map(|one| one.mode) == Some(RegistrationMode::Istiod);
        if needs_group && !reader.is_set("workload.group") {
            let what = "missing: the WorkloadGroup that istiod registers this machine into \
                        (or set registration.mode to kubernetes or none)";
            reader.wrong("workload.group", what.to_owned());
        }
        let signs = identity.as_ref().map(|identity| &identity.source);
        let has_api = registration.as_ref().is_some_and(|one| one.kubernetes.is_some());
        if matches!(signs, Some(Source::Kubernetes(_))) && !has_api {
            let what = "kubernetes needs the Kubernetes API (registration.kubernetes)".to_owned();
            reader.wrong("identity.source", what);
        }
        check_ports(reader, mesh.as_ref(), proxy.as_ref(), status.as_ref());
        if reader.has_problems() {
            return None;
        }
        Some(Self {
            workload: workload?,
            mesh: mesh?,
            credential: credential?,
            identity: identity?,
            registration: registration?,
            proxy: proxy?,
            capture: capture?,
            dns: dns?,
            health,
            status: status?,
            log,
        })
    }
}

fn read_status(reader: &mut Reader<'_>, mesh: Option<&Mesh>) -> Option<Status> {
    let address: Option<IpAddr> = reader.parse("status.address", "0.0.0.0");
    let usual = mesh.map_or(15_020, |mesh| u64::from(mesh.proxy_config.status_port));
    let port = reader.number("status.port", Some(usual), 1..=65_535)?;
    let listen = SocketAddr::new(address?, u16::try_from(port).ok()?);
    let access = [("any", false), ("loopback", true)];
    let metrics_on_loopback_only = reader.choice("status.metricsAccess", "any", &access)?;
    let status_on_loopback_only = reader.choice("status.access", "loopback", &access)?;
    let orders = [("none", false), ("root", true)];
    let orders_of_root = reader.choice("status.orders", "none", &orders)?;
    let proxy_metrics = reader.flag("status.proxyMetrics", true);
    let application_metrics = read_metrics_page(reader, listen.port());
    Some(Status {
        listen,
        metrics_on_loopback_only,
        status_on_loopback_only,
        orders_of_root,
        proxy_metrics,
        application_metrics,
    })
}

fn read_metrics_page(reader: &mut Reader<'_>, own_port: u16) -> Option<http::Uri> {
    let setting = "status.applicationMetrics";
    let page: http::Uri = reader.parse(setting, "")?;
    if page.scheme_str() != Some("http") || page.host().is_none() {
        let what = format!("found {page}, expected a URL such as http://127.0.0.1:9102/metrics");
        reader.wrong(setting, what);
    } else if page.port_u16() == Some(own_port) {
        reader.wrong(setting, format!("found {page}, which is the agent's own page"));
    }
    Some(page)
}

fn read_log(reader: &mut Reader<'_>) -> Log {
    let format = reader.text("log.format", "text").unwrap_or_default();
    if !["text", "json"].contains(&format.as_str()) {
        reader.wrong("log.format", format!("found {format:?}, expected text or json"));
    }
    let level = reader.text("log.level", "info").unwrap_or_default();
    if !["error", "warn", "info", "debug", "trace"].contains(&level.as_str()) {
        reader.wrong(
            "log.level",
            format!("found {level:?}, expected error, warn, info, debug or trace"),
        );
    }
    Log { json: format == "json", level }
}

/// Two servers of ours on one port would fail at the start, with less clear words.
fn check_ports(
    reader: &mut Reader<'_>,
    mesh: Option<&Mesh>,
    proxy: Option<&Proxy>,
    status: Option<&Status>,
) {
    let (Some(mesh), Some(proxy), Some(status)) = (mesh, proxy, status) else { return };
    let admin = proxy.admin_port.unwrap_or(mesh.proxy_config.admin_port);
    let both = "proxy.adminPort and status.port";
    for (setting, port) in [("proxy.adminPort", admin), ("status.port", status.listen.port())] {
        if ENVOY_PORTS.contains(&port) {
            let what = format!("found {port}, which the proxy listens on for its own status");
            reader.wrong(setting, what);
        }
    }
    if admin == status.listen.port() {
        let all = ["status.port", "proxy.adminPort", "mesh.proxyConfig.statusPort"];
        let said = all.into_iter().find(|setting| reader.is_set(setting));
        let what = format!("found {admin} for {both}: they must differ");
        reader.wrong(said.unwrap_or("mesh.proxyConfig.proxyAdminPort"), what);
    }
}

/// Envoy's readiness and Prometheus listeners, and those that istiod configures it with.
const ENVOY_PORTS: [u16; 4] = [15_001, 15_006, 15_021, 15_090];

/// A relative path of a setting means one below the directory that it belongs to.
fn below(directory: &Path, path: &Path) -> PathBuf {
    directory.join(path)
}
