//! What of a plan can be told part by part, for who wants to know which part of it fails.

use super::{CapturePlan, FactsPlan, PlanError, RegistrationPlan};
use crate::base::clock::SharedClock;
use crate::config::{Paths, Settings};
use crate::controlplane;
use crate::credential;
use crate::dns;
use crate::envoy::ProxyUser;
use crate::identity::SpiffeId;
use crate::kube;
use crate::workload::Workload;

/// What the settings say by themselves.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Who the machine wants to be.
    pub id: SpiffeId,
    /// The line to istiod.
    pub discovery: controlplane::Config,
    /// The line to the certificate service.
    pub ca: controlplane::Config,
    /// Tokens for istiod.
    pub credential: credential::Config,
}

impl Outline {
    /// The outline of these settings.
    #[must_use]
    pub fn new(settings: &Settings, paths: &Paths) -> Self {
        let id = SpiffeId::new(
            settings.mesh.trust_domain.clone(),
            settings.workload.namespace.clone(),
            settings.workload.service_account.clone(),
        );
        let discovery = super::line(settings, &settings.mesh.discovery);
        let ca = super::line(settings, &settings.mesh.ca);
        let credential = super::credential::credential(settings, paths, &id);
        Self { id, discovery, ca, credential }
    }

    /// Who the machine is, and what is known of it.
    ///
    /// # Errors
    /// When it has no address, or its settings cannot be completed.
    pub async fn workload(
        &self,
        settings: &Settings,
        paths: &Paths,
        clock: &SharedClock,
    ) -> Result<(Workload, FactsPlan), PlanError> {
        super::workload(settings, paths, self.id.clone(), &self.discovery, clock).await
    }
}

/// The Kubernetes API, where the settings name one.
///
/// # Errors
/// When the kubeconfig cannot be used.
pub fn kubernetes(settings: &Settings) -> Result<Option<kube::Config>, PlanError> {
    super::kubernetes(settings)
}

/// How the workload's WorkloadEntry is written.
#[must_use]
pub fn registration(settings: &Settings, workload: &Workload) -> RegistrationPlan {
    super::registration(settings, workload)
}

/// How the host's traffic is captured; `None` where it is not.
///
/// # Errors
/// When a group does not exist, or the proxy cannot be told from other programs.
pub fn capture(
    settings: &Settings,
    paths: &Paths,
    workload: &Workload,
    user: Option<ProxyUser>,
) -> Result<Option<CapturePlan>, PlanError> {
    super::capture::capture(settings, paths, workload, user)
}

/// How names are answered; `None` where they are not.
#[must_use]
pub fn names(settings: &Settings, paths: &Paths, captured: bool) -> Option<dns::Config> {
    super::names::names(settings, paths, captured)
}

/// The port of the proxy's admin interface.
#[must_use]
pub fn admin_port(settings: &Settings) -> u16 {
    settings.proxy.admin_port.unwrap_or(settings.mesh.proxy_config.admin_port)
}
