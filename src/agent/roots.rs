//! Fetches the mesh's roots through the Kubernetes API when istiod shows a root that we do not
//! know: the API server's own certificate does not depend on the mesh's root.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::base::fsio;
use crate::base::tasks::Tasks;
use crate::base::trouble::{Trouble, chain};
use crate::controlplane::{RootQuestion, RootRefresh, read_roots};
use crate::identity::{Roots, RootsError};
use crate::kube::{Client, KubeError, Object};
use crate::secrets::Vault;
use crate::xds::{Phase, UpstreamState};

/// Who fetches, from where, and what for.
pub(super) struct Keeper {
    pub(super) kube: Arc<Client>,
    pub(super) namespace: String,
    pub(super) root_cert: PathBuf,
    pub(super) vault: Vault,
    pub(super) clock: SharedClock,
}

/// Roots that were not fetched.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error("istiod shows an unknown root, and the mesh's roots cannot be fetched")]
    Kube(#[from] KubeError),
    #[error("istiod shows an unknown root, and the ConfigMap {MAP} of {namespace} has no {KEY}")]
    Empty { namespace: String },
    #[error("istiod shows an unknown root, and the ConfigMap {MAP} of {namespace} holds no roots")]
    Roots {
        namespace: String,
        #[source]
        source: RootsError,
    },
    #[error(
        "istiod shows a root that the mesh does not know either: the ConfigMap {MAP} of {namespace} \
         holds only roots that we have"
    )]
    Same { namespace: String },
}

impl RefreshError {
    fn hint(&self) -> String {
        match self {
            Self::Kube(error) if error.code() == Some(403) => format!(
                "allow it in the workload's namespace: a Role with verb get on configmaps named {MAP}"
            ),
            Self::Kube(error) if error.code() != Some(404) => error.hint().unwrap_or_default(),
            Self::Same { .. } => "find out who answers at mesh.discoveryAddress; if it is istiod, \
                                  give this machine its root with mesh.rootCert"
                .to_owned(),
            Self::Kube(_) | Self::Empty { .. } | Self::Roots { .. } => format!(
                "istiod keeps the ConfigMap {MAP} in every namespace: look at it, and at istiod's log"
            ),
        }
    }
}

/// The last fetch.
struct Last {
    at: Instant,
    newer: bool,
}

/// Answers everybody who met an unknown root.
pub(super) fn keep(tasks: &Tasks, keeper: Keeper) -> RootRefresh {
    let (refresh, questions) = RootRefresh::new();
    tasks.essential("roots", keeper.run(questions));
    refresh
}

/// What was wrong with the roots is over once istiod answers: it was believed.
pub(super) fn settle(tasks: &Tasks, vault: Vault, mut upstream: watch::Receiver<UpstreamState>) {
    tasks.essential("roots-settled", async move {
        while upstream.changed().await.is_ok() {
            let answers = upstream.borrow_and_update().phase == Phase::Connected;
            if answers && vault.renewal().borrow().roots_trouble.is_some() {
                vault.report_roots(None);
            }
        }
    });
}

impl Keeper {
    async fn run(self, mut questions: mpsc::Receiver<RootQuestion>) {
        let mut last: Option<Last> = None;
        while let Some(question) = questions.recv().await {
            let is_recent = |last: &Last| {
                let pause = if last.newer { SHARED } else { PAUSE };
                last.at.elapsed() < pause
            };
            // The other line to istiod may have asked the same a moment ago.
            if let Some(last) = last.as_ref().filter(|last| is_recent(last)) {
                question.answer(last.newer);
                continue;
            }
            let fetched = self.fetch().await;
            last = Some(Last { at: Instant::now(), newer: fetched.is_ok() });
            question.answer(fetched.is_ok());
            if let Err(error) = fetched {
                let hint = Some(error.hint());
                let trouble = Trouble::new(&error, hint, Retry::Later, self.clock.now());
                tracing::warn!(%trouble, "No newer roots of the mesh.");
                self.vault.report_roots(Some(trouble));
            }
        }
    }

    async fn fetch(&self) -> Result<(), RefreshError> {
        let namespace = self.namespace.clone();
        let object = Object {
            group_version: "v1",
            resource: "configmaps",
            namespace: namespace.clone(),
            name: MAP.to_owned(),
        };
        let map = self.kube.get(&object).await?;
        let pem = map.get("data").and_then(|data| data.get(KEY)).and_then(Value::as_str);
        let Some(pem) = pem else { return Err(RefreshError::Empty { namespace }) };
        let roots = Roots::from_pem(pem.as_bytes());
        let roots =
            roots.map_err(|source| RefreshError::Roots { namespace: namespace.clone(), source })?;
        let known = read_roots(&self.root_cert);
        if known.is_ok_and(|known| roots.is_within(&known)) {
            return Err(RefreshError::Same { namespace });
        }
        let path = self.root_cert.display();
        let pem = roots.pem();
        // As a service the agent may write this one file of the directory.
        let written = fsio::replace(&self.root_cert, pem.as_bytes(), fsio::PUBLIC)
            .or_else(|_| fsio::overwrite(&self.root_cert, pem.as_bytes()));
        match written {
            Ok(()) => tracing::warn!(%path, "The mesh has a new root: replaced the root file."),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "The mesh has a new root: it is trusted, but could not be written."
                );
            }
        }
        self.vault.learn_roots(roots);
        Ok(())
    }
}

/// What istiod writes into every namespace (`pilot/pkg/bootstrap/namespacecontroller.go`).
const MAP: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// Nothing new is found more than once a minute.
const PAUSE: Duration = Duration::from_secs(60);
/// Questions that were on their way while the roots were fetched have the same answer.
const SHARED: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{self, SkewGauge};
    use crate::identity::{KeyAlgorithm, SpiffeId};
    use crate::secrets::{self, Source};

    #[tokio::test]
    async fn unknown_roots_are_no_trouble_any_more_once_istiod_answers() {
        let directory = tempfile::tempdir().unwrap();
        let config = secrets::Config {
            source: Source::Istiod,
            id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
            state_directory: directory.path().to_owned(),
            root_cert: directory.path().join("root-cert.pem"),
            key_algorithm: KeyAlgorithm::EcdsaP256,
            ttl: Duration::from_secs(60),
            renew_at: 0.5,
            jitter: 0.0,
            export_directory: None,
            skew: SkewGauge::default(),
        };
        let vault = Vault::open(config, clock::system());
        let error = RefreshError::Same { namespace: "vms".to_owned() };
        let now = clock::from_unix_seconds(0);
        vault.report_roots(Some(Trouble::new(&error, None, Retry::Later, now)));
        let (tasks, _ends) = Tasks::new();
        let upstream = watch::Sender::new(UpstreamState::default());
        settle(&tasks, vault.clone(), upstream.subscribe());
        upstream.send_modify(|state| state.phase = Phase::Connected);
        let mut renewal = vault.renewal();
        renewal.wait_for(|state| state.roots_trouble.is_none()).await.unwrap();
        tasks.stop();
    }
}
