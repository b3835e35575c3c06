//! What a plan needs of others, proved before anything is changed for it: that its identity is
//! issued, and that its WorkloadEntry would be accepted. Writes nothing here or in the cluster.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::machine::known_machine;
use super::plan::Plan;
use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::ca::{Csr, IssueError, Issuer, IstiodIssuer};
use crate::controlplane::{Dialer, RootFileError, read_roots};
use crate::credential::{Ladder, LadderError};
use crate::identity::{Candidate, IssuedIdentity, KeyError, KeyPair, Refusal};
use crate::kube::Client;
use crate::registry::{self, Direct, Machine, Mode, RegisterError};
use crate::secrets::Source;

/// Why an identity could not be proved.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The roots cannot be read.
    #[error("the mesh's root cannot be used")]
    Roots(#[source] RootFileError),
    /// No key could be made.
    #[error("cannot make a certificate request")]
    Key(#[from] KeyError),
    /// No certificate was issued.
    #[error("no certificate for {id}")]
    Issue {
        /// The identity that was asked for.
        id: String,
        /// Why.
        #[source]
        source: IssueError,
    },
    /// What was issued is not what was asked for.
    #[error("refused the certificate that the authority sent")]
    Refused(#[from] Refusal),
}

impl ProofError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        if let Self::Issue { source, .. } = self { source.retry() } else { Retry::Later }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        if let Self::Issue { source, .. } = self { source.hint() } else { None }
    }

    /// Whether the credential is to blame, and not its way to the authority.
    #[must_use]
    pub fn is_of_credential(&self) -> bool {
        match self {
            Self::Issue { source, .. } => matches!(
                source,
                IssueError::Token(_)
                    | IssueError::Refused {
                        code: tonic::Code::Unauthenticated | tonic::Code::PermissionDenied,
                        ..
                    }
            ),
            _ => false,
        }
    }
}

/// Has a certificate issued for the plan's identity by its tokens, verifies it as the agent would,
/// and drops it. Returns its end; `None` where there is nothing to prove: no token, or certificates
/// from another source than istiod.
///
/// # Errors
/// When no certificate is issued, or another one than was asked for.
pub async fn prove_identity(
    plan: &Plan,
    kube: Option<&Arc<Client>>,
    clock: &SharedClock,
) -> Result<Option<SystemTime>, ProofError> {
    if !matches!(plan.secrets.source, Source::Istiod) {
        return Ok(None);
    }
    let id = &plan.secrets.id;
    let known = read_roots(&plan.secrets.root_cert).map_err(ProofError::Roots)?;
    let ladder = Ladder::new(plan.credential.clone(), kube, Arc::clone(clock));
    let nobody = watch::channel(None).1;
    let issuer = IstiodIssuer::new(Dialer::new(plan.ca.clone(), ladder, nobody, Arc::clone(clock)));
    let key_algorithm = plan.secrets.key_algorithm;
    let key = KeyPair::generate(key_algorithm)?;
    let csr = Csr { pem: key.csr_pem(id)?, ttl: plan.secrets.ttl, key_algorithm };
    let issued = match issuer.issue(&csr, &|_| {}).await {
        Ok(issued) => issued,
        Err(IssueError::Token(LadderError::None)) => return Ok(None),
        Err(source) => return Err(ProofError::Issue { id: id.to_string(), source }),
    };
    let candidate = Candidate {
        chain_pem: issued.chain_pem,
        key_pem: key.private_key_pem().clone(),
        anchors: issued.anchors,
    };
    let identity = IssuedIdentity::verify(candidate, id, &known, clock.now())?;
    Ok(Some(identity.not_after()))
}

/// Asks the Kubernetes API whether the plan's WorkloadEntry would be accepted. In other modes than
/// `kubernetes` there is nothing to ask.
///
/// # Errors
/// With what the agent would fail with.
pub async fn prove_registration(
    plan: &Plan,
    kube: Option<&Arc<Client>>,
    clock: &SharedClock,
) -> Result<(), RegisterError> {
    let (Mode::Kubernetes, Some(kube)) = (plan.registration.mode, kube) else { return Ok(()) };
    // A machine without an id gets one when it joins: until then it is none that anybody knows.
    let known = known_machine(&plan.paths);
    let machine = known.unwrap_or_else(|| Machine::of(&format!("{:032x}", rand::random::<u128>())));
    let (force, take_over_after) = (plan.registration.force, plan.registration.take_over_after);
    let config = registry::Config { machine, force, take_over_after, record: None };
    let workload = watch::channel(Arc::new(plan.workload.clone())).1;
    Direct::new(Arc::clone(kube), workload, config, Arc::clone(clock)).check().await
}
