//! The composition: rooms are made, connected, watched and stopped here, and nowhere else.

mod chronicle;
mod facts;
mod identity;
mod plan;
mod rooms;
mod roots;
mod signals;
mod start;
mod stop;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use plan::{CapturePlan, FactsPlan, Plan, PlanError, RegistrationPlan, plan};
pub use start::StartError;

use crate::base::tasks::{Ended, Tasks};
use crate::config::Paths;
use crate::envoy;
use crate::registry::Direct;
use crate::status::{Board, Order};

/// A running agent.
pub struct Agent {
    paths: Paths,
    tasks: Tasks,
    ends: mpsc::UnboundedReceiver<Ended>,
    orders: mpsc::Receiver<Order>,
    signals: signals::Signals,
    board: Arc<Board>,
    proxy: envoy::Handle,
    leaving: Leaving,
    draining: watch::Sender<bool>,
    /// Held as long as the agent runs: there is one for a root directory.
    #[expect(dead_code, reason = "held, not read")]
    lock: File,
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
}

/// Why a running agent shall end.
#[derive(Debug)]
pub enum Reason {
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
            tokio::select! {
                () = self.signals.stop() => return Reason::Stop,
                Some(ended) = self.ends.recv() => return Reason::Broken(ended),
                Some(order) = self.orders.recv() => match order {
                    Order::Stop => return Reason::Stop,
                    Order::Quit => return Reason::Quit,
                    Order::Drain => self.proxy.drain().await,
                },
            }
        }
    }
}

/// What a task has to finish what it does.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
