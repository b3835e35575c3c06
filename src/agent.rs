//! The composition: rooms are made, connected, watched and stopped here, and nowhere else.

mod aftermath;
mod bearings;
mod chronicle;
mod claims;
mod doors;
mod facts;
mod identity;
mod machine;
mod machine_note;
mod owner;
mod plan;
mod proof;
mod registration;
mod reload;
mod rooms;
mod roots;
mod signals;
mod start;
mod stop;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use aftermath::tidy_up;
pub use machine::{known_instance, known_machine, machine};
pub use owner::last_name;
pub use plan::{CapturePlan, FactsPlan, Outline, Plan, PlanError, RegistrationPlan, outline, plan};
pub use proof::{ProofError, prove_identity, prove_registration};
pub use reload::Configuration;
pub use start::{StartError, join_proxy_group};

use crate::base::tasks::{Ended, Tasks};
use crate::config::Paths;
use crate::envoy;
use crate::registry::Direct;
use crate::secrets::Vault;
use crate::status::{Board, Order};
use crate::systemd::ServiceManager;
use crate::xds;
use signals::Told;

/// A running agent.
pub struct Agent {
    paths: Paths,
    tasks: Tasks,
    hears: Hears,
    board: Arc<Board>,
    vault: Vault,
    proxy: envoy::Handle,
    leaving: Leaving,
    draining: watch::Sender<bool>,
    /// Held as long as the agent runs: there is one for a root directory.
    #[expect(dead_code, reason = "held, not read")]
    lock: File,
}

/// What the agent obeys.
struct Hears {
    ends: mpsc::UnboundedReceiver<Ended>,
    orders: mpsc::Receiver<Order>,
    signals: signals::Signals,
    /// Has the configuration read again.
    reload: mpsc::Sender<()>,
}

/// What the way out needs.
struct Leaving {
    /// Whether the WorkloadEntry is removed.
    remove: bool,
    /// How long others have to hear that the machine is leaving.
    delay: Duration,
    registration: Option<Arc<Direct>>,
    /// Keeps the WorkloadEntry; stops before it is removed.
    registrar: Tasks,
    capture: Option<CapturePlan>,
    services: rooms::Services,
}

/// Why a running agent shall end.
#[derive(Debug)]
pub enum Reason {
    /// Another agent is started in a moment, and goes on with the proxy.
    StepAside,
    /// Somebody asked for it, and there is time to drain.
    Stop,
    /// Somebody asked for it at once.
    Quit,
    /// A task without which there is no agent ended by itself.
    Broken(Ended),
}

impl Agent {
    /// The state of all rooms.
    #[must_use]
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Waits for a reason to end. It can be dropped and called again.
    pub async fn reason(&mut self) -> Reason {
        loop {
            let Hears { ends, orders, signals, .. } = &mut self.hears;
            tokio::select! {
                // An order to step aside is followed by the signal of every stop.
                biased;
                Some(order) = orders.recv() => match order {
                    Order::StepAside => return Reason::StepAside,
                    Order::Stop => return Reason::Stop,
                    Order::Quit => return Reason::Quit,
                    Order::Drain => self.proxy.drain().await,
                    Order::Undrain => self.proxy.undrain().await,
                    Order::RestartProxy => self.restart_proxy(),
                    Order::Reload => self.reload(),
                    Order::Rotate => self.vault.renew_now(),
                },
                signal = signals.next() => match signal {
                    Told::Stop => return Reason::Stop,
                    Told::Reload => self.reload(),
                },
                Some(ended) = ends.recv() => return Reason::Broken(ended),
            }
        }
    }

    /// The proxy is drained and started anew while everything else goes on.
    fn restart_proxy(&self) {
        let (proxy, notice) = (self.proxy.clone(), self.notice());
        let services = self.leaving.services.clone();
        self.tasks.spawn("proxy-restart", async move {
            services.complete(notice).await;
            proxy.restart(notice).await;
        });
    }

    /// How long the others have to hear that this machine does not take requests: not at all where
    /// nobody can tell them.
    fn notice(&self) -> Duration {
        // Between two streams it is connecting, for a moment.
        let phase = self.board.upstream.borrow().phase;
        let told = matches!(phase, xds::Phase::Connected | xds::Phase::Connecting);
        let known = self.board.registration.borrow().registered;
        if told && known { self.leaving.delay } else { Duration::ZERO }
    }

    /// Of two orders in one moment one is enough. The chronicle tells when it was read.
    fn reload(&self) {
        ServiceManager.reloading();
        let _full = self.hears.reload.try_send(());
    }
}

/// What a task has to finish what it does.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
