//! Keeps the machine's identity: by renewal, or by following who renews it.

use std::sync::Arc;

use super::start::{StartError, never_ends};
use crate::base::tasks::Tasks;
use crate::ca::{IstiodIssuer, KubernetesIssuer};
use crate::controlplane::Dialer;
use crate::kube::Client;
use crate::secrets::{Source, Vault, follow_files, follow_workload_api, renew};

/// Where certificates come from, with what is needed there.
pub(super) struct Keeper {
    source: Source,
    kube: Option<Arc<Client>>,
}

impl Keeper {
    /// Checks that what is needed is there.
    ///
    /// # Errors
    /// When the source needs the Kubernetes API and there is none.
    pub(super) fn new(source: Source, kube: Option<&Arc<Client>>) -> Result<Self, StartError> {
        if matches!(source, Source::Kubernetes(_)) && kube.is_none() {
            return Err(StartError::NoKubernetes);
        }
        Ok(Self { source, kube: kube.cloned() })
    }

    /// Starts the one loop that fits.
    pub(super) fn run(self, tasks: &Tasks, vault: &Vault, line: Dialer) {
        let (vault, stop) = (vault.clone(), tasks.stop_signal());
        match (self.source, self.kube) {
            (Source::Istiod, _) => {
                let (refused, renewed) = (line.trust().refused.clone(), vault.clone());
                tasks.essential("refusals", async move {
                    loop {
                        // What istiod does not trust any more is of no use, however long it is valid.
                        refused.next().await;
                        renewed.renew_now();
                    }
                });
                let issuer = IstiodIssuer::new(line);
                tasks.critical("renewal", never_ends(renew(vault, issuer, stop)));
            }
            (Source::Kubernetes(api), Some(kube)) => {
                let id = vault.id().clone();
                let issuer = KubernetesIssuer::new(kube, api, id);
                tasks.critical("renewal", never_ends(renew(vault, issuer, stop)));
            }
            (Source::Files(files), _) => {
                tasks.critical("identity", never_ends(follow_files(vault, files, stop)));
            }
            (Source::Spiffe(socket), _) => {
                tasks.critical("identity", never_ends(follow_workload_api(vault, socket, stop)));
            }
            // Refused before.
            (Source::Kubernetes(_), None) => {}
        }
    }
}
