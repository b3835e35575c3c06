//! Keeps the machine's identity: by renewal, or by following who renews it.

use std::sync::Arc;

use super::start::{StartError, never_ends};
use crate::base::tasks::Tasks;
use crate::ca::{IstiodIssuer, KubernetesIssuer};
use crate::controlplane::Dialer;
use crate::kube::Client;
use crate::secrets::{Source, Vault, follow_files, follow_workload_api, renew};

/// Starts the one loop that fits the source.
///
/// # Errors
/// When the source needs the Kubernetes API and there is none.
pub(super) fn keep(
    tasks: &Tasks,
    vault: &Vault,
    line: Dialer,
    kube: Option<&Arc<Client>>,
) -> Result<(), StartError> {
    let (vault, stop) = (vault.clone(), tasks.stop_signal());
    match vault.source().clone() {
        Source::Istiod => {
            let (refused, renewed) = (line.trust().refused.clone(), vault.clone());
            tasks.spawn("refusals", async move {
                loop {
                    // What istiod does not trust any more is of no use, however long it is valid.
                    refused.next().await;
                    renewed.renew_now();
                }
            });
            let issuer = IstiodIssuer::new(line);
            tasks.critical("renewal", never_ends(renew(vault, issuer, stop)));
        }
        Source::Kubernetes(api) => {
            let kube = Arc::clone(kube.ok_or(StartError::NoKubernetes)?);
            let id = vault.id().clone();
            let issuer = KubernetesIssuer::new(kube, api, id);
            tasks.critical("renewal", never_ends(renew(vault, issuer, stop)));
        }
        Source::Files(files) => {
            tasks.critical("identity", never_ends(follow_files(vault, files, stop)));
        }
        Source::Spiffe(socket) => {
            tasks.critical("identity", never_ends(follow_workload_api(vault, socket, stop)));
        }
    }
    Ok(())
}
