//! Another root for the mesh, without a call that fails: first everybody is told of it, then it
//! signs, and when no certificate of the old root is left, the old root goes. The Kubernetes API
//! keeps its root, since machines are given that once.

use std::sync::Arc;
use std::time::Duration;

use super::pki::Authority;
use super::tls::Settings;
use super::{MeshError, State, lock};

/// The servers and what they are made from.
#[derive(Clone)]
pub(super) struct Servers {
    pub(super) state: Arc<State>,
    pub(super) istiod: Arc<Settings>,
    pub(super) kubernetes: Arc<Settings>,
}

impl Servers {
    /// Shows certificates of the authorities of now from the next handshake on.
    pub(super) fn renew(&self) -> Result<(), MeshError> {
        let (istiod, kubernetes) = self.state.settings()?;
        *lock(&self.istiod) = istiod;
        *lock(&self.kubernetes) = kubernetes;
        Ok(())
    }

    /// A root that is trusted and does not sign yet.
    pub(super) fn introduce(&self) -> Result<(), MeshError> {
        let options = &self.state.options;
        let new = Authority::new("devmesh", options.clock.now(), options.intermediate)?;
        lock(&self.state.authorities).introduce(new);
        self.changed()
    }

    /// The newest root signs, and the old ones are still trusted.
    pub(super) fn promote(&self) -> Result<(), MeshError> {
        lock(&self.state.authorities).promote();
        self.changed()
    }

    /// The old roots are the mesh's no more.
    pub(super) fn retire(&self) -> Result<(), MeshError> {
        lock(&self.state.authorities).retire_for_workloads();
        self.changed()
    }

    /// All steps, each as long after the one before as the longest-lived certificate lives.
    pub(super) async fn rotate(self, pause: Duration) -> Result<(), MeshError> {
        tracing::info!("A new root is told to all.");
        self.introduce()?;
        tokio::time::sleep(pause).await;
        tracing::info!("The new root signs.");
        self.promote()?;
        tokio::time::sleep(pause).await;
        tracing::info!("The old roots are not trusted any more.");
        self.retire()
    }

    fn changed(&self) -> Result<(), MeshError> {
        self.state.keep_authorities()?;
        self.state.ledger.touch();
        self.renew()
    }
}
