//! Asking Envoy how it is, and telling it what it has to know.

use std::time::Duration;

use super::{SupervisionError, Supervisor, Traffic};
use crate::base::backoff::Retry;
use crate::base::tasks::busy;
use crate::base::trouble::Trouble;
use crate::envoy::ProxyPhase;
use crate::envoy::admin::{Admin, Report};

impl Supervisor {
    /// Asks Envoy how it is; returns the pause until the next look.
    pub(super) async fn look(&mut self, admin: Admin) -> Duration {
        let _busy = busy("asking the proxy how it is", PATIENCE);
        let report = admin.report().await;
        if report.is_ok() && self.state.borrow().version.is_none() {
            self.learn_version(admin).await;
        }
        let report = match report {
            Ok(report) if report.ready => Ok(self.tell_traffic(admin, report).await),
            report => report,
        };
        let before = self.state.borrow().phase;
        let phase = match &report {
            Ok(Report { ready: true, drained: true, .. }) => ProxyPhase::Drained,
            Ok(Report { ready: true, .. }) => ProxyPhase::Ready,
            Ok(_) => ProxyPhase::Live,
            // One slow answer is no reason to call a proxy that serves dead.
            Err(_) => before,
        };
        let serves = matches!(phase, ProxyPhase::Ready | ProxyPhase::Drained);
        self.silences = if report.is_ok() { 0 } else { self.silences.saturating_add(1) };
        if serves && self.silences >= SILENT {
            self.report(&SupervisionError::Silent);
            return LOOK_SERVING;
        }
        if serves {
            self.deaths = 0;
        }
        let now = self.clock.now();
        self.state.send_if_modified(|state| {
            let config = report.as_ref().map_or(state.config, |report| report.config);
            let changed = state.phase != phase || state.config != config;
            state.config = config;
            if serves && state.phase != phase {
                match phase {
                    ProxyPhase::Drained => tracing::info!("The proxy is out of traffic."),
                    _ => tracing::info!("The proxy is ready."),
                }
                state.ready_since = state.ready_since.or(Some(now));
                state.trouble = None;
            }
            state.phase = phase;
            changed
        });
        if serves { LOOK_SERVING } else { LOOK_STARTING }
    }

    /// Takes a proxy that serves out of traffic, or back into it, as is wished; tried at each look
    /// until it works.
    async fn tell_traffic(&mut self, admin: Admin, report: Report) -> Report {
        let (told, drained, then) = match self.traffic {
            Traffic::AsFound => {
                self.traffic = if report.drained { Traffic::Out } else { Traffic::In };
                return report;
            }
            Traffic::In | Traffic::Out => return report,
            Traffic::Into => (admin.undrain().await, false, Traffic::In),
            Traffic::OutOf => (admin.drain().await, true, Traffic::Out),
        };
        match told {
            Ok(()) => {
                self.traffic = then;
                Report { drained, ..report }
            }
            Err(error) => {
                tracing::warn!(%error, "The proxy could not be told whether to take traffic.");
                report
            }
        }
    }

    /// For people; asked while it waits for its configuration.
    async fn learn_version(&self, admin: Admin) {
        match admin.version().await {
            Ok(version) => self.state.send_modify(|state| state.version = Some(version)),
            Err(error) => tracing::debug!(%error, "The proxy tells no version."),
        }
    }

    pub(super) fn report(&mut self, error: &SupervisionError) {
        let hint = "read the proxy's words above; `vm-agent config show` has its settings, and \
                    another binary can be named with --proxy-binary";
        let now = self.clock.now();
        let trouble = Trouble::new(error, Some(hint.to_owned()), Retry::Later, now);
        self.state.send_modify(|state| {
            state.phase = ProxyPhase::Failed;
            let since = state.trouble.as_ref().map_or(now, |old| old.since);
            state.trouble = Some(Trouble { since, ..trouble });
        });
    }
}

/// For some questions, each of which has a limit of its own.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so many unanswered looks a proxy that was ready is not called so any more.
const SILENT: u32 = 3;
pub(super) const LOOK_STARTING: Duration = Duration::from_millis(25);
const LOOK_SERVING: Duration = Duration::from_secs(2);
