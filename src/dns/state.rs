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
    /// What is wrong with the resolvers.
    pub trouble: Option<Trouble>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) queries: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) forwarded: AtomicU64,
    pub(super) cached: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// Where the room writes it down.
pub(super) struct Ledger {
    pub(super) counters: Counters,
    state: watch::Sender<DnsState>,
    clock: SharedClock,
    /// When a query was left without an answer, last.
    silent_at: Mutex<Option<Instant>>,
}

impl Ledger {
    pub(super) fn new(listen: Vec<SocketAddr>, clock: SharedClock) -> Self {
        let state = watch::Sender::new(DnsState { listen, ..DnsState::default() });
        Self { counters: Counters::default(), state, clock, silent_at: Mutex::default() }
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
        state
    }

    pub(super) fn table(&self, names: usize, from_disk: bool) {
        let now = Some(self.clock.now());
        self.state.send_modify(|state| {
            (state.names, state.from_disk, state.since) = (names, from_disk, now);
        });
    }

    pub(super) fn resolvers(&self, servers: &[SocketAddr], problem: Option<&str>) {
        self.state.send_modify(|state| state.resolvers = servers.to_vec());
        match problem {
            Some(what) => self.wrong(what),
            None => self.resolvers_answer(),
        }
    }

    pub(super) fn resolvers_answer(&self) {
        self.state.send_if_modified(|state| {
            let own = |trouble: &Trouble| trouble.what.contains("is the agent itself");
            let passes = state.trouble.as_ref().is_some_and(|trouble| !own(trouble));
            if passes {
                state.trouble = None;
            }
            passes
        });
    }

    /// A silence that nobody has met again for a while says nothing about now.
    pub(super) fn fade(&self) {
        let mut silent_at = self.silent_at.lock().unwrap_or_else(PoisonError::into_inner);
        if silent_at.is_some_and(|at| at.elapsed() > FADES) {
            *silent_at = None;
            self.resolvers_answer();
        }
    }

    pub(super) fn resolvers_are_silent(&self) {
        let mut silent_at = self.silent_at.lock().unwrap_or_else(PoisonError::into_inner);
        *silent_at = Some(Instant::now());
        self.wrong("no resolver answers for names outside the mesh");
    }

    fn wrong(&self, what: &str) {
        let hint = "look at /etc/resolv.conf, or name resolvers with dns.upstreams";
        let now = self.clock.now();
        self.state.send_if_modified(|state| {
            if state.trouble.as_ref().is_some_and(|trouble| trouble.what == what) {
                return false;
            }
            let (what, hint) = (what.to_owned(), Some(hint.to_owned()));
            state.trouble = Some(Trouble { what, hint, retry: Retry::Soon, since: now });
            true
        });
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("counters", &self.counters).finish_non_exhaustive()
    }
}

/// Longer than programs take to ask again.
const FADES: Duration = Duration::from_secs(30);
