//! The gRPC server and the life of one stream.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::Counters;
use super::files::{Files, Subscription, Table};
use super::flavour::{Delta, Flavour, StateOfTheWorld};
use super::session::Session;
use crate::base::tasks::Tasks;
use crate::base::uds::Peers;
use crate::identity::IssuedIdentity;
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::proto::sds::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};

/// Who may ask, and what is counted.
#[derive(Clone)]
pub struct Config {
    /// The users whose processes may have our key.
    pub peers: Peers,
    /// What was served.
    pub counters: Arc<Counters>,
    /// Secrets from files.
    pub files: Files,
}

type Identity = watch::Receiver<Option<Arc<IssuedIdentity>>>;

/// Serves secrets on a Unix socket until the tasks stop.
///
/// # Errors
/// When the server breaks.
pub async fn serve(
    listener: UnixListener,
    config: Config,
    identity: Identity,
    tasks: Tasks,
) -> Result<(), tonic::transport::Error> {
    let stop = tasks.stop_signal();
    let peers = config.peers.clone();
    let incoming = UnixListenerStream::new(listener)
        .filter(move |stream| std::future::ready(may_connect(&peers, stream)));
    let Config { counters, files, .. } = config;
    let service = Service { counters, files, identity, tasks };
    let service =
        SecretDiscoveryServiceServer::new(service).max_decoding_message_size(REQUEST_BYTES);
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

fn may_connect(peers: &Peers, stream: &std::io::Result<UnixStream>) -> bool {
    stream.as_ref().map_or(true, |stream| peers.admit(stream, "sds"))
}

struct Service {
    counters: Arc<Counters>,
    files: Files,
    identity: Identity,
    tasks: Tasks,
}

impl Service {
    fn start<F: Flavour>(
        &self,
        requests: Streaming<F::Request>,
    ) -> Response<ReceiverStream<Result<F::Response, Status>>> {
        self.counters.add_stream();
        let (responses, stream) = mpsc::channel(QUEUE);
        let exchange = Exchange::<F> {
            requests,
            responses,
            identity: self.identity.clone(),
            counters: Arc::clone(&self.counters),
            files: self.files.table(),
            subscription: self.files.subscription(),
            session: Session::default(),
        };
        self.tasks.spawn("sds-stream", exchange.run());
        Response::new(ReceiverStream::new(stream))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(self.start::<StateOfTheWorld>(request.into_inner()))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(self.start::<Delta>(request.into_inner()))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let mut session = Session::default();
        drop(StateOfTheWorld::apply(&mut session, request.into_inner()));
        let mut files = self.files.table();
        let mut subscription = self.files.subscription();
        subscription.set(session.files());
        let names = subscription.names();
        let is_read = |table: &Table| names.iter().all(|name| table.contains_key(name));
        // What is not read by then is not in the response.
        drop(timeout(FETCH_LIMIT, files.wait_for(is_read)).await);
        let due = session.due(self.identity.borrow().as_deref(), &files.borrow());
        self.counters.add_pushes(due.len());
        Ok(Response::new(StateOfTheWorld::respond(due, Vec::new(), nonce())))
    }
}

/// One stream.
struct Exchange<F: Flavour> {
    requests: Streaming<F::Request>,
    responses: mpsc::Sender<Result<F::Response, Status>>,
    identity: Identity,
    counters: Arc<Counters>,
    files: watch::Receiver<Table>,
    subscription: Subscription,
    session: Session,
}

impl<F: Flavour> Exchange<F> {
    async fn run(mut self) {
        loop {
            let open = tokio::select! {
                request = self.requests.next() => self.take(request),
                changed = self.identity.changed() => changed.is_ok(),
                changed = self.files.changed(), if !self.subscription.names().is_empty() => {
                    changed.is_ok()
                }
                () = self.responses.closed() => false,
            };
            if !open || self.send().await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, request: Option<Result<F::Request, Status>>) -> bool {
        let Some(Ok(request)) = request else { return false };
        if let Some(refusal) = F::apply(&mut self.session, request) {
            self.counters.add_rejected();
            let words: String = refusal.message.chars().take(WORDS).collect();
            tracing::warn!(words, "The proxy refused a secret.");
        }
        true
    }

    /// Sends what is due; an error means that the stream is over.
    async fn send(&mut self) -> Result<(), ()> {
        let unknown = self.session.take_unknown();
        if !unknown.is_empty() && !F::TELLS_UNKNOWN {
            let words = format!("nobody knows the secrets {unknown:?}");
            drop(self.responses.send(Err(Status::invalid_argument(words))).await);
            return Err(());
        }
        self.subscription.set(self.session.files());
        let due = self
            .session
            .due(self.identity.borrow_and_update().as_deref(), &self.files.borrow_and_update());
        if due.is_empty() && unknown.is_empty() {
            return Ok(());
        }
        self.counters.add_pushes(due.len());
        let response = F::respond(due, unknown, nonce());
        self.responses.send(Ok(response)).await.map_err(drop)
    }
}

fn nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A request names a few secrets.
const REQUEST_BYTES: usize = 1 << 20;
/// Envoy opens one stream per secret.
const STREAMS: u32 = 1024;
/// Responses wait here while the proxy reads; the session sends no second one before.
const QUEUE: usize = 4;
/// Files that are on a disk are read in a few milliseconds.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// What the log shows of the proxy's words.
const WORDS: usize = 500;
