//! Sources of certificates: who signs our requests. It never sees a private key.

mod istiod;
mod kubernetes;

use std::future::Future;
use std::time::{Duration, SystemTime};

pub use istiod::IstiodIssuer;
pub use kubernetes::{CsrApi, KubernetesIssuer, SignerError, SignerName};

use crate::base::backoff::Retry;
use crate::controlplane::{DialError, Endpoint};
use crate::credential::{LadderError, Rung};
use crate::identity::{Anchors, KeyAlgorithm};

/// A certificate signing request and the lifetime that is asked for.
#[derive(Clone, Debug)]
pub struct Csr {
    /// PEM, PKCS#10.
    pub pem: String,
    /// The lifetime asked for; the CA may give another.
    pub ttl: Duration,
    /// The kind of its key.
    pub key_algorithm: KeyAlgorithm,
}

/// What a CA answered: nothing of it is verified yet.
#[derive(Clone, Debug)]
pub struct IssuedChain {
    /// PEM: the leaf first, then intermediates.
    pub chain_pem: String,
    /// The mesh's roots, where the CA sends them.
    pub anchors: Anchors,
}

/// A request that waits for a person.
#[derive(Debug, thiserror::Error)]
#[error("the certificate request {name} waits for its approval and for signer {signer}")]
pub struct Pending {
    /// Its name in the Kubernetes API.
    pub name: String,
    /// Who shall sign it.
    pub signer: String,
}

impl Pending {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        format!(
            "somebody who may approve requests of signer {} runs `kubectl certificate approve {}`",
            self.signer, self.name
        )
    }
}

/// Takes what an issuer has to say while it waits.
pub type Waiting<'a> = &'a (dyn Fn(&Pending) + Send + Sync);

/// Something that signs requests.
pub trait Issuer: Send + Sync + 'static {
    /// Has a request signed. What is waited for meanwhile, if it takes a person, is told.
    ///
    /// # Errors
    /// When the CA cannot be reached, refuses, or answers rubbish.
    fn issue(
        &self,
        csr: &Csr,
        waiting: Waiting<'_>,
    ) -> impl Future<Output = Result<IssuedChain, IssueError>> + Send;

    /// Looks for newer roots, after an answer that led to none that is trusted.
    fn refresh_roots(&self) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }

    /// The CA's own time when it signed a certificate with this validity, where that can be told.
    fn signed_at(
        &self,
        _csr: &Csr,
        _not_before: SystemTime,
        _not_after: SystemTime,
    ) -> Option<SystemTime> {
        None
    }
}

/// A request that yielded no certificate. Never holds token or key bytes.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The CA could not be reached.
    #[error("cannot reach the certificate authority")]
    Dial(#[source] DialError),
    /// There is nothing to authenticate with.
    #[error("cannot authenticate to the certificate authority")]
    Token(#[source] LadderError),
    /// The CA said no.
    #[error("{endpoint} did not sign the certificate request{}: {message} ({code:?})", with(sent))]
    Refused {
        /// The CA.
        endpoint: Endpoint,
        /// Its gRPC status code.
        code: tonic::Code,
        /// Its words.
        message: String,
        /// Whose token it was sent.
        sent: Option<Rung>,
    },
    /// The CA did not answer.
    #[error("{endpoint} did not answer a certificate request within {limit:?}")]
    Late {
        /// The CA.
        endpoint: Endpoint,
        /// The limit.
        limit: Duration,
    },
    /// The Kubernetes API did not do as asked.
    #[error("cannot have a certificate request signed through the Kubernetes API")]
    Signing(#[from] SignerError),
    /// The answer makes no sense.
    #[error("{endpoint} answered a certificate request with rubbish: {why}")]
    Malformed {
        /// The CA.
        endpoint: Endpoint,
        /// What is wrong.
        why: String,
    },
}

fn with(sent: &Option<Rung>) -> String {
    sent.map(|rung| format!(" with the token of {}", rung.setting())).unwrap_or_default()
}

impl IssueError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Dial(error) => error.retry(),
            Self::Token(error) => error.retry(),
            Self::Signing(error) => error.retry(),
            Self::Late { .. } => Retry::Soon,
            Self::Malformed { .. } => Retry::Later,
            Self::Refused { code, .. } => match code {
                tonic::Code::Unauthenticated
                | tonic::Code::PermissionDenied
                | tonic::Code::InvalidArgument
                | tonic::Code::FailedPrecondition
                | tonic::Code::Unimplemented => Retry::Later,
                _ => Retry::Soon,
            },
        }
    }

    /// The shortest pause before another request: each is one that people see.
    #[must_use]
    pub fn least_pause(&self) -> Duration {
        match self {
            Self::Signing(error) => error.least_pause(),
            _ => Duration::ZERO,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Signing(error) => error.hint(),
            Self::Dial(error) => error.hint(),
            Self::Token(error) => error.hint(),
            Self::Refused { code: tonic::Code::Unauthenticated, .. } => Some(
                "istiod does not accept our token or certificate: check mesh.clusterId, and join \
                 again with a new token from `istioctl x workload entry configure`"
                    .to_owned(),
            ),
            Self::Refused { code: tonic::Code::InvalidArgument, .. } => {
                Some("check identity.ttl: istiod refuses lifetimes above its maximum".to_owned())
            }
            Self::Refused { code: tonic::Code::Unimplemented, .. } => {
                Some("check mesh.caAddress: that server has no certificate service".to_owned())
            }
            _ => None,
        }
    }
}
