//! The line between Envoy and istiod: an aggregated discovery server on a Unix socket whose streams
//! are relayed, byte for byte, to istiod. It keeps no configuration and never decodes Envoy's.
//!
//! # How the relay behaves
//!
//! One stream of Envoy is one connection and one stream to istiod, of the same flavour. A newer
//! stream of Envoy replaces an older one. Messages pass as opaque bytes, a few at a time;
//! only type, nonce, version and error are looked at.
//!
//! *Until istiod's first response* the upstream side is ours to exchange. Envoy's opening requests
//! (bounded) are kept and put again on the next connection, so Envoy's stream is simply held open
//! while istiod cannot be reached, refuses the stream or does not answer, and the pace of the tries
//! is our [`Backoff`](crate::base::backoff::Backoff), not Envoy's, which grows to half a minute.
//!
//! *After the first response* the two sides share a state that cannot be carried over. When istiod
//! is lost, Envoy's stream stays open (Envoy keeps its configuration) until a new connection to
//! istiod stands. Then Envoy's stream is ended with status OK: Envoy returns at once, since a
//! received message has reset its own backoff, tells all it has on its new stream, and that stream
//! is given the waiting connection. OK and not UNAVAILABLE, because Envoy waits equally long after
//! either and warns only about the latter.
//!
//! *Our own types*: after Envoy's first listener request we ask for the name table and tell the
//! workload's health, now and at each change. Name tables are taken out, published and
//! acknowledged; other types that Envoy does not know are dropped. These answers must follow
//! Envoy's first message, which alone carries the node.
//!
//! *The services of this machine* are compared with what istiod sends (the module `convergence`),
//! and istiod is asked anew, with a new stream, until they fit. Until then Envoy keeps what it has,
//! for a limited time.
//!
//! *A workload that becomes healthy* is an endpoint of the others about as soon as its own Envoy hears
//! which services it has. New inbound connections therefore wait from before the report until Envoy
//! has acknowledged the listeners of complete services, for a limited time.
//!
//! *A workload that becomes unhealthy* keeps its Envoy's configuration while the others hear of it:
//! istiod takes its services out of it at the same moment as it tells them.
//!
//! *What the machine says of itself* may change while Envoy runs: [`Claims`] then take the place of
//! what Envoy's node says, and istiod hears them in a new stream, since it looks at the node of a
//! stream's first request only. Where istiod must not hear them yet, Envoy's stream is held open.
//!
//! *What Envoy rejects* is shown as a condition, and requested again in a new stream after a pause
//! ([`rejections`]), for as long as Envoy rejects it.
//!
//! *No deadlock*: requests and responses are pumped independently, each with its own bounded queue,
//! so that a peer which does not read never keeps the relay from reading the other one.

mod convergence;
mod drain_hold;
mod exchange;
mod frames;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod node;
mod progress;
mod rejections;
mod requests;
mod scan;
mod service;
mod session;
mod shared;
mod state;
mod upstream;
mod wire;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::Instant;

pub use rejections::Rejection;
pub use state::{Phase, ServicesState, TypeCount, UpstreamState};
pub use upstream::{DialFailure, Line, Upstream};

use crate::base::clock::SharedClock;
use crate::base::tasks::Tasks;
use crate::base::uds::Peers;
use crate::controlplane::Dialer;
use crate::proto::names::Names;
use crate::workload::Workload;
use shared::Shared;

/// How the relay is to behave.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who may use the socket.
    pub peers: Peers,
    /// Whether to ask istiod for the name table.
    pub name_table: bool,
    /// Who Envoy was started as.
    pub workload: Arc<Workload>,
    /// Whether istiod may know labels of the workload that Envoy's node does not have: the entry is not
    /// made by the machine.
    pub labels_of_entry: bool,
    /// Where the ports that istiod has configured are kept over restarts of the agent.
    pub services_file: Option<PathBuf>,
    /// How long the other proxies have to hear that this machine takes no more requests, while its
    /// Envoy keeps what it has.
    pub notice: Duration,
}

/// What the relay is told while it runs.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The workload's health; `None` as long as it is unknown or nobody checks it.
    pub health: watch::Receiver<Option<Health>>,
    /// Istiod may be dialled once this is true, as istiod registers the workload at the first
    /// stream.
    pub admission: watch::Receiver<bool>,
    /// What the machine says of itself; each change of it ends the stream to istiod and opens
    /// another.
    pub claims: watch::Receiver<Claims>,
    /// Whether new inbound connections wait, as the relay has asked for ([`Relay::inbound_delay`]), or
    /// cannot be made to. Without a sender nothing makes them wait.
    pub inbound_delayed: watch::Receiver<bool>,
}

/// What the machine says of itself to istiod.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Who it is, where that is no longer what Envoy was started with.
    pub workload: Option<Arc<Workload>>,
    /// When istiod may hear it.
    pub opening: Opening,
}

/// When the next stream to istiod may be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opening {
    /// Not before this moment: istiod still has to forget something.
    At(Instant),
    /// Not before that changes.
    Closed,
    /// At once.
    #[default]
    Now,
}

impl Opening {
    fn is_due(self) -> bool {
        match self {
            Self::At(moment) => moment <= Instant::now(),
            Self::Closed => false,
            Self::Now => true,
        }
    }
}

/// The workload's health as told to istiod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Traffic may be sent.
    Healthy,
    /// Traffic must not be sent.
    Unhealthy {
        /// Why, for people; it becomes a condition of the WorkloadEntry.
        message: String,
    },
    /// The same, and its Envoy is about to end.
    Leaving {
        /// Why, for people.
        message: String,
    },
}

/// The relay's handle. Clones speak of the same relay.
pub struct Relay<U = Dialer> {
    shared: Arc<Shared<U>>,
}

/// A relay to the control plane that `dialer` reaches. Nothing happens until it is served.
#[must_use]
pub fn relay(
    config: Config,
    dialer: Dialer,
    inputs: Inputs,
    clock: SharedClock,
    tasks: Tasks,
) -> Relay {
    relay_over(config, dialer, inputs, clock, tasks)
}

/// A relay over any kind of line to the control plane.
#[must_use]
pub fn relay_over<U: Upstream>(
    config: Config,
    upstream: U,
    inputs: Inputs,
    clock: SharedClock,
    tasks: Tasks,
) -> Relay<U> {
    Relay { shared: Arc::new(Shared::new(config, upstream, inputs, clock, tasks)) }
}

impl<U: Upstream> Relay<U> {
    /// Serves Envoy at this socket until the task group stops.
    ///
    /// # Errors
    /// When the server cannot start. Troubles of single connections are logged, not returned.
    pub fn serve(
        &self,
        listener: UnixListener,
    ) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + use<U> {
        service::serve(Arc::clone(&self.shared), listener)
    }

    /// Until when new inbound connections are to wait, as Envoy does not have the services of this
    /// machine yet and others may come already.
    #[must_use]
    pub fn inbound_delay(&self) -> watch::Receiver<Option<Instant>> {
        self.shared.inbound_delay.subscribe()
    }

    /// The state of the line upstream. Watchers wake at changes of phase and trouble and at each
    /// refusal by Envoy; the counters inside are exact whenever the value is read.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<UpstreamState> {
        self.shared.ledger.watch()
    }

    /// The state now.
    #[must_use]
    pub fn snapshot(&self) -> UpstreamState {
        self.shared.ledger.watch().borrow().clone()
    }

    /// The last name table that istiod sent; it stays while istiod is away.
    #[must_use]
    pub fn name_table(&self) -> watch::Receiver<Option<Arc<Names>>> {
        self.shared.names.subscribe()
    }
}

impl<U> Clone for Relay<U> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[cfg(test)]
mod tests;
