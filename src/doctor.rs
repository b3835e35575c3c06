//! What is wrong with this machine, from its configuration to its data path: ordered checks, each
//! with its cause, its evidence and what mends it. It changes nothing: it reads files, dials by
//! itself, and asks the daemon where one runs.
//!
//! All checks are made side by side; [`order`] puts them in a row afterwards, in which the first
//! failure is the cause of those that it stands before.

mod cluster;
mod daemon;
mod finding;
mod host;
mod line;
mod order;
mod parcel;
mod proxy;
mod token;
mod traffic;

pub use crate::base::redact::redacted;
pub use cluster::{VERBS, forbidden_hint, forbidden_words, may_write_entries};
pub use finding::{Blame, Finding, Id, State};
pub use host::{is_held, is_locked, needed_ports};
pub use order::{Report, SCHEMA};
pub use parcel::{Parcel, Proxied, pages};

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use crate::agent::{Outline, join_proxy_group, outline};
use crate::base::clock::{SharedClock, SkewGauge};
use crate::base::problem::Problems;
use crate::base::trouble::chain;
use crate::config::{Loaded, Paths, Settings};
use crate::envoy::resolve_user;

/// What is examined.
pub struct Patient {
    /// Where everything lies.
    pub paths: Paths,
    /// The configuration file.
    pub config_file: PathBuf,
    /// The configuration, or what is wrong with it.
    pub configuration: Result<Loaded, Problems>,
    /// Where Envoy is looked for, as `$PATH`.
    pub search_path: Option<OsString>,
    /// What the daemon says.
    pub daemon: Answer,
    /// The service, where systemd runs this machine and the root is its own.
    pub unit: Option<Unit>,
    /// This machine's clock.
    pub clock: SharedClock,
}

/// What the daemon said when it was asked.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Its status.
    Status(Value),
    /// Nobody listens.
    Nobody,
    /// Somebody listens, and this is why there is no status.
    Silence(String),
}

impl Answer {
    /// The status, where there is one.
    #[must_use]
    pub fn status(&self) -> Option<&Value> {
        if let Self::Status(status) = self { Some(status) } else { None }
    }
}

/// The service as systemd shows it (`systemctl show`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// `LoadState`, such as `loaded` or `not-found`.
    pub load: String,
    /// `ActiveState`, such as `active` or `failed`.
    pub active: String,
    /// `UnitFileState`, such as `enabled`.
    pub file: String,
    /// `Result`, such as `success` or `exit-code`.
    pub result: String,
    /// `ExecMainStatus`: the last exit status.
    pub status: String,
}

/// Examines the machine.
pub async fn examine(patient: &Patient) -> Report {
    let Patient { paths, daemon, clock, .. } = patient;
    let mut all = vec![
        host::configuration(patient),
        host::disk(paths),
        host::unit(patient.unit.as_ref(), daemon.status().is_some()),
    ];
    all.extend(daemon::examine(patient));
    match &patient.configuration {
        Ok(Loaded { settings, .. }) => all.extend(configured(patient, settings).await),
        // A machine that has not joined yet can be looked at all the same.
        Err(_) => all.extend(proxy::examine(None, patient).await),
    }
    order::settle(all, clock.now(), paths.root())
}

/// What can be examined only with settings.
async fn configured(patient: &Patient, settings: &Settings) -> Vec<Finding> {
    let Patient { paths, clock, .. } = patient;
    let skew = SkewGauge::default();
    // Around the rules, which would lead to the proxy. Who is not root goes the way of applications.
    drop(join_proxy_group(settings));
    let mut plan = Outline::new(settings, paths);
    plan.discovery.step_limit = STEP_LIMIT;
    let case = Case { patient, settings, outline: &plan, skew: &skew };
    let user = resolve_user(settings.proxy.user.as_deref());
    let workload = timeout(LIMIT, plan.workload(settings, paths, clock)).await;
    let (address, workload) = host::address(workload);
    let workload = workload.as_ref();
    let (line, cluster, mut proxy) = tokio::join!(
        line::examine(&case),
        cluster::examine(&case, workload),
        proxy::examine(Some(settings), patient),
    );
    let (token, traffic) =
        tokio::join!(token::examine(&case), traffic::examine(&case, workload, &user));
    let mut all = vec![address, host::user(&user), host::ports(&case).await];
    all.extend(line.findings);
    all.push(line::clock(&case, line.clock, token.issued_at));
    all.extend(cluster);
    all.extend(token.findings);
    all.append(&mut proxy);
    all.extend(traffic);
    all
}

/// What the checks of a configured machine share.
#[derive(Clone, Copy)]
pub(in crate::doctor) struct Case<'a> {
    pub(in crate::doctor) patient: &'a Patient,
    pub(in crate::doctor) settings: &'a Settings,
    pub(in crate::doctor) outline: &'a Outline,
    /// What servers say of our clock.
    pub(in crate::doctor) skew: &'a SkewGauge,
}

impl Case<'_> {
    /// The client of the Kubernetes API; `None` where none is configured.
    pub(in crate::doctor) fn kube(&self) -> Result<Option<crate::kube::Client>, String> {
        let config = outline::kubernetes(self.settings).map_err(|error| chain(&error))?;
        let Some(config) = config else { return Ok(None) };
        let client = crate::kube::Client::new(config, self.patient.clock.clone());
        let client = client.map_err(|error| chain(&error))?;
        Ok(Some(client.measuring(self.skew.clone())))
    }
}

/// The limit of one check; the groups of checks are made side by side.
const LIMIT: Duration = Duration::from_secs(6);
/// The limit of each step of the dial to istiod.
const STEP_LIMIT: Duration = Duration::from_secs(3);
