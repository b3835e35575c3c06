//! What stops an operator, and what to do about it.

use crate::base::problem::{Problem, Problems};
use crate::identity::RootsError;
use crate::kube::KubeError;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The WorkloadGroup is none, or lacks something.
    #[error("this is no usable WorkloadGroup: {why}")]
    Group {
        /// What is wrong.
        why: String,
    },
    /// The API server refused, or could not be reached.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// What the mesh, or the WorkloadGroup, says of proxies is strange.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// There is no such WorkloadGroup.
    #[error("there is no WorkloadGroup {namespace}/{name}")]
    NoGroup {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Istio is not where it was looked for.
    #[error("there is no ConfigMap {namespace}/{name}")]
    NoMesh {
        /// The namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// istiod has not written the mesh's roots into the namespace.
    #[error("there is no ConfigMap {namespace}/{name} with the mesh's roots")]
    NoRoots {
        /// The namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The mesh's roots cannot be used.
    #[error("the mesh's roots in ConfigMap {namespace}/{name} cannot be used")]
    Roots {
        /// The namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong with them.
        #[source]
        source: RootsError,
    },
}

impl From<Problem> for OperatorError {
    fn from(problem: Problem) -> Self {
        Self::Settings(Problems(vec![problem]))
    }
}

impl OperatorError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Kube(error) => match error.code() {
                Some(401) => {
                    "the API server does not know you: check the context of your kubeconfig"
                }
                Some(403) => {
                    "somebody with more rights can apply what --dry-run prints; then --no-rbac and \
                     --no-policy leave that out here"
                }
                Some(404) => "check the namespace, and that Istio's CRDs are installed",
                Some(409) => {
                    "somebody else owns these fields: delete the object, or apply what --dry-run \
                     prints yourself and leave it out here with --no-rbac and --no-policy"
                }
                Some(_) => return None,
                None => "check the server of your kubeconfig, and that it can be reached from here",
            },
            Self::NoGroup { namespace, .. } => {
                return Some(format!(
                    "`kubectl -n {namespace} get workloadgroups` shows which there are; -f FILE makes one"
                ));
            }
            Self::NoMesh { .. } => {
                "name where Istio is: --istio-namespace NAMESPACE, and --revision REVISION where its \
                 control plane has one"
            }
            Self::NoRoots { .. } => {
                "istiod writes it into every namespace that it watches: check that istiod runs"
            }
            Self::Group { .. } | Self::Settings(_) | Self::Roots { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
