//! The gRPC server and the life of one stream.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::Counters;
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
#[derive(Clone, Debug)]
pub struct Config {
    /// The users whose processes may have our key.
    pub peers: Peers,
    /// What was served.
    pub counters: Arc<Counters>,
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
    let service = Service { counters: config.counters, identity, tasks };
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
        let due = session.due(self.identity.borrow().as_deref());
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
    session: Session,
}

impl<F: Flavour> Exchange<F> {
    async fn run(mut self) {
        let mut look = interval(FILE_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let open = tokio::select! {
                request = self.requests.next() => self.take(request),
                changed = self.identity.changed() => changed.is_ok(),
                _ = look.tick(), if self.session.has_files() => true,
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
        let due = self.session.due(self.identity.borrow_and_update().as_deref());
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
/// How often files are looked at; Istio's agent waits for the kernel to tell.
const FILE_LOOK: Duration = Duration::from_secs(5);
/// What the log shows of the proxy's words.
const WORDS: usize = 500;
