//! The conversation with the service manager: readiness, state, watchdog, sockets that it keeps
//! while the agent is away, and what it is doing with our unit. It starts and stops nothing.

mod job;
mod store;

use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, interval, timeout};

use crate::base::printable;

pub use job::{Job, JobError, job};
pub use store::Kept;

/// A sender of service notifications. Outside a service manager every call does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceManager;

impl ServiceManager {
    /// Whether a service manager has started this process and listens to it.
    #[must_use]
    pub fn is_there(self) -> bool {
        std::env::var_os(SOCKET).is_some()
    }

    /// Says that the agent is ready, with one line about its state (sd_notify(3), `READY=1`). Said
    /// again, it ends what [`Self::reloading`] began.
    pub fn ready(self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&printable::message(status))]);
    }

    /// Says that the configuration is being read again (`RELOADING=1`).
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "The monotonic clock cannot be read."),
        }
    }

    /// Tells the service manager's status line (`STATUS=`).
    pub fn status(self, status: &str) {
        self.send(&[NotifyState::Status(&printable::message(status))]);
    }

    /// Says that the agent is on its way out (`STOPPING=1`).
    pub fn stopping(self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&printable::message(status))]);
    }

    /// Says that the agent is alive (`WATCHDOG=1`). Call it only after every critical task beat.
    pub fn alive(self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// Waits for something outside of the agent's tasks, at its start or stop, and says meanwhile that the agent is alive:
    /// for at most `limit`. What takes longer hangs, and the service manager ends it.
    pub async fn watched<T>(self, limit: Duration, work: impl Future<Output = T>) -> T {
        match self.watchdog_interval() {
            Some(pace) => beating(pace, limit, || self.alive(), work).await,
            None => work.await,
        }
    }

    /// How often [`Self::alive`] must be said: half of the unit's `WatchdogSec=`, or `None` where
    /// no watchdog is asked for.
    #[must_use]
    pub fn watchdog_interval(self) -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }

    /// Has a socket kept under this name while the agent is away (`FDSTORE=1`). One that is kept
    /// already is not kept twice. It is not watched for errors (`FDPOLL=0`): a listening socket
    /// has none that would make it useless.
    pub fn keep(self, name: &str, socket: BorrowedFd<'_>) {
        let states = [NotifyState::FdStore, NotifyState::FdName(name), UNWATCHED];
        if let Err(error) = sd_notify::notify_with_fds(&states, &[socket]) {
            tracing::debug!(%error, name, "The service manager did not keep a socket.");
        }
    }

    /// Has all sockets of this name forgotten (`FDSTOREREMOVE=1`).
    pub fn forget(self, name: &str) {
        self.send(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    /// Waits until the service manager has taken in all that was said so far (`BARRIER=1`): an
    /// address whose socket it forgets is free then.
    pub async fn heard(self) {
        let Ok((ours, theirs)) = std::io::pipe() else { return };
        if sd_notify::notify_with_fds(&[BARRIER], &[theirs.as_fd()]).is_err() {
            return;
        }
        drop(theirs);
        let Ok(mut ours) = pipe::Receiver::from_owned_fd(ours.into()) else { return };
        // It closes its end; one that is too old for that closes it too, as it cannot use it.
        if timeout(HEARD_LIMIT, ours.read(&mut [0])).await.is_err() {
            tracing::warn!("The service manager does not listen; going on.");
        }
    }

    fn send(self, states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            tracing::debug!(%error, "The service manager did not take a notification.");
        }
    }
}

/// Waits for something, and beats at this pace meanwhile, for at most `limit`.
async fn beating<T>(
    pace: Duration,
    limit: Duration,
    beat: impl Fn(),
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let end = Instant::now() + limit;
    let mut beats = interval(pace);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = beats.tick(), if Instant::now() < end => beat(),
        }
    }
}

const SOCKET: &str = "NOTIFY_SOCKET";
const BARRIER: NotifyState<'static> = NotifyState::Custom("BARRIER=1");
/// It hears within milliseconds, also when it is busy.
const HEARD_LIMIT: Duration = Duration::from_secs(2);
const UNWATCHED: NotifyState<'static> = NotifyState::Custom("FDPOLL=0");

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::sleep;

    use super::*;

    const PACE: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_something_takes_long_and_not_when_it_hangs() {
        let beats = Cell::new(0);
        let beat = || beats.set(beats.get() + 1);
        beating(PACE, Duration::from_secs(80), beat, sleep(Duration::from_secs(31))).await;
        assert_eq!(beats.get(), 11, "at once, and every three seconds");
        beats.set(0);
        beating(PACE, Duration::from_secs(10), beat, sleep(Duration::from_secs(600))).await;
        assert!(beats.get() <= 5, "{}", beats.get());
    }
}
