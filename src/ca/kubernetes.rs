//! The Kubernetes API for certificate requests (`certificates.k8s.io/v1`): a request is an object,
//! which somebody approves and a signer signs. That takes milliseconds or days.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Csr, IssueError, IssuedChain, Issuer, Pending, Waiting};
use crate::base::backoff::{Backoff, Retry};
use crate::base::tasks::busy;
use crate::controlplane::{RootFileError, read_roots};
use crate::identity::{Anchors, KeyAlgorithm, SpiffeId};
use crate::kube::{Client, KubeError, Object, WatchEvent};

/// The name of a signer, `DOMAIN/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerName(String);

impl FromStr for SignerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:/".contains(&byte))
        };
        match text.split_once('/') {
            Some((domain, path))
                if domain.contains('.')
                    && is_part(domain)
                    && is_part(path)
                    && text.len() <= SIGNER =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(format!("found {text:?}, expected a name such as example.com/mesh-ca")),
        }
    }
}

impl fmt::Display for SignerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom to ask, and whom to trust then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsrApi {
    /// Who shall sign.
    pub signer: SignerName,
    /// PEM roots of that signer, where they are not the mesh's. Read again for every certificate.
    pub root_cert: Option<PathBuf>,
}

/// Why the Kubernetes API brought no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The API could not be used.
    #[error(transparent)]
    Api(#[from] KubeError),
    /// Somebody said no, or the signer could not.
    #[error("the certificate request {name} was {verdict}: {message} ({reason})")]
    Refused {
        /// The request.
        name: String,
        /// `denied`, or `not signed`.
        verdict: &'static str,
        /// The reason as a word.
        reason: String,
        /// What was written about it.
        message: String,
    },
    /// Nobody did anything.
    #[error("nobody approved and signed the certificate request {name} within {limit:?}")]
    Forgotten {
        /// The request.
        name: String,
        /// The time that it had.
        limit: Duration,
    },
    /// The request was deleted.
    #[error("the certificate request {name} was deleted before it was signed")]
    Gone {
        /// The request.
        name: String,
    },
    /// The signer wrote something that is no certificate.
    #[error("the certificate request {name} was answered with rubbish: {why}")]
    Rubbish {
        /// The request.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The signer's roots cannot be used.
    #[error("the signer's roots cannot be used")]
    Roots(#[from] RootFileError),
}

impl SignerError {
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::Api(error) => error.retry(),
            Self::Gone { .. } => Retry::Soon,
            _ => Retry::Later,
        }
    }

    pub(super) fn least_pause(&self) -> Duration {
        match self {
            Self::Refused { .. } | Self::Rubbish { .. } => AFTER_REFUSAL,
            Self::Gone { .. } => AFTER_DELETION,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Api(error) if error.code() == Some(403) => {
                "allow it for the whole cluster: a ClusterRole with verbs create, get, watch, delete \
                 on certificatesigningrequests of certificates.k8s.io, bound to the account"
            }
            Self::Api(error) => return error.hint(),
            Self::Refused { .. } => {
                "settle it with who approves; it is asked again in some minutes, or at once after a restart"
            }
            Self::Forgotten { .. } => "find out who approves requests of this signer",
            Self::Gone { .. } => return None,
            Self::Rubbish { .. } => "look at the signer",
            Self::Roots(_) => "check identity.rootCert",
        };
        Some(hint.to_owned())
    }
}

/// Has requests signed through the Kubernetes API.
pub struct KubernetesIssuer {
    kube: Arc<Client>,
    api: CsrApi,
    id: SpiffeId,
}

impl KubernetesIssuer {
    /// An issuer for this identity, by which its requests are named.
    #[must_use]
    pub fn new(kube: Arc<Client>, api: CsrApi, id: SpiffeId) -> Self {
        Self { kube, api, id }
    }

    fn object(&self, name: &str) -> Object {
        Object {
            group_version: GROUP_VERSION,
            resource: "certificatesigningrequests",
            namespace: String::new(),
            name: name.to_owned(),
        }
    }

    fn body(&self, name: &str, csr: &Csr) -> Value {
        let mut usages = vec!["digital signature", "client auth", "server auth"];
        // ECDSA keys encipher nothing (RFC 8813, 3).
        if !matches!(csr.key_algorithm, KeyAlgorithm::EcdsaP256 | KeyAlgorithm::EcdsaP384) {
            usages.insert(1, "key encipherment");
        }
        json!({
            "apiVersion": GROUP_VERSION,
            "kind": "CertificateSigningRequest",
            "metadata": {
                "name": name,
                "annotations": {"vm-agent/identity": self.id.to_string()},
            },
            "spec": {
                "request": STANDARD.encode(&csr.pem),
                "signerName": self.api.signer.to_string(),
                "expirationSeconds": csr.ttl.as_secs().clamp(LEAST_SECONDS, MOST_SECONDS),
                "usages": usages,
            },
        })
    }

    /// Asks, and waits for the answer.
    async fn ask(&self, csr: &Csr, waiting: Waiting<'_>) -> Result<String, SignerError> {
        // A person may have to approve.
        let _busy = busy("asking the cluster for a certificate", APPROVAL_LIMIT + PATIENCE);
        let suffix = rand::random::<u64>();
        let (namespace, account) = (self.id.namespace(), self.id.service_account());
        let name = format!("vm-agent.{namespace}.{account}.{suffix:016x}");
        let object = self.object(&name);
        self.kube.create(&object, &self.body(&name, csr)).await?;
        tracing::info!(name, signer = %self.api.signer, "Asked for a certificate.");
        let end = Instant::now().checked_add(APPROVAL_LIMIT).unwrap_or_else(Instant::now);
        let answer = timeout_at(end, self.answer(&object, waiting)).await;
        let answer = answer.unwrap_or(Err(SignerError::Forgotten { name, limit: APPROVAL_LIMIT }));
        // Whoever may not delete leaves it to the cluster, which does so after an hour or a day.
        if let Err(error) = self.kube.delete(&object).await {
            tracing::debug!(error = crate::base::trouble::chain(&error), "The request stays.");
        }
        answer
    }

    /// Looks at the request until it is decided. Lost connections are made again: the request is
    /// kept by the cluster, and a second one would be one more for people to look at.
    async fn answer(&self, object: &Object, waiting: Waiting<'_>) -> Result<String, SignerError> {
        let mut backoff = Backoff::new(Duration::from_millis(500), LOOK);
        loop {
            let since = Instant::now();
            let error = match self.follow(object, waiting).await {
                Err(SignerError::Api(error)) if error.code() == Some(404) => {
                    return Err(SignerError::Gone { name: object.name.clone() });
                }
                Err(SignerError::Api(error)) if error.retry() != Retry::Never => error,
                Ok(None) => {
                    // The server ends a watch after some minutes, but something between may do so
                    // at once.
                    if since.elapsed() >= LOOK {
                        backoff.reset();
                    }
                    sleep(backoff.next_delay()).await;
                    continue;
                }
                Ok(Some(chain)) => return Ok(chain),
                Err(error) => return Err(error),
            };
            let why = crate::base::trouble::chain(&error);
            tracing::debug!(name = object.name, why, "Lost sight of the request; looking again.");
            sleep(backoff.next_delay()).await;
        }
    }

    /// One look and one watch; `None` when the server ended the watch.
    async fn follow(
        &self,
        object: &Object,
        waiting: Waiting<'_>,
    ) -> Result<Option<String>, SignerError> {
        let now = self.kube.get(object).await?;
        if let Some(chain) = verdict(&object.name, &now)? {
            return Ok(Some(chain));
        }
        waiting(&Pending { name: object.name.clone(), signer: self.api.signer.to_string() });
        let revision = now.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let mut watch = self.kube.watch(object, revision.unwrap_or_default()).await?;
        while let Some(event) = watch.next().await {
            match event? {
                WatchEvent::Present(now) => {
                    if let Some(chain) = verdict(&object.name, &now)? {
                        return Ok(Some(chain));
                    }
                }
                WatchEvent::Deleted(_) => {
                    return Err(SignerError::Gone { name: object.name.clone() });
                }
                WatchEvent::Bookmark(_) => {}
            }
        }
        Ok(None)
    }
}

impl Issuer for KubernetesIssuer {
    async fn issue(&self, csr: &Csr, waiting: Waiting<'_>) -> Result<IssuedChain, IssueError> {
        let chain_pem = self.ask(csr, waiting).await?;
        let anchors = match &self.api.root_cert {
            Some(path) => Anchors::Vouched(read_roots(path).map_err(SignerError::from)?),
            None => Anchors::Trusted,
        };
        Ok(IssuedChain { chain_pem, anchors })
    }
}

/// What has become of a request; `None` while it is open.
fn verdict(name: &str, request: &Value) -> Result<Option<String>, SignerError> {
    let name = name.to_owned();
    let conditions = request.pointer("/status/conditions").and_then(Value::as_array);
    for condition in conditions.into_iter().flatten() {
        let text = |field: &str| {
            let text = condition.get(field).and_then(Value::as_str).unwrap_or_default();
            text.chars().take(WORDS).collect::<String>()
        };
        let verdict = match text("type").as_str() {
            "Denied" => "denied",
            "Failed" => "not signed",
            _ => continue,
        };
        let (reason, message) = (text("reason"), text("message"));
        return Err(SignerError::Refused { name, verdict, reason, message });
    }
    let certificate = request.pointer("/status/certificate").and_then(Value::as_str);
    let Some(certificate) = certificate.filter(|text| !text.is_empty()) else { return Ok(None) };
    let rubbish = |why| SignerError::Rubbish { name: name.clone(), why };
    let pem = STANDARD.decode(certificate).map_err(|_| rubbish("it is not base64"))?;
    String::from_utf8(pem).map(Some).map_err(|_| rubbish("it is not PEM"))
}

const GROUP_VERSION: &str = "certificates.k8s.io/v1";
/// Kubernetes' own limit of a signer's name is far above.
const SIGNER: usize = 571;
/// The API server's least `expirationSeconds`, and what its 32 bits hold.
const LEAST_SECONDS: u64 = 600;
const MOST_SECONDS: u64 = i32::MAX as u64;
/// The cluster deletes a request that nobody has approved after a day, one that nobody signs after
/// another (`certificates/cleaner`); where it does not, we do.
const APPROVAL_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);
/// For asking, and for taking the request away.
const PATIENCE: Duration = Duration::from_secs(300);
/// Where no watch can be had, the request is looked at this often.
const LOOK: Duration = Duration::from_secs(15);
/// Who denied a request shall not find a new one in the same moment.
const AFTER_REFUSAL: Duration = Duration::from_secs(300);
const AFTER_DELETION: Duration = Duration::from_secs(5);
/// What an error quotes of the approver's words.
const WORDS: usize = 500;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_open_until_somebody_decides() {
        assert_eq!(verdict("a", &json!({})).unwrap(), None);
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        assert_eq!(verdict("a", &approved).unwrap(), None, "it is not signed yet");
        let signed = json!({"status": {"certificate": STANDARD.encode("pem")}});
        assert_eq!(verdict("a", &signed).unwrap().as_deref(), Some("pem"));
        for (kind, words) in
            [("Denied", "was denied: no such machine (Unknown)"), ("Failed", "was not signed")]
        {
            let condition =
                json!({"type": kind, "reason": "Unknown", "message": "no such machine"});
            let refused =
                verdict("a", &json!({"status": {"conditions": [condition]}})).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
            assert!(refused.least_pause() > Duration::from_secs(60));
        }
        for rubbish in ["!", &STANDARD.encode([0xff])] {
            let signed = json!({"status": {"certificate": rubbish}});
            assert!(matches!(verdict("a", &signed), Err(SignerError::Rubbish { .. })));
        }
    }

    #[test]
    fn names_of_signers_have_a_domain_and_a_path() {
        for good in ["example.com/mesh", "clusterissuers.cert-manager.io/mesh.ca"] {
            assert_eq!(good.parse::<SignerName>().unwrap().to_string(), good);
        }
        for bad in ["", "mesh", "example/mesh", "example.com/", "/mesh", "example.com/a b"] {
            assert!(bad.parse::<SignerName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_certificate_field_panics(text in ".*") {
            drop(verdict("a", &json!({"status": {"certificate": text}})));
        }
    }
}
