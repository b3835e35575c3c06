//! What the room has to tell: counters, the table's age, and what is wrong with the resolvers.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::backoff::Retry;
use crate::base::clock::{self, SharedClock};
use crate::base::trouble::Trouble;
use crate::proto::names::LeftOut;

/// The room at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DnsState {
    /// Where queries arrive; empty when nobody is answered.
    pub listen: Vec<SocketAddr>,
    /// Names of the mesh.
    pub names: usize,
    /// Since when these are the names, RFC 3339.
    #[serde(serialize_with = "clock::serialize_time")]
    pub since: Option<SystemTime>,
    /// Whether they are still those of the last run.
    pub from_disk: bool,
    /// Who is asked for everything else.
    pub resolvers: Vec<SocketAddr>,
    /// Queries that came.
    pub queries: u64,
    /// Those answered from the table.
    pub answered: u64,
    /// Those that the resolvers were asked.
    pub forwarded: u64,
    /// Those answered by what the resolvers had said before.
    pub cached: u64,
    /// Those that no resolver answered.
    pub failures: u64,
    /// Those of other machines that may not ask here.
    pub refused: u64,
    /// Those that were dropped as their sender had more of them waiting than anybody else.
    pub dropped: u64,
    /// What is wrong: with the list of resolvers, else with the resolvers, else with the name table.
    pub trouble: Option<Trouble>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) queries: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) forwarded: AtomicU64,
    pub(super) cached: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// What can be wrong, each apart: one does not hide or end another.
#[derive(Debug, Default)]
struct Problems {
    /// The list of resolvers cannot be used, or names the agent itself.
    list: Option<Trouble>,
    /// No resolver answers.
    silence: Option<Trouble>,
    /// The name table is incomplete.
    table: Option<Trouble>,
    /// When that was logged last.
    logged: Option<Instant>,
}

impl Problems {
    fn shown(&self) -> Option<Trouble> {
        let Self { list, silence, table, .. } = self;
        list.as_ref().or(silence.as_ref()).or(table.as_ref()).cloned()
    }

    /// In a mesh that changes all the time a table is incomplete each time.
    fn log(&mut self, names: usize, left_out: LeftOut) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return;
        }
        self.logged = Some(Instant::now());
        tracing::warn!(
            names,
            left_out_names = left_out.names,
            left_out_addresses = left_out.addresses,
            "istiod's name table is larger than the limits; what is beyond them is not answered as names of the mesh."
        );
    }
}

/// Where the room writes it down.
pub(super) struct Ledger {
    pub(super) counters: Counters,
    state: watch::Sender<DnsState>,
    clock: SharedClock,
    problems: Mutex<Problems>,
}

impl Ledger {
    pub(super) fn new(listen: Vec<SocketAddr>, clock: SharedClock) -> Self {
        let state = watch::Sender::new(DnsState { listen, ..DnsState::default() });
        Self { counters: Counters::default(), state, clock, problems: Mutex::default() }
    }

    pub(super) fn watch(&self) -> watch::Receiver<DnsState> {
        self.state.subscribe()
    }

    /// The state with its counters as they are now.
    pub(super) fn snapshot(&self) -> DnsState {
        let mut state = self.state.borrow().clone();
        let counters = &self.counters;
        state.queries = counters.queries.load(Relaxed);
        state.answered = counters.answered.load(Relaxed);
        state.forwarded = counters.forwarded.load(Relaxed);
        state.cached = counters.cached.load(Relaxed);
        state.failures = counters.failures.load(Relaxed);
        state.refused = counters.refused.load(Relaxed);
        state.dropped = counters.dropped.load(Relaxed);
        state
    }

    /// Another table with this many names, and what of istiod's it does not have.
    pub(super) fn table(&self, names: usize, from_disk: bool, left_out: LeftOut) {
        let now = self.clock.now();
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let before = problems.table.take();
        if !left_out.is_nothing() {
            problems.log(names, left_out);
            problems.table = Some(Trouble {
                what: format!("istiod's name table is too large: {left_out} are left out"),
                hint: Some(TABLE_HINT.to_owned()),
                retry: Retry::Later,
                since: before.map_or(now, |before| before.since),
            });
        }
        let shown = problems.shown();
        self.state.send_modify(|state| {
            (state.names, state.from_disk, state.since) = (names, from_disk, Some(now));
            state.trouble = shown;
        });
    }

    /// Another list of resolvers: what was wrong with the ones before says nothing about it.
    pub(super) fn resolvers(&self, servers: &[SocketAddr], problem: Option<&str>) {
        self.state.send_modify(|state| state.resolvers = servers.to_vec());
        self.change(|problems| (&mut problems.list, problem));
        self.resolvers_answer();
    }

    pub(super) fn resolvers_answer(&self) {
        self.change(|problems| (&mut problems.silence, None));
    }

    pub(super) fn resolvers_are_silent(&self) {
        self.change(|problems| (&mut problems.silence, Some(SILENT)));
    }

    /// Sets or ends one problem; the time since when it is there stays while it is the same.
    fn change<'a>(
        &self,
        which: impl FnOnce(&mut Problems) -> (&mut Option<Trouble>, Option<&'a str>),
    ) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let (problem, what) = which(&mut problems);
        if problem.as_ref().map(|problem| &*problem.what) == what {
            return;
        }
        let since = self.clock.now();
        *problem = what.map(|what| Trouble {
            what: what.to_owned(),
            hint: Some(HINT.to_owned()),
            retry: Retry::Soon,
            since,
        });
        let shown = problems.shown();
        self.state.send_modify(|state| state.trouble = shown);
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("counters", &self.counters).finish_non_exhaustive()
    }
}

const SILENT: &str = "no resolver answers for names outside the mesh";
const TABLE_HINT: &str = "let this machine see fewer services: egress.hosts of a Sidecar resource in its namespace, or \
     exportTo of the services";
/// The shortest time between two lines of the log about an incomplete table.
const LOG_PAUSE: Duration = Duration::from_secs(600);
const HINT: &str = "look at /etc/resolv.conf, or name resolvers with dns.upstreams";
