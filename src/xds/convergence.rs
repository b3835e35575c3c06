//! Whether istiod configures Envoy to serve what this machine serves, and when it is asked anew.
//!
//! istiod decides which services a machine has when a stream begins and when its own push tells it
//! to, from a registry that may be a moment behind (Istio `serviceentry/controller.go`,
//! `pushWorkloadUpdates`; `xds/ads.go`, `computeProxyState`). A decision that was wrong stays: there
//! is no later event that corrects it. The relay therefore compares what istiod sends with what it
//! knows, and opens a new stream as long as they do not fit:
//!
//! * *endpoints* that contain this machine's address and port prove that the registry has it;
//! * *earlier inbound clusters* are expected again while the workload is the same and healthy,
//!   unless the services that they belonged to are gone;
//! * *a push of clusters after a report of health* says that istiod has taken note of the report.
//!
//! Without any evidence a change is followed by one resubscription, since a lost race looks like a
//! machine that no service selects.
//!
//! The *labels* by which policies select a workload are looked up at the beginning of a stream, too, and at
//! few pushes (Istio `model/context.go`, `SetWorkloadLabels`). Where Envoy's node lacks labels of the
//! WorkloadGroup, services that are pushed later may come without their policies: a DENY would not hold. So
//! they do not reach Envoy; a new stream begins, and istiod looks up both.
//!
//! While services are missing, Envoy keeps the clusters, listeners and routes that it has, for
//! [`HOLD`] at most.

mod memory;
mod view;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::wire::Flavour;
use crate::base::trouble::chain;
use crate::workload::Workload;
use memory::{Memory, Record, Subject};
use view::View;

/// The comparison, shared by all streams of one relay.
pub(super) struct Convergence {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    file: Option<PathBuf>,
}

struct State {
    memory: Memory,
    view: View,
    /// The stream of the view.
    stream: u64,
    /// The workload that the memory belongs to.
    subject: Option<Subject>,
    /// Its addresses.
    own: Vec<String>,
    kept: Option<BTreeSet<u16>>,
    /// Whether istiod may know labels that Envoy's node does not have.
    labels_of_entry: bool,
}

/// What follows from the comparison at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Whether a new stream is due.
    pub(super) renew: bool,
    /// Whether one may be due within moments: a connection for it is made beforehand.
    pub(super) expects_renewal: bool,
    /// When to decide again, if nothing happens before.
    pub(super) look_at: Option<Instant>,
    /// Whether Envoy has the listeners of services that are complete.
    pub(super) settled: bool,
    /// The result, for people.
    pub(super) report: Report,
}

/// The services of this machine as istiod has sent them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Ports that Envoy is configured to serve; `None` before istiod has sent clusters.
    pub(super) ports: Option<BTreeSet<u16>>,
    /// Ports that are missing for longer than it takes istiod to catch up.
    pub(super) missing: BTreeSet<u16>,
    /// Whether other workloads are sent to one of the missing ports.
    pub(super) proven: bool,
    /// New streams that were opened for services that were missing.
    pub(super) resubscriptions: u64,
}

impl Convergence {
    /// A comparison that keeps what it expects in this file.
    pub(super) fn new(file: Option<PathBuf>, labels_of_entry: bool) -> Self {
        let state = State {
            memory: Memory::default(),
            view: View::default(),
            stream: 0,
            subject: None,
            own: Vec::new(),
            kept: None,
            labels_of_entry,
        };
        Self { state: Mutex::new(state), changed: watch::Sender::new(()), file }
    }

    /// Wakes at everything that may change the decision.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A try of this stream of Envoy begins, for this workload.
    pub(super) fn begin(&self, stream: u64, workload: &Workload, is_healthy: bool) {
        let subject = Subject::of(workload);
        let mut state = self.locked();
        state.stream = stream;
        state.view = View::default();
        state.view.is_healthy = is_healthy;
        let ips = workload.address.ip().into_iter().chain(workload.instance_ips.iter().copied());
        state.own = ips.map(|ip| ip.to_string()).collect();
        if state.subject.as_ref() == Some(&subject) {
            return;
        }
        let is_first = state.subject.is_none();
        let (was_unhealthy, resubscriptions) =
            (state.memory.was_unhealthy, state.memory.resubscriptions);
        state.memory = Memory { was_unhealthy, resubscriptions, ..Memory::default() };
        if is_first && let Some(file) = &self.file {
            state.memory.expected = Record::read(file, &subject);
            state.kept = state.memory.expected.clone();
        } else {
            state.kept = None;
        }
        if !is_first {
            state.memory.changed();
        }
        state.subject = Some(subject);
    }

    /// What istiod derives the services from may have changed: the entry was made anew.
    pub(super) fn entry_changed(&self) {
        self.locked().memory.changed();
    }

    /// Envoy's first request for clusters on a stream, with its node as it was started.
    pub(super) fn envoy_asks(
        &self,
        stream: u64,
        flavour: Flavour,
        held: Option<Vec<&str>>,
        is_same: bool,
    ) {
        let Some(held) = held else { return };
        self.change(stream, |state| {
            state.view.envoy_holds = true;
            let ports: BTreeSet<u16> =
                held.into_iter().filter_map(super::scan::inbound_port).collect();
            if is_same && state.memory.expected.is_none() {
                state.memory.expected = (!ports.is_empty()).then(|| ports.clone());
            }
            let expected = state.memory.expected.as_ref();
            state.view.envoy_serves = flavour == Flavour::StateOfTheWorld
                || expected.is_some_and(|expected| expected.is_subset(&ports));
        });
    }

    /// istiod's first response came after this time.
    pub(super) fn answered(&self, stream: u64, after: Duration) {
        self.change(stream, |state| state.view.answer = after);
    }

    /// Whether a report of health on this stream makes the workload an endpoint of the others, as far as
    /// is known.
    pub(super) fn makes_endpoint(&self, stream: u64) -> bool {
        let state = self.locked();
        let has_services = state.view.envoy_serves || state.missing().is_some_and(|p| p.is_empty());
        let is_known = state.memory.expected.is_some() && !state.memory.was_unhealthy;
        state.stream == stream && !(is_known && has_services)
    }

    /// istiod is told on this stream whether the workload takes requests.
    pub(super) fn reported(&self, stream: u64, healthy: bool) {
        self.change(stream, |state| {
            let State { memory, view, .. } = state;
            view.is_healthy = healthy;
            if !healthy {
                view.reported = None;
                view.dropped = false;
                memory.was_unhealthy = true;
                memory.lacking_since = None;
                return;
            }
            if view.reported.is_none() {
                view.reported = Some(Instant::now());
                view.pushed = false;
            }
            if std::mem::take(&mut memory.was_unhealthy) {
                memory.unproven = Some(0);
                memory.tries = 0;
            } else if memory.expected.is_none() {
                // What the machine serves is not known yet.
                memory.unproven.get_or_insert(0);
            }
        });
    }

    /// istiod has sent clusters.
    pub(super) fn clusters(&self, stream: u64, flavour: Flavour, message: &[u8]) {
        self.change(stream, |state| {
            let State { memory, view, .. } = state;
            let complete = flavour == Flavour::StateOfTheWorld || view.ports().is_none();
            let (names, removed) = (flavour.cluster_names(message), flavour.removed_names(message));
            view.clusters(names, removed, complete, &memory.sources);
            let Some(ports) = view.ports() else { return };
            tracing::debug!(?ports, pushed = view.pushed, "istiod sent clusters");
            if ports.is_empty() && memory.expected.is_none() {
                return;
            }
            let mut expected = memory.expected.take().unwrap_or_default();
            let sources = &memory.sources;
            // A port whose services are all gone is not missing.
            expected.retain(|port| {
                ports.contains(port) || sources.get(port).is_none_or(|of| view.has_any(of))
            });
            expected.extend(&ports);
            memory.unserved.retain(|port| !ports.contains(port));
            memory.expected = Some(expected);
        });
        self.keep();
    }

    /// istiod has sent listeners.
    pub(super) fn listeners(&self, stream: u64) {
        self.change(stream, |state| state.view.listeners_sent += 1);
    }

    /// Envoy has accepted or rejected the listeners of a response.
    pub(super) fn listeners_acknowledged(&self, stream: u64) {
        self.change(stream, |state| state.view.listeners_acknowledged += 1);
    }

    /// istiod has sent endpoints.
    pub(super) fn endpoints(&self, stream: u64, flavour: Flavour, message: &[u8]) {
        self.change(stream, |state| {
            let State { memory, view, own, .. } = state;
            for assignment in flavour.assignments(message) {
                for port in view.endpoints(&assignment, own) {
                    memory.source(port, assignment.cluster().unwrap_or_default());
                }
            }
        });
    }

    /// A response is held back from Envoy on this stream.
    pub(super) fn held(&self, stream: u64) {
        self.change(stream, |state| state.view.held = true);
    }

    /// What was held back has been passed on.
    pub(super) fn released(&self, stream: u64) {
        if self.locked().view.held {
            self.change(stream, |state| state.view.held = false);
        }
    }

    /// Until when clusters, listeners and routes are held back from Envoy.
    pub(super) fn holds_until(&self, stream: u64) -> Option<Instant> {
        let mut state = self.locked();
        if state.stream != stream {
            return None;
        }
        let lacks_policies = state.lacks_policies();
        let is_unhealthy = state.memory.was_unhealthy && !state.view.is_healthy;
        if !lacks_policies && (!state.view.envoy_holds || is_unhealthy) {
            return None;
        }
        // What is held back is not passed when the services come after it: it would take them away
        // for a moment. A new stream, which is due then, brings all of it in one piece.
        if state.missing()?.is_empty() && !state.view.held && !lacks_policies {
            return None;
        }
        let since = *state.memory.lacking_since.get_or_insert_with(Instant::now);
        let end = since + HOLD;
        (Instant::now() < end).then_some(end)
    }

    /// A new stream is opened for services that are missing.
    pub(super) fn renewed(&self) {
        let mut state = self.locked();
        let memory = &mut state.memory;
        tracing::debug!(tries = memory.tries, "Opening a new stream for missing services");
        memory.tries = memory.tries.saturating_add(1);
        memory.resubscriptions = memory.resubscriptions.saturating_add(1);
        if let Some(unproven) = &mut memory.unproven {
            *unproven = unproven.saturating_add(1);
        }
    }

    /// What follows now for this stream.
    pub(super) fn decide(&self, stream: u64) -> Decision {
        let mut state = self.locked();
        if state.stream != stream {
            return Decision::wait(Report::default());
        }
        let decision = state.decide(Instant::now());
        drop(state);
        self.keep();
        decision
    }

    fn change(&self, stream: u64, change: impl FnOnce(&mut State)) {
        let mut state = self.locked();
        if state.stream == stream {
            change(&mut state);
            drop(state);
            self.changed.send_replace(());
        }
    }

    /// Writes what is expected, where that has changed.
    fn keep(&self) {
        let mut state = self.locked();
        let Some(file) = self.file.as_ref().filter(|_| state.kept != state.memory.expected) else {
            return;
        };
        state.kept = state.memory.expected.clone();
        let Some(workload) = state.subject.clone() else { return };
        let ports = state.kept.clone().unwrap_or_default();
        drop(state);
        if let Err(error) = (Record { workload, ports }).write(file) {
            tracing::warn!(error = chain(&error), "Cannot keep the ports that this machine serves");
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Decision {
    fn wait(report: Report) -> Self {
        Self { renew: false, expects_renewal: false, look_at: None, settled: false, report }
    }
}

impl State {
    /// Whether services may have come without the policies that select this workload by its labels.
    fn lacks_policies(&self) -> bool {
        self.labels_of_entry && self.view.late && self.memory.tries < LABEL_TRIES
    }

    /// Expected ports for which there is no inbound cluster; `None` before istiod has sent any.
    fn missing(&self) -> Option<BTreeSet<u16>> {
        let ports = self.view.ports()?;
        Some(
            self.memory.expected.iter().flatten().copied().filter(|p| !ports.contains(p)).collect(),
        )
    }

    fn decide(&mut self, now: Instant) -> Decision {
        let ports = self.view.ports();
        let resubscriptions = self.memory.resubscriptions;
        let report = Report { ports, resubscriptions, ..Report::default() };
        let (Some(reported), Some(missing)) = (self.view.reported, self.missing()) else {
            return Decision::wait(report);
        };
        let served = report.ports.clone().unwrap_or_default();
        let is_unserved =
            |port: &u16| !served.contains(port) && !self.memory.unserved.contains(port);
        let proven: BTreeSet<u16> =
            self.view.named_ports().into_iter().filter(is_unserved).collect();
        if missing.is_empty() && proven.is_empty() && !self.view.dropped {
            return self.complete(now, reported, report);
        }
        self.lacking(now, reported, &missing, &proven, report)
    }

    /// Nothing is known to be missing.
    fn complete(&mut self, now: Instant, reported: Instant, report: Report) -> Decision {
        let Self { memory, view, .. } = self;
        memory.lacking_since = None;
        let since = *memory.complete_since.get_or_insert(now);
        if now.duration_since(since) >= STEADY {
            memory.tries = 0;
        }
        if view.held {
            return Decision { renew: true, ..Decision::wait(report) };
        }
        let settled = view.has_listeners();
        let Some(unproven) = memory.unproven else {
            return Decision { settled, ..Decision::wait(report) };
        };
        let is_served = report.ports.as_ref().is_some_and(|ports| !ports.is_empty());
        let end = reported + PROBATION;
        if is_served || now >= end {
            memory.unproven = None;
            // No service selects this machine.
            memory.expected.get_or_insert_default();
            return Decision { settled, ..Decision::wait(report) };
        }
        let due = match unproven {
            0 | 1 if view.pushed => now,
            0 => reported + BLIND.max(view.answer.saturating_mul(ANSWERS)),
            _ => end,
        };
        let renew = due <= now;
        let expects_renewal = unproven == 0;
        Decision { renew, expects_renewal, look_at: Some(due), ..Decision::wait(report) }
    }

    fn lacking(
        &mut self,
        now: Instant,
        reported: Instant,
        missing: &BTreeSet<u16>,
        proven: &BTreeSet<u16>,
        report: Report,
    ) -> Decision {
        let Self { memory, view, .. } = self;
        if memory.complete_since.take().is_some_and(|since| now.duration_since(since) >= STEADY) {
            memory.tries = 0;
        }
        let since = *memory.lacking_since.get_or_insert(now);
        if missing.is_empty() && memory.tries >= UNSERVED_TRIES {
            tracing::warn!(
                ports = ?proven,
                "Other workloads are sent to ports for which istiod configures nothing here: \
                 services of another namespace name this machine's address"
            );
            memory.unserved.extend(proven);
            memory.tries = 0;
            return self.decide(now);
        }
        let alarm = since + HOLD;
        if proven.is_empty() && now >= since + FORGET {
            tracing::warn!(ports = ?missing, "istiod configures these ports no more: no service has them");
            memory.expected = memory.expected.take().map(|all| &all - missing);
            return self.decide(now);
        }
        let has_evidence = !proven.is_empty() || view.dropped || view.pushed;
        let due = match memory.tries {
            0 if has_evidence => now,
            tries => reported + pause(tries, view.answer),
        };
        let is_alarming = now >= alarm;
        let report = Report {
            missing: if is_alarming { missing.clone() } else { BTreeSet::new() },
            proven: !proven.is_empty(),
            ..report
        };
        let look_at = if is_alarming { due } else { due.min(alarm) };
        let expects_renewal = due.saturating_duration_since(now) < SOON;
        let renew = due <= now;
        Decision { renew, expects_renewal, look_at: Some(look_at), ..Decision::wait(report) }
    }
}

/// How long after its report a stream waits for the services before another one is opened.
fn pause(tries: u32, answer: Duration) -> Duration {
    let (first, answers) = if tries == 0 { (FIRST, ANSWERS) } else { (AGAIN, ANSWERS / 2) };
    let base = first.max(answer.saturating_mul(answers));
    let factor = 1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(SLOWEST.max(base))
}

/// How long Envoy keeps what it has while services are missing, and after which time that is a
/// condition: about eight new streams. An API server that istiod cannot reach for longer than that
/// is a disruption of its own.
const HOLD: Duration = Duration::from_secs(15);
/// How long the first stream after a change waits for istiod to take note of the report: it writes
/// the entry's status and sees it again.
const FIRST: Duration = Duration::from_millis(250);
/// How long the next one waits.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a stream waits at most.
const SLOWEST: Duration = Duration::from_secs(60);
/// How many times istiod's time for its first response are allowed for it to take note.
const ANSWERS: u32 = 4;
/// How many streams in a row are opened for labels at most.
const LABEL_TRIES: u32 = 3;
/// When a change without any evidence is followed by a resubscription.
const BLIND: Duration = Duration::from_secs(1);
/// A connection is made beforehand for a stream that is due within this time.
const SOON: Duration = Duration::from_secs(2);
/// After this time a push of clusters has nothing to do with a change any more.
const PROBATION: Duration = Duration::from_secs(30);
/// Services that were complete for this time begin a new row of tries when they go.
const STEADY: Duration = Duration::from_secs(10);
/// After which time ports are not expected any more: somebody has removed their services.
const FORGET: Duration = Duration::from_secs(600);
/// How often istiod is asked for ports that only endpoints speak of.
const UNSERVED_TRIES: u32 = 3;
