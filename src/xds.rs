//! The relay between the proxy and istiod: payloads pass as opaque bytes, nothing is kept.
//!
//! One stream of the proxy is one connection and one stream to istiod, of the same flavour. What
//! happens when istiod is away is our choice, not the proxy's backoff:
//!
//! * before the first answer the proxy's stream is held open and its requests are kept, few as they
//!   are, to be sent again on the next connection;
//! * after it, the stream is held open (the proxy keeps its configuration) until a new connection
//!   stands, and only then ended: the proxy subscribes again, with its own state, and its next
//!   stream gets that connection. So memory does not grow with the mesh, and recovery follows
//!   within moments of istiod's return.
//!
//! Our own types are taken out and put in: the name table, and the health of the application.

mod codec;
mod exchange;
mod intercept;
mod listener;
mod scan;
mod state;
mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::base::clock::{self, SharedClock};
use crate::base::tasks::Tasks;
use crate::base::trouble::Trouble;
use crate::base::uds::Peers;
use crate::controlplane::Dialer;
use crate::proto::nds::NameTable;

/// Who may connect, and what is asked for besides the proxy's own subscriptions.
#[derive(Clone, Debug)]
pub struct Config {
    /// The users whose processes may connect.
    pub peers: Peers,
    /// Whether to ask istiod for the name table.
    pub name_table: bool,
}

/// The application's health, as istiod is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It may get traffic.
    Healthy,
    /// It must not.
    Unhealthy {
        /// Why, in the WorkloadEntry's condition.
        message: String,
    },
}

/// What other rooms tell the relay.
#[derive(Clone)]
pub struct Inputs {
    /// The application's health; `None` while nobody probes it.
    pub health: watch::Receiver<Option<Health>>,
    /// istiod is not called before this is true (the WorkloadEntry has to stand first).
    pub admission: watch::Receiver<bool>,
}

/// Where the line to istiod stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamPhase {
    /// No proxy has asked yet.
    #[default]
    Idle,
    /// A connection or its first answer is awaited.
    Connecting,
    /// istiod has answered on this stream.
    Connected,
    /// The last try failed; another one follows.
    Retrying,
}

/// What the proxy said to the responses of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// Taken.
    pub acks: u64,
    /// Refused.
    pub nacks: u64,
}

/// The line to istiod at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UpstreamState {
    /// Where it stands.
    pub phase: UpstreamPhase,
    /// Since when istiod answers, RFC 3339.
    #[serde(serialize_with = "optional_rfc3339")]
    pub connected_since: Option<SystemTime>,
    /// istiod's address.
    pub peer: Option<String>,
    /// Streams on which istiod answered.
    pub connections: u64,
    /// Tries that failed.
    pub failures: u64,
    /// Streams that ended after istiod had answered.
    pub terminations: u64,
    /// Messages from the proxy to istiod.
    pub requests: u64,
    /// Messages from istiod to the proxy.
    pub responses: u64,
    /// Responses that the proxy refused.
    pub rejected: u64,
    /// The proxy's words about the last one.
    pub last_rejection: Option<String>,
    /// By type URL.
    pub types: BTreeMap<String, Verdicts>,
    /// Why istiod does not answer.
    pub trouble: Option<Trouble>,
}

fn optional_rfc3339<S: serde::Serializer>(
    at: &Option<SystemTime>,
    to: S,
) -> Result<S::Ok, S::Error> {
    at.map(clock::rfc3339).serialize(to)
}

/// The relay. Clones share it.
#[derive(Clone)]
pub struct Relay {
    shared: Arc<upstream::Shared>,
    tasks: Tasks,
}

impl Relay {
    /// A relay to the istiod behind this dialer.
    #[must_use]
    pub fn new(
        config: Config,
        dialer: Dialer,
        inputs: Inputs,
        clock: SharedClock,
        tasks: Tasks,
    ) -> Self {
        Self { shared: Arc::new(upstream::Shared::new(config, dialer, inputs, clock)), tasks }
    }

    /// Serves the proxy on a Unix socket until the tasks stop.
    ///
    /// # Errors
    /// When the server breaks.
    pub async fn serve(self, listener: UnixListener) -> Result<(), tonic::transport::Error> {
        listener::serve(listener, self.shared, self.tasks).await
    }

    /// The line to istiod now.
    #[must_use]
    pub fn snapshot(&self) -> UpstreamState {
        self.shared.state.snapshot()
    }

    /// The phase and the trouble, whenever one changes (the counters do not wake anybody).
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<UpstreamPhase> {
        self.shared.state.phase()
    }

    /// The name table that istiod sent last.
    #[must_use]
    pub fn name_table(&self) -> watch::Receiver<Option<Arc<NameTable>>> {
        self.shared.names.subscribe()
    }
}

#[cfg(test)]
mod tests;
