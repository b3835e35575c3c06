//! A SPIFFE Workload API on a Unix socket, which pushes what it is given to everybody who asks.

use std::path::Path;
use std::pin::Pin;

use futures_util::Stream;
use futures_util::StreamExt;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

use super::ClientIdentity;
use crate::base::fsio::FileError;
use crate::base::tasks::Tasks;
use crate::base::uds;
use crate::proto::spiffe::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use crate::proto::spiffe::{X509svid, X509svidRequest, X509svidResponse};

/// A running Workload API. It ends when it is dropped.
pub struct WorkloadApi {
    pushed: watch::Sender<Option<X509svidResponse>>,
    tasks: Tasks,
}

impl WorkloadApi {
    /// Listens at a path. Until something is pushed, everybody is told that they are nobody.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve(path: &Path) -> Result<Self, FileError> {
        let listener = uds::bind(path, uds::Reach::Anyone)?;
        let (pushed, tasks) = (watch::Sender::new(None), Tasks::new().0);
        let service = Service { pushed: pushed.subscribe() };
        tasks.spawn("devmesh-workload-api", run(listener, service));
        Ok(Self { pushed, tasks })
    }

    /// Pushes a certificate for an identity, with the roots of its trust domain (PEM).
    pub fn push(&self, id: &str, identity: &ClientIdentity, roots_pem: &str) {
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose_secret().as_bytes());
        let svid = X509svid {
            spiffe_id: id.to_owned(),
            x509_svid: der(&identity.chain_pem),
            x509_svid_key: key.map(|key| key.secret_der().to_vec()).unwrap_or_default(),
            bundle: der(roots_pem),
        };
        self.pushed.send_replace(Some(X509svidResponse { svids: vec![svid] }));
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn der(pem: &str) -> Vec<u8> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    all.filter_map(Result::ok).flat_map(|der| der.to_vec()).collect()
}

async fn run(listener: UnixListener, service: Service) {
    let server = tonic::transport::Server::builder()
        .add_service(SpiffeWorkloadApiServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener));
    if let Err(error) = server.await {
        tracing::warn!(%error, "The Workload API ended.");
    }
}

struct Service {
    pushed: watch::Receiver<Option<X509svidResponse>>,
}

type Pushes = Pin<Box<dyn Stream<Item = Result<X509svidResponse, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Pushes;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Pushes>, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        if self.pushed.borrow().is_none() {
            return Err(Status::permission_denied("no identity issued"));
        }
        let pushes = WatchStream::new(self.pushed.clone());
        Ok(Response::new(Box::pin(pushes.filter_map(|push| async { push.map(Ok) }))))
    }
}
