//! What is so now: one snapshot of all rooms, the pages that serve it, and the client that asks.
//! It changes nothing; commands that arrive here are handed to the agent as [`Order`]s.

mod admin;
mod caller;
mod client;
mod connections;
mod credential;
mod http;
mod metrics;
mod model;
mod scrape;

pub use admin::serve as serve_admin;
pub use caller::Orders;
#[cfg(any(test, fuzzing))]
pub use caller::is_local_host;
pub use client::{AskError, Wish, ask, order};
pub use credential::{CredentialView, RungView};
pub use http::{Config, serve};
pub use model::{
    Board, Condition, ConfigurationState, ControlPlaneView, IdentityView, Phase, SCHEMA, SdsView,
    Snapshot, Timings, WorkloadView,
};
pub use scrape::Sources;

use std::sync::Arc;

/// What the pages are made of, and where orders go.
#[derive(Clone)]
pub struct Desk {
    /// Makes the snapshot.
    pub board: Arc<Board>,
    /// Takes orders; a full queue refuses.
    pub orders: tokio::sync::mpsc::Sender<Order>,
}

/// Something that a caller with the right to it asks the agent to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take the proxy out of traffic, and stay.
    Drain,
    /// Take the proxy back into traffic.
    Undrain,
    /// Drain the proxy, and start it anew.
    RestartProxy,
    /// Read the configuration again.
    Reload,
    /// End, and leave the proxy to the next agent.
    StepAside,
    /// Get a new key and certificate now.
    Rotate,
    /// Drain, then stop.
    Stop,
    /// Stop without draining.
    Quit,
}
