//! Istio's certificate service: who calls is who gets the certificate
//! (`security/pkg/server/ca/server.go`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateSigningRequestParams, KeyPair};
use tonic::{Request, Response, Status};

use super::faults::{Fault, Service as Which};
use super::kind::Resource;
use super::ledger::Issued;
use super::pki::{self, Authorities, DAY, Order};
use super::seen::{Proof, SeenCsr, record};
use super::tls::Peer;
use super::token::ISTIO_AUDIENCE;
use super::{State, lock};
use crate::identity::{Namespace, ServiceAccount, SpiffeId};
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

/// Who calls, and how it is known.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) id: SpiffeId,
    pub(super) proof: Proof,
}

/// The caller's identity: its certificate's, else its token's
/// (`security/pkg/server/ca/authenticate`).
pub(super) fn caller<T>(state: &State, request: &Request<T>) -> Result<Caller, Status> {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let domain = &state.trust_domain;
    if let Some(id) = peer.id.filter(|id| id.trust_domain() == domain) {
        return Ok(Caller { id, proof: Proof::Certificate { serial: peer.serial } });
    }
    let text = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
    let cluster = text("clusterid").unwrap_or_default();
    if !cluster.is_empty() && cluster != state.options.cluster_id {
        let words = format!("client claims to be in cluster {cluster:?}");
        return Err(Status::unauthenticated(words));
    }
    let now = state.options.clock.now();
    text("authorization")
        .and_then(|bearer| state.tokens.check(bearer, &[ISTIO_AUDIENCE], now))
        .filter(|account| {
            state.known(Resource::ServiceAccounts, &account.namespace, &account.name).is_ok()
        })
        .and_then(|account| {
            let namespace: Namespace = account.namespace.parse().ok()?;
            let name: ServiceAccount = account.name.parse().ok()?;
            let id = SpiffeId::new(domain.clone(), namespace, name);
            Some(Caller { id, proof: Proof::Token })
        })
        .ok_or_else(|| Status::unauthenticated("authentication failure"))
}

impl Service {
    async fn create(
        &self,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        let fault = self.state.faults.pass(Which::Ca).await?;
        let caller = caller(&self.state, request)?;
        let asked = request.get_ref();
        let issued = self.issue(asked, &caller.id, fault);
        let serial = issued.as_ref().ok().map(|(serial, _, _)| serial.clone());
        if let Ok((serial, _, expires)) = &issued {
            let (id, serial, expires) = (caller.id.to_string(), serial.clone(), *expires);
            let (proof, at) = (caller.proof.clone(), self.state.options.clock.now());
            self.state.ledger.issue(Issued { id, serial, proof, at, expires });
        }
        self.state.see(|seen| {
            let known = matches!(caller.proof, Proof::Certificate { .. });
            *(if known { &mut seen.by_certificate } else { &mut seen.by_token }) += 1;
            let (id, asked_seconds) = (caller.id.to_string(), asked.validity_duration);
            record(
                &mut seen.csrs,
                SeenCsr { id, proof: caller.proof.clone(), asked_seconds, serial },
            );
        });
        let (_, cert_chain, _) = issued?;
        Ok(IstioCertificateResponse { cert_chain })
    }

    /// The serial number, the chain (leaf, intermediate, and all roots as one last element), and
    /// the end of its life.
    fn issue(
        &self,
        asked: &IstioCertificateRequest,
        id: &SpiffeId,
        fault: Fault,
    ) -> Result<(String, Vec<String>, SystemTime), Status> {
        let life = self.life(asked.validity_duration)?;
        let csr = CertificateSigningRequestParams::from_pem(&asked.csr)
            .map_err(|error| Status::invalid_argument(format!("CSR signing error ({error})")))?;
        let authorities = lock(&self.state.authorities).clone();
        let (authority, roots) = if fault == Fault::UntrustedRoot {
            (&self.state.stranger, self.state.stranger.root_pem())
        } else {
            (&*authorities.signing, Authorities::roots_pem(&authorities))
        };
        let order = order(id, life, self.state.options.clock.now(), fault).map_err(internal)?;
        let expires = order.not_after;
        let leaf = if fault == Fault::WrongKey {
            authority.sign(order, &KeyPair::generate().map_err(internal)?)
        } else {
            authority.sign(order, &csr.public_key)
        };
        let leaf = leaf.map_err(internal)?;
        let text = if fault == Fault::Rubbish { "rubbish".to_owned() } else { leaf.pem() };
        let chain = [Some(text), authority.intermediate_pem(), Some(roots)];
        let serial = pki::serial_of(leaf.der()).unwrap_or_default();
        Ok((serial, chain.into_iter().flatten().collect(), expires))
    }

    fn life(&self, seconds: i64) -> Result<Duration, Status> {
        let options = &self.state.options;
        let asked = u64::try_from(seconds).ok().filter(|&seconds| seconds > 0);
        let life = asked.map_or(options.default_ttl, Duration::from_secs);
        if life > options.max_ttl {
            let words = format!(
                "CSR signing error (requested TTL {life:?} is greater than the max allowed TTL {:?})",
                options.max_ttl
            );
            return Err(Status::invalid_argument(words));
        }
        Ok(life)
    }
}

fn order(
    id: &SpiffeId,
    life: Duration,
    now: SystemTime,
    fault: Fault,
) -> Result<Order, rcgen::Error> {
    let id = if fault == Fault::OtherIdentity { format!("{id}-other") } else { id.to_string() };
    let (start, end) = match fault {
        Fault::ExpiredCertificate => (pki::before(now, DAY), pki::before(now, DAY / 2)),
        Fault::NotYetValid => (pki::after(now, DAY), pki::after(now, 2 * DAY)),
        _ => (pki::before(now, BACKDATED), pki::after(now, life)),
    };
    Order::workload(&id, start, end)
}

/// The caller as far as it is known, for the record.
fn who<T>(state: &State, request: &Request<T>) -> String {
    caller(state, request).map_or_else(|_| "somebody".to_owned(), |caller| caller.id.to_string())
}

fn internal(error: rcgen::Error) -> Status {
    Status::internal(format!("CSR signing error ({error})"))
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let answer = self.create(&request).await;
        let answer = answer.inspect_err(|status| {
            self.state.deny(&who(&self.state, &request), "certificate", status.message());
            self.state.see(|seen| seen.refused += 1);
        })?;
        Ok(Response::new(answer))
    }
}

/// istiod's allowance for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(120);
