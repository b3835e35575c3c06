//! Who the machine is while the agent runs: its addresses and its reloaded settings are looked at
//! whenever they may have changed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::plan::{PlanError, Way, checks, workload_now};
use super::reload::Reload;
use crate::base::backoff::Backoff;
use crate::base::clock::SharedClock;
use crate::base::trouble::chain;
use crate::controlplane;
use crate::platform::{self, NetworkChanges};
use crate::workload::Workload;

/// Keeps the workload as it is now.
pub(super) struct Bearings {
    pub(super) reload: Reload,
    pub(super) discovery: controlplane::Config,
    /// The facts that this start was made with.
    pub(super) facts: platform::Facts,
    pub(super) clock: SharedClock,
    pub(super) workload: watch::Sender<Arc<Workload>>,
    /// Where probes of the application go.
    pub(super) target: watch::Sender<IpAddr>,
}

impl Bearings {
    /// Looks for ever. Each order reads the configuration again.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<()>) {
        let mut network = Network::new();
        loop {
            tokio::select! {
                () = network.changed() => {}
                Some(()) = orders.recv() => self.reload.read(),
            }
            if self.look().await {
                network.pause();
            }
        }
    }

    /// True when something has changed.
    async fn look(&self) -> bool {
        let before = Arc::clone(&self.workload.borrow());
        let settings = self.reload.settings();
        let way = Way { discovery: &self.discovery, id: &before.id, clock: &self.clock };
        let now = match workload_now(settings, &self.facts, &way, &before).await {
            Ok(now) => now,
            Err(error @ PlanError::Facts { .. }) => {
                tracing::warn!(error = chain(&error), "The machine stays who it was.");
                return false;
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "The machine's address stays as it was.");
                return false;
            }
        };
        if now == *before {
            return false;
        }
        if now.address != before.address {
            let (from, to) = (before.address.to_string(), now.address.to_string());
            tracing::info!(from, to, "This machine's address has changed.");
        }
        let target = checks(settings, &now).target;
        self.target.send_if_modified(|before| std::mem::replace(before, target) != target);
        self.workload.send_replace(Arc::new(now));
        true
    }
}

/// Says when the network may have changed.
struct Network {
    changes: Option<NetworkChanges>,
    pace: Backoff,
    not_before: Instant,
}

impl Network {
    fn new() -> Self {
        let changes = NetworkChanges::listen();
        if let Err(error) = &changes {
            tracing::warn!(%error, "The kernel does not tell when addresses change; they are looked at once a minute.");
        }
        let pace = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { changes: changes.ok(), pace, not_before: Instant::now() }
    }

    /// After a change, the next one may have to wait: an interface that comes and goes would have
    /// the machine registered again and again.
    fn pause(&mut self) {
        if self.not_before.elapsed() > QUIET {
            self.pace.reset();
        }
        self.not_before = Instant::now() + self.pace.next_delay();
    }

    async fn changed(&mut self) {
        let news = async {
            let heard = match &mut self.changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            };
            match (&mut self.changes, heard) {
                // What belongs together comes within moments.
                (Some(changes), Ok(())) => {
                    let end = Instant::now() + LONGEST_SETTLING;
                    while Instant::now() < end
                        && matches!(timeout(SETTLING, changes.next()).await, Ok(Ok(())))
                    {
                    }
                }
                _ => self.changes = None,
            }
            sleep_until(self.not_before).await;
        };
        tokio::select! {
            () = news => {}
            () = sleep(LOOK) => {}
        }
    }
}

/// An address that was added and the one that it replaces are one change.
const SETTLING: Duration = Duration::from_millis(50);
const LONGEST_SETTLING: Duration = Duration::from_millis(300);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// After a quiet time a change counts as the first one.
const QUIET: Duration = Duration::from_secs(60);
/// How often addresses are looked at though the kernel has said nothing: istiod may have moved to
/// where another route leads.
const LOOK: Duration = Duration::from_secs(60);
