//! What the machines say of themselves: each agent's status and what each Envoy has counted, asked
//! for every second at the machine's status server. The control plane itself needs none of it.

mod counters;
mod fetch;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::picture::{Machine, Picture};
use super::{is_near, lock};
use counters::{Counters, History};

/// A machine by its own words.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Its agent's status; `None` while it does not answer.
    pub agent: Option<Agent>,
    /// TLS handshakes with callers.
    pub handshakes: u64,
    /// Requests and connections that a policy refused.
    pub denied: u64,
    /// Connections that came without mutual TLS where it is asked for.
    pub plain: u64,
}

/// The part of an agent's status that the picture shows.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Agent {
    /// Such as `ready`.
    pub phase: String,
    /// Its certificate.
    pub identity: Certificate,
    /// Its Envoy.
    pub proxy: Proxy,
    /// What is wrong.
    pub conditions: Vec<Condition>,
    /// Where its certificate came from, and when.
    #[serde(skip_serializing)]
    credential: Credential,
}

/// A machine's certificate. Times are RFC 3339.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Certificate {
    /// The serial number, lower-case hex.
    pub serial: Option<String>,
    /// When it came.
    #[serde(skip_deserializing)]
    pub since: Option<String>,
    /// When it ends.
    pub not_after: Option<String>,
}

/// A machine's Envoy.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Proxy {
    /// Such as `ready`.
    pub phase: String,
    /// Its version.
    pub version: Option<String>,
}

/// Something that is wrong on a machine.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Condition {
    /// Where.
    pub room: String,
    /// What.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Credential {
    rungs: Vec<Rung>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Rung {
    name: String,
    since: String,
}

/// Calls from one machine to another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flow {
    /// Who calls.
    pub from: String,
    /// Who is called.
    pub to: String,
    /// By which host.
    pub host: String,
    /// Requests since the caller's Envoy started.
    pub total: u64,
    /// Requests a second.
    pub rate: f64,
    /// Of these, those that a policy of the called machine refuses; where several machines call
    /// several others it is the most that it can be.
    pub refused_rate: f64,
    /// Whether mutual TLS protects it.
    pub mutual_tls: bool,
}

/// What is known of the machines now. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Telemetry {
    machines: Arc<Mutex<BTreeMap<Key, Known>>>,
}

/// Namespace and address: what a machine keeps when it goes and its entry stays.
type Key = (String, String);

#[derive(Debug, Default)]
struct Known {
    /// The name that it had while it was connected.
    name: Option<String>,
    agent: Option<Agent>,
    history: History,
}

impl Telemetry {
    /// Asks all machines of the picture again and again, at this port.
    pub(super) async fn follow(self, picture: impl Fn() -> Picture, port: u16) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let machines = picture().machines;
            let asked = machines.iter().take(MACHINES).filter_map(|machine| {
                let address: IpAddr =
                    machine.address.parse().ok().filter(|address| is_near(*address))?;
                Some(self.ask(machine, SocketAddr::new(address, port)))
            });
            join_all(asked).await;
            let there: Vec<Key> = machines.iter().map(key).collect();
            lock(&self.machines).retain(|key, _| there.contains(key));
        }
    }

    async fn ask(&self, machine: &Machine, address: SocketAddr) {
        let status = async { fetch::fetch(address, "/v1/status").await.ok() };
        let page = async { fetch::fetch(address, "/stats/prometheus?usedonly").await.ok() };
        let (status, page) = tokio::join!(status, page);
        let agent = status.and_then(|body| serde_json::from_slice(&body).ok()).map(dated);
        let mut machines = lock(&self.machines);
        let known = machines.entry(key(machine)).or_default();
        if machine.stream.is_some() {
            known.name = Some(machine.name.clone());
        }
        known.agent = agent;
        match page {
            Some(page) => {
                known.history.add(Instant::now(), Counters::read(&String::from_utf8_lossy(&page)))
            }
            None => known.history.pause(),
        }
    }

    /// Gives the machines of a picture that are not connected the names that they had.
    pub(super) fn name(&self, picture: &mut Picture) {
        let known = lock(&self.machines);
        for machine in picture.machines.iter_mut().filter(|machine| machine.stream.is_none()) {
            if let Some(name) = known.get(&key(machine)).and_then(|known| known.name.clone()) {
                machine.name = name;
            }
        }
    }

    /// What each machine says, in the order of the picture.
    pub(super) fn reports(&self, picture: &Picture) -> Vec<Report> {
        let known = lock(&self.machines);
        let report = |machine: &Machine| {
            let Some(known) = known.get(&key(machine)) else { return Report::default() };
            let counters = known.history.last().cloned().unwrap_or_default();
            Report {
                agent: known.agent.clone(),
                handshakes: counters.handshakes,
                denied: counters.denied,
                plain: counters.plain,
            }
        };
        picture.machines.iter().map(report).collect()
    }

    /// Who calls whom.
    pub(super) fn flows(&self, picture: &Picture) -> Vec<Flow> {
        let known = lock(&self.machines);
        let mut flows: Vec<Flow> = Vec::new();
        for caller in &picture.machines {
            let Some(from) = known.get(&key(caller)) else { continue };
            for (target, total) in from.history.last().iter().flat_map(|one| &one.calls) {
                let at = target.endpoint.parse::<SocketAddr>().map(|at| at.ip().to_string());
                let Some(at) = at.ok().filter(|_| *total > 0) else { continue };
                let called = picture.machines.iter().find(|machine| machine.address == at);
                let Some(called) = called.filter(|called| called.address != caller.address) else {
                    continue;
                };
                let rate = from.history.rate(|one| one.calls.get(target).copied().unwrap_or(0));
                let forbidden =
                    from.history.rate(|one| one.forbidden.get(&target.host).copied().unwrap_or(0));
                let denied =
                    known.get(&key(called)).map(|known| known.history.rate(|one| one.denied));
                flows.push(Flow {
                    from: caller.name.clone(),
                    to: called.name.clone(),
                    host: target.host.clone(),
                    total: *total,
                    rate,
                    refused_rate: forbidden.min(denied.unwrap_or(0.0)).min(rate),
                    mutual_tls: is_secured(picture, &target.host, &at),
                });
            }
        }
        flows
    }
}

fn is_secured(picture: &Picture, host: &str, address: &str) -> bool {
    let services = picture.services.iter().filter(|service| service.host == host);
    let mut endpoints = services.flat_map(|service| &service.endpoints);
    endpoints.any(|endpoint| endpoint.address == address && endpoint.secured)
}

/// Certificates are dated back: what the agent says of its credential tells when it came.
fn dated(mut agent: Agent) -> Agent {
    let rung = agent.credential.rungs.iter().find(|rung| rung.name == "certificate");
    agent.identity.since = rung.map(|rung| rung.since.clone());
    agent.conditions.truncate(CONDITIONS);
    agent
}

fn key(machine: &Machine) -> Key {
    (machine.namespace.clone(), machine.address.clone())
}

/// Often enough to look alive, and nothing beside what the machines do anyway.
const EVERY: Duration = Duration::from_secs(1);
/// A picture of more than these is none.
const MACHINES: usize = 64;
/// An agent has about a dozen rooms.
const CONDITIONS: usize = 20;
