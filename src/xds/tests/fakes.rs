//! An istiod and an Envoy that speak through tonic's own gRPC, over connections in memory so that
//! time can be paused. They pass raw bytes, so that every byte can be compared.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::server::{NamedService, StreamingService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};

use super::super::service::serve_connections;
use super::super::{
    Claims, Config, DialFailure, Health, Inputs, Line, Relay, Upstream, relay_over,
};
use crate::base::backoff::Retry;
use crate::base::clock;
use crate::base::tasks::Tasks;
use crate::base::uds::Peers;

/// A relay between an Envoy and an istiod.
pub(super) struct World {
    pub(super) relay: Relay<Wire>,
    pub(super) istiod: Istiod,
    pub(super) health: watch::Sender<Option<Health>>,
    pub(super) admission: watch::Sender<bool>,
    pub(super) claims: watch::Sender<Claims>,
    /// Whether new inbound connections wait.
    pub(super) delayed: watch::Sender<bool>,
    pub(super) tasks: Tasks,
    envoy: Channel,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(None, false).await
    }

    /// The same, where istiod makes the machine's entry from a group.
    pub(super) async fn grouped() -> Self {
        Self::with(None, true).await
    }

    /// The same, with a relay that keeps the ports of the machine's services in this file.
    pub(super) async fn keeping(services_file: Option<PathBuf>) -> Self {
        Self::with(services_file, false).await
    }

    async fn with(services_file: Option<PathBuf>, labels_of_entry: bool) -> Self {
        let (tasks, _) = Tasks::new();
        let (wire, istiod) = istiod(&tasks);
        let health = watch::Sender::new(None);
        let admission = watch::Sender::new(true);
        let claims = watch::Sender::new(Claims::default());
        let delayed = watch::Sender::new(true);
        let inputs = Inputs {
            health: health.subscribe(),
            admission: admission.subscribe(),
            claims: claims.subscribe(),
            inbound_delayed: delayed.subscribe(),
        };
        let config = Config {
            peers: Peers::new(vec![]),
            name_table: true,
            workload: Arc::new(super::workload("10.0.0.1")),
            labels_of_entry,
            services_file,
            notice: super::NOTICE,
        };
        let relay = relay_over(config, wire, inputs, clock::system(), tasks.child());
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let connections = stream::iter([Ok(theirs)]).chain(stream::pending());
        let server = serve_connections(Arc::clone(&relay.shared), connections);
        tasks.spawn("relay", async move { server.await.unwrap() });
        Self {
            relay,
            istiod,
            health,
            admission,
            claims,
            delayed,
            tasks,
            envoy: channel(ours).await,
        }
    }

    /// Opens a stream as Envoy does.
    pub(super) async fn envoy(&self, path: &'static str) -> Envoy {
        open(self.envoy.clone(), path).await
    }

    /// A stream on which istiod has responded, with its first request and response consumed.
    pub(super) async fn connected(&mut self, path: &'static str) -> (Envoy, Stream) {
        let mut envoy = self.envoy(path).await;
        envoy.send(super::request(path, "type.googleapis.com/envoy.first", "")).await;
        let mut stream = self.istiod.stream().await;
        stream.receive().await;
        stream.send(super::response("type.googleapis.com/envoy.first", "0", &[])).await;
        envoy.receive().await;
        (envoy, stream)
    }
}

/// Envoy's end of a stream.
pub(super) struct Envoy {
    requests: mpsc::Sender<Bytes>,
    responses: Streaming<Bytes>,
}

impl Envoy {
    pub(super) async fn send(&self, request: Bytes) {
        within(self.requests.send(request)).await.unwrap();
    }

    pub(super) async fn receive(&mut self) -> Bytes {
        within(self.responses.message()).await.unwrap().expect("a response")
    }

    /// The status that ends the stream, before which nothing arrives.
    pub(super) async fn end(&mut self) -> Code {
        match within(self.responses.message()).await {
            Ok(None) => Code::Ok,
            Ok(Some(message)) => panic!("a response instead of the end: {message:?}"),
            Err(status) => status.code(),
        }
    }

    /// Whatever comes next: true for a response, false for the end.
    pub(super) async fn end_or_response(&mut self) -> bool {
        matches!(self.responses.message().await, Ok(Some(_)))
    }

    /// Whether the stream stays open without a response for this time.
    pub(super) async fn is_held_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.responses.message()).await.is_err()
    }
}

/// Opens a stream on a connection to the relay.
pub(super) async fn open(channel: Channel, path: &'static str) -> Envoy {
    let (requests, outgoing) = mpsc::channel(4096);
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await.unwrap();
    let request = tonic::Request::new(ReceiverStream::new(outgoing));
    let opened = grpc.streaming(request, path.parse().unwrap(), Raw);
    Envoy { requests, responses: within(opened).await.unwrap().into_inner() }
}

/// The control plane's end.
pub(super) struct Istiod {
    pub(super) reachable: Arc<AtomicBool>,
    pub(super) dials: Arc<AtomicU64>,
    lines: Arc<Mutex<Vec<Tasks>>>,
    streams: mpsc::Receiver<Stream>,
}

impl Istiod {
    /// The next stream that the relay opens.
    pub(super) async fn stream(&mut self) -> Stream {
        within(self.streams.recv()).await.expect("a stream")
    }

    pub(super) fn dials(&self) -> u64 {
        self.dials.load(Ordering::SeqCst)
    }

    /// Breaks all connections, and says whether new ones can be made.
    pub(super) fn cut(&self, reachable: bool) {
        self.reachable.store(reachable, Ordering::SeqCst);
        for line in self.lines.lock().unwrap().drain(..) {
            line.stop();
        }
    }
}

/// Istiod's end of a stream.
pub(super) struct Stream {
    pub(super) path: String,
    pub(super) metadata: MetadataMap,
    requests: Streaming<Bytes>,
    responses: mpsc::Sender<Result<Bytes, Status>>,
}

impl Stream {
    pub(super) async fn send(&self, response: Bytes) {
        within(self.responses.send(Ok(response))).await.unwrap();
    }

    pub(super) async fn refuse(self, status: Status) {
        within(self.responses.send(Err(status))).await.unwrap();
    }

    pub(super) async fn receive(&mut self) -> Bytes {
        within(self.requests.message()).await.unwrap().expect("a request")
    }

    /// What sends responses, for a task of its own.
    pub(super) fn responses(&self) -> mpsc::Sender<Result<Bytes, Status>> {
        self.responses.clone()
    }

    /// Whether the relay closes the stream before it sends another request.
    pub(super) async fn is_over(&mut self) -> bool {
        !matches!(within(self.requests.message()).await, Ok(Some(_)))
    }

    /// Whether no request arrives for this time.
    pub(super) async fn is_quiet_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.requests.message()).await.is_err()
    }
}

/// The relay's side of the wire to istiod.
pub(super) struct Wire {
    tasks: Tasks,
    reachable: Arc<AtomicBool>,
    dials: Arc<AtomicU64>,
    lines: Arc<Mutex<Vec<Tasks>>>,
    connections: mpsc::Sender<io::Result<DuplexStream>>,
}

impl Upstream for Wire {
    async fn dial(&self) -> Result<Line, DialFailure> {
        let number = self.dials.fetch_add(1, Ordering::SeqCst);
        if !self.reachable.load(Ordering::SeqCst) {
            let cause = io::Error::from(io::ErrorKind::ConnectionRefused).into();
            let hint = Some("Start istiod.".to_owned());
            return Err(DialFailure { cause, retry: Retry::Soon, hint });
        }
        // The pipe in the middle is what a test cuts.
        let (ours, mut near) = tokio::io::duplex(PIPE);
        let (mut far, theirs) = tokio::io::duplex(PIPE);
        let line = self.tasks.child();
        line.spawn("line", async move {
            drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
        });
        self.lines.lock().unwrap().push(line);
        self.connections.send(Ok(theirs)).await.unwrap();
        let peer = format!("istiod-{number}");
        Ok(Line { channel: channel(ours).await, peer, with_certificate: false })
    }

    async fn headers(&self, _: &Line) -> Result<MetadataMap, DialFailure> {
        let mut headers = MetadataMap::new();
        headers.insert("clusterid", "Kubernetes".parse().unwrap());
        Ok(headers)
    }
}

pub(super) fn istiod(tasks: &Tasks) -> (Wire, Istiod) {
    let (connections, accepted) = mpsc::channel(16);
    let (sink, streams) = mpsc::channel(64);
    let reachable = Arc::new(AtomicBool::new(true));
    let (dials, lines) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let server = Server::builder()
        .add_service(Discovery { sink })
        .serve_with_incoming(ReceiverStream::new(accepted));
    tasks.spawn("istiod", async move { server.await.unwrap() });
    let wire = Wire {
        tasks: tasks.clone(),
        reachable: Arc::clone(&reachable),
        dials: Arc::clone(&dials),
        lines: Arc::clone(&lines),
        connections,
    };
    (wire, Istiod { reachable, dials, lines, streams })
}

async fn channel(io: DuplexStream) -> Channel {
    let mut io = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_: http::Uri| {
        ready(io.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://test").connect_with_connector(connector).await.unwrap()
}

/// Fails the test when something takes too long; the limit is far above every limit of the relay.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(600), future).await.expect("in time")
}

#[derive(Clone)]
struct Discovery {
    sink: mpsc::Sender<Stream>,
}

impl Service<Request<Body>> for Discovery {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let accept = Accept { path: request.uri().path().to_owned(), sink: self.sink.clone() };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            Ok(grpc.streaming(accept, request).await)
        })
    }
}

impl NamedService for Discovery {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

struct Accept {
    path: String,
    sink: mpsc::Sender<Stream>,
}

impl StreamingService<Bytes> for Accept {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (responses, outgoing) = mpsc::channel(1);
        let metadata = request.metadata().clone();
        let (path, requests) = (self.path.clone(), request.into_inner());
        // A test that does not look at its streams has no use for this one.
        drop(self.sink.try_send(Stream { path, metadata, requests, responses }));
        ready(Ok(tonic::Response::new(ReceiverStream::new(outgoing))))
    }
}

/// Passes messages as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What a connection in memory holds.
const PIPE: usize = 64 * 1024;
