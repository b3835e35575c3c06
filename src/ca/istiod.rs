//! istiod's certificate service (istio/api `security/v1alpha1/ca.proto`), and whatever else speaks
//! it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::time::timeout;
use tonic::Request;

use super::{Csr, IssueError, IssuedChain, Issuer, Waiting};
use crate::base::tasks::busy;
use crate::controlplane::{Dialer, Headers};
use crate::identity::{Anchors, Roots};
use crate::proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::proto::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};

/// Has requests signed by istiod: with the token first, with our certificate afterwards.
pub struct IstiodIssuer {
    dialer: Dialer,
}

impl IstiodIssuer {
    /// An issuer behind this dialer.
    #[must_use]
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer }
    }

    async fn call(&self, csr: &Csr) -> Result<IstioCertificateResponse, IssueError> {
        let connection = self.dialer.dial().await.map_err(IssueError::Dial)?;
        let headers = self.dialer.headers(connection.with_certificate).await;
        let Headers { metadata, bearer } = headers.map_err(IssueError::Token)?;
        // Istio's agent sends this key always; an empty signer means istiod itself.
        let signer = Value { kind: Some(Kind::StringValue(String::new())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.pem.clone(),
            validity_duration: i64::try_from(csr.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: BTreeMap::from([("CertSigner".to_owned(), signer)]) }),
        });
        *request.metadata_mut() = metadata;
        let mut client = IstioCertificateServiceClient::new(connection.channel)
            .max_decoding_message_size(ANSWER_BYTES);
        let endpoint = &self.dialer.config().endpoint;
        match timeout(ANSWER_LIMIT, client.create_certificate(request)).await {
            Ok(Ok(response)) => {
                // Beside a certificate a token proves nothing.
                if let Some(bearer) = bearer.filter(|_| !connection.with_certificate) {
                    self.dialer.accept(&bearer);
                }
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                let message: String = status.message().chars().take(MESSAGE_CHARS).collect();
                let code = status.code();
                let sent = bearer.filter(|_| code == tonic::Code::Unauthenticated);
                if let Some(bearer) = &sent {
                    self.dialer.refuse(bearer, &message);
                }
                let sent = sent.map(|bearer| bearer.rung);
                Err(IssueError::Refused { endpoint: endpoint.clone(), code, message, sent })
            }
            Err(_) => Err(IssueError::Late { endpoint: endpoint.clone(), limit: ANSWER_LIMIT }),
        }
    }
}

impl Issuer for IstiodIssuer {
    async fn issue(&self, csr: &Csr, _: Waiting<'_>) -> Result<IssuedChain, IssueError> {
        let _busy = busy("asking istiod for a certificate", PATIENCE);
        let response = self.call(csr).await?;
        sort(&response.cert_chain).map_err(|why| IssueError::Malformed {
            endpoint: self.dialer.config().endpoint.clone(),
            why,
        })
    }

    async fn refresh_roots(&self) -> bool {
        self.dialer.trust().refreshed().await
    }

    /// istiod's own CA dates a certificate back by exactly [`GRACE`], and lets it end after exactly
    /// the lifetime that was asked for. With any other validity somebody else has signed.
    fn signed_at(
        &self,
        csr: &Csr,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Option<SystemTime> {
        own_signature(csr.ttl, not_before, not_after)
    }
}

fn own_signature(
    ttl: Duration,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Option<SystemTime> {
    let now = not_before.checked_add(GRACE)?;
    (now.checked_add(ttl) == Some(not_after)).then_some(now)
}

/// The leaf, the intermediates, and the last element with one or more roots.
fn sort(elements: &[String]) -> Result<IssuedChain, String> {
    let [chain @ .., roots] = elements else {
        return Err("the answer is empty".to_owned());
    };
    if chain.is_empty() {
        return Err("the answer has one element: expected a certificate and a root".to_owned());
    }
    let roots = Roots::from_pem(roots.as_bytes())
        .map_err(|error| format!("its root: {}", crate::base::trouble::chain(&error)))?;
    let mut chain_pem = String::new();
    for element in chain {
        chain_pem.push_str(element.trim());
        chain_pem.push('\n');
    }
    Ok(IssuedChain { chain_pem, anchors: Anchors::Sent(roots) })
}

/// Istio's `ClockSkewGracePeriod`, `security/pkg/pki/util/generate_cert.go`.
const GRACE: Duration = Duration::from_secs(120);
/// istiod signs in milliseconds; a busy one queues for seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// For the tokens (a plugin for the Kubernetes API may take two minutes), the dial and the answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// A chain with the roots of a mesh is some kilobytes.
const ANSWER_BYTES: usize = 1 << 20;
/// What an error quotes of the server's words.
const MESSAGE_CHARS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_istiods_own_signature_tells_its_time() {
        let at = |seconds: u64| crate::base::clock::from_unix_seconds(1_790_000_000 + seconds);
        let ttl = Duration::from_secs(3600);
        assert_eq!(own_signature(ttl, at(0), at(3720)), Some(at(120)));
        assert_eq!(own_signature(ttl, at(0), at(3600)), None, "another CA signed");
        assert_eq!(own_signature(ttl, at(0), at(3000)), None, "the CA's own end came first");
    }

    #[test]
    fn an_answer_without_a_root_is_rubbish() {
        assert!(sort(&[]).is_err());
        assert!(sort(&["leaf".into()]).unwrap_err().contains("one element"));
        assert!(sort(&["leaf".into(), "no pem".into()]).unwrap_err().contains("no certificate"));
    }
}
