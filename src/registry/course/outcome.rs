//! What a look at the entry leads to: the state that is shown, and what istiod may be told.

use std::sync::Arc;

use serde_json::Value;

use super::{Course, Look};
use crate::base::backoff::Retry;
use crate::base::trouble::Trouble;
use crate::registry::direct::{RegisterError, Standing};
use crate::registry::fields;
use crate::workload::Workload;

impl Course<'_> {
    /// The entry is as far ours as it can be.
    pub(super) fn stands(&mut self, live: Value, kept: Value, workload: &Arc<Workload>) -> Look {
        let uid = live.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
        self.uid.clone_from(&uid);
        let now = self.direct.clock.now();
        if !self.direct.state.borrow().registered {
            tracing::info!(entry = workload.name, "The WorkloadEntry stands.");
        }
        let theirs = fields::drifted(&live, &self.wanted(workload));
        self.direct.keep(workload, uid.clone());
        self.direct.state.send_modify(|state| {
            // Fields of others are still a trouble.
            let trouble = state.trouble.take().filter(|_| !theirs.is_empty());
            state.stands(now);
            state.trouble = trouble;
            state.contested = theirs;
            state.applied_at = Some(now);
            state.applies = state.applies.saturating_add(1);
        });
        self.direct.standing.send_if_modified(|standing| {
            let now = Some(Standing { workload: Arc::clone(workload), uid });
            let changed = *standing != now;
            *standing = now;
            changed
        });
        Look { live, kept, settled: true }
    }

    /// The entry is another machine's.
    pub(in crate::registry) fn lost(&mut self, trouble: Trouble) {
        self.uid = None;
        self.recalled = None;
        self.direct.forget();
        let known = self.direct.state.borrow().trouble.clone();
        if known.is_none_or(|known| known.hint != trouble.hint) {
            tracing::error!(%trouble, "This machine is not registered.");
        }
        self.direct.state.send_modify(|state| state.lost(trouble));
        self.direct.standing.send_if_modified(|standing| standing.take().is_some());
    }

    pub(super) fn failed(&mut self, error: &RegisterError) {
        let trouble = Trouble::new(error, error.hint(), error.retry(), self.direct.clock.now());
        let is_new = self.failure.replace(trouble.what.clone()).as_ref() != Some(&trouble.what);
        if is_new {
            tracing::warn!(%trouble, "The WorkloadEntry could not be applied.");
        } else {
            tracing::debug!(%trouble, "The WorkloadEntry still could not be applied.");
        }
        let (is_known, uid) = match (&self.recalled, error) {
            // Only the server itself knows that there is no such entry.
            (Some(record), RegisterError::Kube(error)) if error.code() != Some(404) => {
                (true, record.uid.clone())
            }
            _ => (false, None),
        };
        let state = self.direct.state.borrow();
        let alarming = error.retry() != Retry::Soon || !state.registered || state.assumed;
        drop(state);
        self.direct.state.send_modify(|state| {
            if alarming {
                state.failed(trouble);
            }
        });
        if is_known {
            self.direct.assume(Arc::clone(&self.workload.borrow()), uid);
        }
    }
}
