//! Feels the application's pulse and says how it is. It tells nobody else: who has to know is
//! connected by the agent.
//!
//! Probes mean what Istio's prober makes of a WorkloadGroup's `probe` (`pkg/istio-agent/health`),
//! with these differences: HTTPS probes do not check the certificate, as kubelet's do not; every
//! probe of this machine comes from the address that redirect rules let pass, so that it reaches the
//! application and not the proxy; a threshold that was passed counts as reached.

mod connect;
mod danger;
mod exec;
mod grpc;
mod http;
mod settings;
mod state;

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

pub use exec::{CommandError, check_command};
pub use grpc::answer as grpc_answer;
pub use http::quoted;
pub use settings::ProbeError;
pub use state::{Health, State};

use crate::base::clock::SharedClock;
use connect::Way;
use state::Report;

/// What is checked, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What is checked after the proxy's own readiness.
    pub probe: Probe,
    /// From the start to the first check.
    pub initial_delay: Duration,
    /// The limit of one check.
    pub timeout: Duration,
    /// From one check to the next.
    pub period: Duration,
    /// Good checks in a row that make a sick application a well one.
    pub success_threshold: u32,
    /// Bad checks in a row that make a well application a sick one.
    pub failure_threshold: u32,
    /// The machine's address: where probes go that name no host.
    pub target: IpAddr,
}

/// A check of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A command that ends with status 0.
    Exec {
        /// The program and its arguments; there is no shell.
        command: Vec<String>,
    },
    /// A service of `grpc.health.v1.Health` that serves.
    Grpc {
        /// Its host; the machine's address without one.
        host: Option<String>,
        /// Its port.
        port: u16,
        /// Its name; the server as a whole when empty.
        service: String,
    },
    /// A page that is there.
    Http(HttpProbe),
    /// Nothing but the proxy.
    Proxy,
    /// A port that can be connected to.
    Tcp {
        /// Its host; the machine's address without one.
        host: Option<String>,
        /// The port.
        port: u16,
    },
}

/// A page that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Whether it is served over TLS.
    pub tls: bool,
    /// Its host; the machine's address without one.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// Its path, with the query.
    pub path: String,
    /// Headers of the request.
    pub headers: Vec<(String, String)>,
}

/// What the checks follow.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Whether the proxy can take traffic.
    pub proxy: watch::Receiver<bool>,
    /// The machine's address, which takes the place of the configuration's.
    pub target: watch::Receiver<IpAddr>,
}

/// Checks until `stop`. The proxy comes first: without it the application is out of reach, however
/// well it is.
pub async fn watch(
    mut config: Config,
    inputs: Inputs,
    report: watch::Sender<State>,
    clock: SharedClock,
    stop: CancellationToken,
) {
    let Inputs { mut proxy, mut target } = inputs;
    config.target = *target.borrow_and_update();
    let mut report = Report::new(&config, report, clock);
    let checks = async {
        let start = Instant::now() + config.initial_delay;
        let mut next = interval_at(start, config.period.max(SHORTEST_PERIOD));
        next.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let up = *proxy.borrow_and_update();
            if !up {
                report.proxy_is_not_ready();
                if proxy.changed().await.is_err() {
                    return std::future::pending().await;
                }
                // What the application is like now is looked at when the proxy is back, at once.
                let soon = Instant::now().max(start);
                next.reset_at(soon);
                continue;
            }
            if config.probe == Probe::Proxy {
                report.checked(Ok(()));
                if proxy.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            tokio::select! {
                changed = proxy.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                _ = next.tick() => {
                    if target.has_changed().unwrap_or(false) {
                        config.target = *target.borrow_and_update();
                        report.describe(&config);
                    }
                    // A check may take long, and says nothing of a proxy that goes meanwhile.
                    tokio::select! {
                        Ok(_) = proxy.wait_for(|up| !up) => {}
                        checked = check(&config) => report.checked(checked),
                    }
                }
            }
        }
    };
    tokio::select! {
        () = checks => {}
        () = stop.cancelled() => {}
    }
}

/// One check, with its limit.
async fn check(config: &Config) -> Result<(), String> {
    let way = Way { target: config.target };
    let checked = async {
        match &config.probe {
            Probe::Exec { command } => exec::check(command).await,
            Probe::Grpc { host, port, service } => {
                grpc::check(way, host.as_deref(), *port, service).await
            }
            Probe::Http(probe) => http::check(way, probe).await,
            Probe::Proxy => Ok(()),
            Probe::Tcp { host, port } => {
                way.connect(host.as_deref(), *port).await.map(drop).map_err(|e| e.to_string())
            }
        }
    };
    match timeout(config.timeout, checked).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {:?}", config.timeout)),
    }
}

/// A probe is no load test.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
