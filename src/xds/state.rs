//! The relay's report: counters that cost nothing, and a phase that wakes whoever waits for it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::scan::Outline;
use super::{UpstreamPhase, UpstreamState};
use crate::base::clock::SharedClock;
use crate::base::trouble::Trouble;

/// The report while it is written.
pub(super) struct State {
    clock: SharedClock,
    now: Mutex<UpstreamState>,
    phase: watch::Sender<UpstreamPhase>,
}

impl State {
    pub(super) fn new(clock: SharedClock) -> Self {
        let now = Mutex::new(UpstreamState::default());
        Self { clock, now, phase: watch::Sender::new(UpstreamPhase::Idle) }
    }

    pub(super) fn snapshot(&self) -> UpstreamState {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn phase(&self) -> watch::Receiver<UpstreamPhase> {
        self.phase.subscribe()
    }

    pub(super) fn connecting(&self) {
        self.change(UpstreamPhase::Connecting, |_| {});
    }

    /// istiod has answered.
    pub(super) fn connected(&self, peer: String) {
        let since = self.clock.now();
        self.change(UpstreamPhase::Connected, |state| {
            state.connections = state.connections.saturating_add(1);
            state.connected_since = Some(since);
            state.peer = Some(peer);
            state.trouble = None;
        });
    }

    /// A try failed, or a stream ended; true in `established` when istiod had answered on it.
    pub(super) fn lost(
        &self,
        established: bool,
        make: impl FnOnce(std::time::SystemTime) -> Trouble,
    ) {
        let now = self.clock.now();
        let mut trouble = make(now);
        self.change(UpstreamPhase::Retrying, |state| {
            let count = if established { &mut state.terminations } else { &mut state.failures };
            *count = count.saturating_add(1);
            state.connected_since = None;
            if let Some(old) = &state.trouble {
                trouble.since = old.since;
            }
            state.trouble = Some(trouble);
        });
    }

    /// The proxy's stream is gone; another one will come.
    pub(super) fn idle(&self) {
        self.change(UpstreamPhase::Idle, |state| state.connected_since = None);
    }

    pub(super) fn request(&self, outline: &Outline<'_>) {
        self.count(|state| {
            state.requests = state.requests.saturating_add(1);
            if outline.nonce.is_empty() {
                return;
            }
            let known = state.types.len() < TYPES || state.types.contains_key(outline.type_url);
            let Some(verdicts) =
                known.then(|| state.types.entry(outline.type_url.to_owned()).or_default())
            else {
                return;
            };
            match outline.refusal {
                None => verdicts.acks = verdicts.acks.saturating_add(1),
                Some(words) => {
                    verdicts.nacks = verdicts.nacks.saturating_add(1);
                    state.rejected = state.rejected.saturating_add(1);
                    state.last_rejection = Some(words.chars().take(WORDS).collect());
                }
            }
        });
    }

    pub(super) fn response(&self) {
        self.count(|state| state.responses = state.responses.saturating_add(1));
    }

    fn count(&self, change: impl FnOnce(&mut UpstreamState)) {
        change(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn change(&self, phase: UpstreamPhase, change: impl FnOnce(&mut UpstreamState)) {
        self.count(|state| {
            state.phase = phase;
            change(state);
        });
        self.phase.send_replace(phase);
    }
}

/// Envoy knows about a dozen types.
const TYPES: usize = 64;
/// What is kept of the proxy's words.
const WORDS: usize = 1000;
