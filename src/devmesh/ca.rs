//! Istio's certificate service: who calls is who gets the certificate.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::tls::ClientId;
use super::{Fault, State};
use crate::proto::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};

pub(super) fn service(state: Arc<State>) -> IstioCertificateServiceServer<Service> {
    IstioCertificateServiceServer::new(Service { state })
}

pub(super) struct Service {
    state: Arc<State>,
}

/// The caller's identity: its certificate's, else its token's.
pub(super) fn caller<T>(state: &State, request: &Request<T>) -> Result<(String, bool), Status> {
    let by_certificate = request.extensions().get::<ClientId>().and_then(|id| id.0.clone());
    if let Some(id) = by_certificate {
        return Ok((id, true));
    }
    let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let account = bearer.and_then(|bearer| state.tokens.check(bearer, "istio-ca"));
    let account = account.ok_or_else(|| Status::unauthenticated("authentication failure"))?;
    Ok((format!("spiffe://cluster.local/ns/{}/sa/{}", account.namespace, account.name), false))
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let state = &*self.state;
        let fault = state.fault();
        let caller = match fault {
            Fault::Hang => std::future::pending().await,
            Fault::Refuse => Err(Status::unauthenticated("authentication failure")),
            _ => caller(state, &request),
        };
        let (id, by_certificate) = caller.inspect_err(|_| state.see(|seen| seen.refused += 1))?;
        state.see(|seen| {
            let count = if by_certificate { &mut seen.by_certificate } else { &mut seen.by_token };
            *count += 1;
        });
        let asked = request.get_ref();
        let life = u64::try_from(asked.validity_duration).ok().filter(|&seconds| seconds > 0);
        let life = Duration::from_secs(life.unwrap_or(DEFAULT_LIFE));
        if life > MAX_LIFE {
            return Err(Status::invalid_argument(
                "requested TTL is greater than the max allowed TTL",
            ));
        }
        let authority = if fault == Fault::UntrustedRoot { &state.other } else { &state.authority };
        let id = if fault == Fault::OtherIdentity { format!("{id}-other") } else { id };
        let signed = authority.sign(&asked.csr, &id, life);
        let leaf = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let leaf = if fault == Fault::Rubbish { "rubbish".to_owned() } else { leaf };
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf, authority.root_pem()] }))
    }
}

/// istiod's defaults: 24 hours, and 90 days at the most.
const DEFAULT_LIFE: u64 = 24 * 3600;
const MAX_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
