//! What is known of the line upstream, for people and for readiness. It decides nothing.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::watch;

use super::convergence::Report;
use super::rejections::{self, Rejection};
use super::upstream::StreamError;
use super::wire::{self, Request};
use crate::base::backoff::Retry;
use crate::base::clock;
use crate::base::excerpt::excerpt;
use crate::base::trouble::Trouble;

/// Where the line upstream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Envoy has no stream, or istiod may not be dialled yet.
    #[default]
    Idle,
    /// Envoy's stream waits for istiod's first response.
    Connecting,
    /// Istiod has responded on Envoy's stream.
    Connected,
    /// The last try failed or the stream was lost; the trouble says why.
    Retrying,
}

/// The line upstream as it is now and what it has seen. Counters run since the agent's start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UpstreamState {
    /// Where the line stands.
    pub phase: Phase,
    /// Since when istiod has been responding on this stream.
    #[serde(serialize_with = "clock::serialize_time")]
    pub connected_since: Option<SystemTime>,
    /// Connections to istiod that could be made.
    pub connections: u64,
    /// Tries that ended before istiod responded.
    pub failures: u64,
    /// Streams that ended after istiod had responded, other than by Envoy.
    pub terminations: u64,
    /// Requests passed from Envoy to istiod.
    pub requests: u64,
    /// Responses received from istiod.
    pub responses: u64,
    /// Responses refused (NACK): by Envoy, or by the agent where it is a name table.
    pub rejected: u64,
    /// The words of the last refusal, with the type refused.
    pub last_rejection: Option<String>,
    /// What Envoy has rejected and not accepted since, by type URL.
    pub rejections: BTreeMap<String, Rejection>,
    /// The same as a condition.
    pub rejected_configuration: Option<Trouble>,
    /// Answers by type URL.
    pub types: BTreeMap<String, TypeCount>,
    /// What is wrong, until istiod responds again.
    pub trouble: Option<Trouble>,
    /// The address of the istiod that is or was last in use.
    pub peer: Option<String>,
    /// The services of this machine as istiod has sent them.
    pub services: ServicesState,
}

/// What istiod configures Envoy to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServicesState {
    /// Ports with inbound configuration; `None` before istiod has sent clusters.
    pub ports: Option<Vec<u16>>,
    /// Ports that were configured before, or that other workloads are sent to, and for which
    /// inbound configuration has been missing for longer than istiod needs.
    pub missing: Vec<u16>,
    /// New streams that were opened because services were missing, or could have been. It counts
    /// from the agent's start.
    pub resubscriptions: u64,
    /// What is wrong, until nothing is missing.
    pub trouble: Option<Trouble>,
}

/// How responses of one type were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeCount {
    /// Responses taken.
    pub acks: u64,
    /// Responses refused.
    pub nacks: u64,
    /// True when the last response was refused: an older one is in force.
    pub refused: bool,
}

/// Keeps the state. Counting wakes no watcher; changes of phase, trouble and refusals do.
pub(super) struct Ledger {
    state: watch::Sender<UpstreamState>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { state: watch::Sender::new(UpstreamState::default()) }
    }

    pub(super) fn watch(&self) -> watch::Receiver<UpstreamState> {
        self.state.subscribe()
    }

    /// Changes the state without waking anyone.
    pub(super) fn count(&self, change: impl FnOnce(&mut UpstreamState)) {
        self.state.send_if_modified(|state| {
            change(state);
            false
        });
    }

    /// Enters a phase; an unchanged one wakes nobody.
    pub(super) fn enter(&self, phase: Phase) {
        self.state.send_if_modified(|state| {
            let changed = state.phase != phase;
            state.phase = phase;
            if phase != Phase::Connected {
                state.connected_since = None;
            }
            changed
        });
    }

    /// Enters `Connecting`, unless a trouble makes it a retry.
    pub(super) fn enter_dialling(&self) {
        let troubled = self.state.borrow().trouble.is_some();
        self.enter(if troubled { Phase::Retrying } else { Phase::Connecting });
    }

    /// Istiod has responded.
    pub(super) fn connected(&self, since: SystemTime) {
        self.state.send_modify(|state| {
            state.phase = Phase::Connected;
            state.connected_since = Some(since);
            state.trouble = None;
        });
    }

    /// Records a failure; true when it is another trouble than before.
    pub(super) fn failed(&self, error: &StreamError, now: SystemTime) -> bool {
        let mut trouble = Trouble::new(error, error.hint(), error.retry(), now);
        let mut is_new = true;
        self.state.send_modify(|state| {
            if let Some(known) = state.trouble.as_ref().filter(|known| known.what == trouble.what) {
                trouble.since = known.since;
                is_new = false;
            }
            state.phase = Phase::Retrying;
            state.connected_since = None;
            state.trouble = Some(trouble);
        });
        is_new
    }

    /// Takes a report on the services.
    pub(super) fn services(&self, report: Report, now: SystemTime) {
        self.state.send_if_modified(|state| {
            let missing: Vec<u16> = report.missing.into_iter().collect();
            let is_new = state.services.missing != missing;
            let known = state.services.trouble.take();
            let trouble = (!missing.is_empty()).then(|| {
                known
                    .filter(|_| !is_new)
                    .unwrap_or_else(|| missing_services(&missing, report.proven, now))
            });
            if let Some(trouble) = trouble.as_ref().filter(|_| is_new) {
                tracing::error!(error = %trouble, "Services of this machine are missing");
            } else if is_new {
                tracing::info!("istiod configures all services of this machine again");
            }
            state.services = ServicesState {
                ports: report.ports.map(|ports| ports.into_iter().collect()),
                missing,
                resubscriptions: report.resubscriptions,
                trouble,
            };
            is_new
        });
    }

    /// Counts a request and, where it answers a response, how. The reason of a rejection that is new
    /// is returned.
    pub(super) fn requested(&self, request: &Request<'_>, now: SystemTime) -> Option<Trouble> {
        self.count(|state| {
            state.requests += 1;
            if let Some(rejection) = state.rejections.get_mut(request.type_url) {
                rejection.requested = true;
            }
        });
        if request.nonce.is_empty() && request.error.is_none() {
            return None;
        }
        self.answered(request.type_url, request.error);
        self.judged(request, now)
    }

    /// Counts an answer to a response of this type: taken, or refused with these words.
    pub(super) fn answered(&self, type_url: &str, refusal: Option<&str>) {
        self.state.send_if_modified(|state| {
            if let Some(count) = entry(&mut state.types, type_url) {
                count.refused = refusal.is_some();
                *(if count.refused { &mut count.nacks } else { &mut count.acks }) += 1;
            }
            if let Some(words) = refusal {
                state.rejected += 1;
                let words = excerpt(words, REJECTION_LIMIT);
                state.last_rejection = Some(format!("{type_url}: {words}"));
            }
            refusal.is_some()
        });
    }

    /// Notes whether Envoy has accepted or rejected configuration of this type.
    fn judged(&self, request: &Request<'_>, now: SystemTime) -> Option<Trouble> {
        let (type_url, mut news) = (request.type_url, None);
        let is_known = self.state.borrow().types.contains_key(type_url);
        if !is_known || !wire::is_for_envoy(type_url) {
            return None;
        }
        self.state.send_if_modified(|state| {
            let Some(words) = request.error else {
                let cleared = state.rejections.remove(type_url).is_some();
                if cleared {
                    tracing::info!(type_url, "Envoy accepted configuration after a rejection");
                    state.rejected_configuration = rejections::condition(&state.rejections);
                }
                return cleared;
            };
            let reason = excerpt(words, REJECTION_LIMIT);
            let known = state.rejections.get(type_url);
            let is_new = known.is_none_or(|known| known.reason != reason);
            let rejection = Rejection {
                reason,
                since: known.map_or(Some(now), |known| known.since),
                times: known.map_or(0, |known| known.times).saturating_add(1),
                requested: true,
            };
            state.rejections.insert(type_url.to_owned(), rejection);
            state.rejected_configuration = rejections::condition(&state.rejections);
            news = state.rejected_configuration.clone().filter(|_| is_new);
            true
        });
        news
    }

    /// A stream begins: Envoy has not asked for anything in it.
    pub(super) fn stream_begins(&self) {
        self.count(|state| {
            state.rejections.values_mut().for_each(|rejection| rejection.requested = false);
        });
    }

    /// Forgets rejections of types that Envoy has not asked for in the current stream.
    pub(super) fn forget_unrequested(&self) {
        self.state.send_if_modified(|state| {
            let before = state.rejections.len();
            state.rejections.retain(|_, rejection| rejection.requested);
            state.rejected_configuration = rejections::condition(&state.rejections);
            before != state.rejections.len()
        });
    }
}

fn missing_services(ports: &[u16], proven: bool, now: SystemTime) -> Trouble {
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let why = if proven {
        "other workloads send requests to this machine"
    } else {
        "it did before, and the workload is the same"
    };
    Trouble {
        what: format!("istiod sends no inbound configuration for port {ports}, although {why}"),
        hint: Some(
            "check that the WorkloadEntry of this machine has the condition Healthy and the labels \
             that the service selects: `kubectl get workloadentries -o yaml`"
                .to_owned(),
        ),
        retry: Retry::Soon,
        since: now,
    }
}

fn entry<'a>(
    types: &'a mut BTreeMap<String, TypeCount>,
    type_url: &str,
) -> Option<&'a mut TypeCount> {
    if !types.contains_key(type_url) {
        if types.len() >= TYPES_LIMIT || type_url.len() > TYPE_URL_LIMIT {
            return None;
        }
        types.insert(type_url.to_owned(), TypeCount::default());
    }
    types.get_mut(type_url)
}

/// Characters kept of Envoy's words: enough for a human, not for a whole dump.
const REJECTION_LIMIT: usize = 1000;
/// Types counted; Envoy uses about a dozen.
const TYPES_LIMIT: usize = 64;
/// The longest type URL counted, in bytes.
const TYPE_URL_LIMIT: usize = 256;
