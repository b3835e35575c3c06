//! How the application is, from one check to the next.

use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::watch;

use super::{Config, Probe};
use crate::base::clock::{self, SharedClock};

/// How the application is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Health {
    /// Not checked yet.
    #[default]
    Unknown,
    /// It can take requests.
    Healthy,
    /// It cannot.
    Unhealthy {
        /// Why.
        message: String,
    },
}

/// The application at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct State {
    /// How it is.
    pub health: Health,
    /// What is checked, in words.
    pub probe: String,
    /// Since when it is so, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub since: Option<SystemTime>,
    /// Checks so far.
    pub checks: u64,
    /// Those that went wrong.
    pub failures: u64,
    /// What the last wrong one said.
    pub last_error: Option<String>,
}

/// Counts checks, and says when the application is another than before.
pub(super) struct Report {
    state: watch::Sender<State>,
    clock: SharedClock,
    success_threshold: u32,
    failure_threshold: u32,
    /// Checks in a row with the last result.
    good: u32,
    bad: u32,
}

impl Report {
    pub(super) fn new(config: &Config, state: watch::Sender<State>, clock: SharedClock) -> Self {
        let report = Self {
            state,
            clock,
            success_threshold: config.success_threshold.max(1),
            failure_threshold: config.failure_threshold.max(1),
            good: 0,
            bad: 0,
        };
        report.describe(config);
        report
    }

    /// Says what is checked.
    pub(super) fn describe(&self, config: &Config) {
        self.state.send_modify(|state| state.probe = words(config));
    }

    /// Without the proxy nobody reaches the application; there is nothing to wait for.
    pub(super) fn proxy_is_not_ready(&mut self) {
        (self.good, self.bad) = (0, 0);
        // Before the first time, nobody has been told anything else.
        if self.state.borrow().health != Health::Unknown {
            self.become_(Health::Unhealthy { message: "the proxy is not ready".to_owned() });
        }
    }

    pub(super) fn checked(&mut self, result: Result<(), String>) {
        let failed = result.is_err();
        self.state.send_if_modified(|state| {
            state.checks = state.checks.saturating_add(1);
            state.failures = state.failures.saturating_add(u64::from(failed));
            false
        });
        let unknown = self.state.borrow().health == Health::Unknown;
        match result {
            Ok(()) => {
                (self.good, self.bad) = (self.good.saturating_add(1), 0);
                if self.good >= self.success_threshold || unknown {
                    self.become_(Health::Healthy);
                }
            }
            Err(message) => {
                (self.good, self.bad) = (0, self.bad.saturating_add(1));
                tracing::debug!(message, times = self.bad, "A check of the application failed.");
                self.state.send_modify(|state| state.last_error = Some(message.clone()));
                if self.bad >= self.failure_threshold || unknown {
                    self.become_(Health::Unhealthy { message });
                }
            }
        }
    }

    fn become_(&self, health: Health) {
        let now = self.clock.now();
        self.state.send_if_modified(|state| {
            if state.health == health {
                return false;
            }
            let another_kind =
                std::mem::discriminant(&state.health) != std::mem::discriminant(&health);
            match &health {
                Health::Unhealthy { message } => {
                    tracing::warn!(message, "It cannot take requests.")
                }
                _ => tracing::info!(probe = state.probe, "It can take requests."),
            }
            if another_kind {
                state.since = Some(now);
            }
            state.health = health;
            true
        });
    }
}

/// A probe in words. Values of headers may be secrets and are not among them.
fn words(config: &Config) -> String {
    let target = config.target.to_string();
    let host = |host: &Option<String>| host.clone().unwrap_or_else(|| target.clone());
    match &config.probe {
        Probe::Exec { command } => format!("exec {}", command.first().cloned().unwrap_or_default()),
        Probe::Grpc { host: at, port, service } => {
            format!("gRPC health of {service:?} at {}:{port}", host(at))
        }
        Probe::Http(probe) => {
            let scheme = if probe.tls { "https" } else { "http" };
            let path = probe.path.split('?').next().unwrap_or_default();
            format!("GET {scheme}://{}:{}{path}", host(&probe.host), probe.port)
        }
        Probe::Proxy => "the proxy's readiness".to_owned(),
        Probe::Tcp { host: at, port } => format!("TCP connection to {}:{port}", host(at)),
    }
}
