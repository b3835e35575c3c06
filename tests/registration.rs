//! The WorkloadEntry against the development mesh: kept true in our own hands, and left to istiod.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod bed;

#[path = "registration/changes.rs"]
mod changes;
#[path = "registration/copies.rs"]
mod copies;
#[path = "registration/kept.rs"]
mod kept;
#[path = "registration/names.rs"]
mod names;
#[path = "registration/restart.rs"]
mod restart;
#[path = "registration/world.rs"]
mod world;

use bed::Bed;
use serde_json::Value;

/// A bed whose agent may write its entry itself, and its access to the Kubernetes API.
async fn kubernetes_bed() -> (Bed, Value) {
    let bed = Bed::new().await;
    bed.mesh.grant("vms", "client");
    let kubernetes = bed.kubernetes();
    (bed, kubernetes)
}
