//! The conversation with the service manager: READY, STATUS, STOPPING and the watchdog. It starts
//! and stops nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// A sender of service notifications. Outside a service manager every call does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceManager;

impl ServiceManager {
    /// Says that the agent is ready, with one line about its state (sd_notify(3), `READY=1`).
    pub fn ready(self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Tells the service manager's status line (`STATUS=`).
    pub fn status(self, status: &str) {
        self.send(&[NotifyState::Status(status)]);
    }

    /// Says that the agent is on its way out (`STOPPING=1`).
    pub fn stopping(self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// Says that the agent is alive (`WATCHDOG=1`). Call it only after every critical task beat.
    pub fn alive(self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// How often [`Self::alive`] must be said: half of the unit's `WatchdogSec=`, or `None` where
    /// no watchdog is asked for.
    #[must_use]
    pub fn watchdog_interval(self) -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }

    fn send(self, states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            tracing::debug!(%error, "The service manager did not take a notification.");
        }
    }
}
