//! Envoy: its binary, its bootstrap, its process, its admin interface. It never touches a key.

mod admin;
mod binary;
mod bootstrap;
mod fingerprint;
mod flavour;
mod handle;
mod launch;
mod launcher;
mod leftover;
mod logs;
mod note;
mod output;
mod process;
mod served;
mod supervisor;
mod trial;
mod user;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

pub use admin::{Page, page};
pub use binary::{BinaryError, find_binary, version_of};
pub use bootstrap::{BootstrapInputs, Register, bootstrap};
pub use flavour::{Build, Flavour, flavour_of};
pub use handle::Handle;
pub use launch::{LaunchArgs, LaunchError, launch, tell_version};
pub use launcher::{Allowed, serve_order};
pub use leftover::end_leftover;
pub use note::living;
pub use served::served;
pub use supervisor::Supervisor;
pub use user::{ProxyUser, UserError, resolve_user};

use crate::base::clock;
use crate::base::trouble::Trouble;

/// How Envoy is started and stopped.
#[derive(Clone, Debug)]
pub struct Config {
    /// The program that becomes Envoy by its hidden subcommand: ourselves.
    pub launcher: PathBuf,
    /// Behind which the service manager starts a launcher; without it we start Envoy ourselves.
    pub launch_socket: Option<PathBuf>,
    /// Envoy's binary.
    pub binary: PathBuf,
    /// Whom it runs as; `None` for our own user.
    pub user: Option<ProxyUser>,
    /// Whether it needs transparent sockets.
    pub transparent: bool,
    /// Its working directory, with its bootstrap and the sockets (paths in the bootstrap are
    /// relative to it, so that it need not be reachable by path for Envoy's user).
    pub directory: PathBuf,
    /// Its bootstrap.
    pub bootstrap: serde_json::Value,
    /// The version of the agent that made the bootstrap.
    pub version: String,
    /// The port of its admin interface on localhost.
    pub admin_port: u16,
    /// `--log-level`, optionally with components as Istio writes it: `warning,conn_handler:debug`.
    pub log_level: String,
    /// `--drain-time-s`.
    pub drain_time: Duration,
    /// How long it serves what it has when it is stopped.
    pub termination_drain: Duration,
    /// Worker threads; `None` for one per core.
    pub concurrency: Option<u32>,
    /// Whether the machine has only IPv6.
    pub only_ipv6: bool,
    /// Further arguments, as they are.
    pub extra_args: Vec<String>,
}

/// Where Envoy stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyPhase {
    /// Its process has just been started.
    #[default]
    Starting,
    /// Its admin interface answers.
    Live,
    /// It has its configuration and its workers run.
    Ready,
    /// It serves, but was taken out of traffic: others shall go elsewhere.
    Drained,
    /// It is on its way out, and serves what is under way.
    Draining,
    /// It ended by itself, and is started again after a pause.
    Backoff,
    /// It ends again and again; it is still tried.
    Failed,
    /// It was stopped.
    Stopped,
}

/// Who started the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyOrigin {
    /// An earlier agent.
    Adopted,
    /// This one.
    #[default]
    Started,
}

/// Envoy at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProxyState {
    /// Where it stands.
    pub phase: ProxyPhase,
    /// Its process.
    pub pid: Option<u32>,
    /// Who started it.
    pub origin: ProxyOrigin,
    /// The version of the agent that made its bootstrap, where this one would make another.
    pub bootstrap_of: Option<String>,
    /// The version of the running process.
    pub version: Option<String>,
    /// The version of the configured binary, where its trial has shown another file than the one that
    /// the running process was started from.
    pub installed_version: Option<String>,
    /// Starts after an end that nobody had asked for.
    pub restarts: u64,
    /// Starts that somebody asked for.
    pub ordered_restarts: u64,
    /// Restarts that somebody asked for and that were refused, as the trial had failed.
    pub refused_restarts: u64,
    /// When this process was started, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub started_at: Option<SystemTime>,
    /// Since when it is ready, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub ready_since: Option<SystemTime>,
    /// What it took and refused of its configuration.
    pub config: ConfigCounts,
    /// How it ended last.
    pub last_exit: Option<String>,
    /// Why it does not stay up.
    pub trouble: Option<Trouble>,
    /// Why what is configured cannot take the place of the running process.
    pub rejected_replacement: Option<Trouble>,
}

impl ProxyState {
    /// Whether it takes what is sent to it, in traffic or not.
    #[must_use]
    pub fn serves(&self) -> bool {
        use ProxyPhase::{Drained, Draining, Ready};
        self.ready_since.is_some() && matches!(self.phase, Ready | Drained | Draining)
    }
}

/// What Envoy says of its configuration (its statistics `cluster_manager.cds.*` and
/// `listener_manager.lds.*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigCounts {
    /// Updates of clusters that it took.
    pub cds_updates: u64,
    /// Updates of listeners that it took.
    pub lds_updates: u64,
    /// Updates of either that it refused.
    pub rejected: u64,
}

#[cfg(test)]
mod tests;
