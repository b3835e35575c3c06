//! istiod's certificate service (istio/api `security/v1alpha1/ca.proto`), and whatever else speaks
//! it.

use std::collections::BTreeMap;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::time::timeout;
use tonic::Request;

use super::{Csr, IssueError, IssuedChain, Issuer};
use crate::controlplane::{Dialer, Headers};
use crate::identity::Roots;
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
            Ok(Ok(response)) => Ok(response.into_inner()),
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
    async fn issue(&self, csr: &Csr) -> Result<IssuedChain, IssueError> {
        let response = self.call(csr).await?;
        sort(&response.cert_chain).map_err(|why| IssueError::Malformed {
            endpoint: self.dialer.config().endpoint.clone(),
            why,
        })
    }
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
    Ok(IssuedChain { chain_pem, roots: Some(roots) })
}

/// istiod signs in milliseconds; a busy one queues for seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// A chain with the roots of a mesh is some kilobytes.
const ANSWER_BYTES: usize = 1 << 20;
/// What an error quotes of the server's words.
const MESSAGE_CHARS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_root_is_rubbish() {
        assert!(sort(&[]).is_err());
        assert!(sort(&["leaf".into()]).unwrap_err().contains("one element"));
        assert!(sort(&["leaf".into(), "no pem".into()]).unwrap_err().contains("no certificate"));
    }
}
