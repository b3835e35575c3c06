//! The server for Envoy: who may connect, and which methods there are.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::warn;

use super::frames::Outgoing;
use super::requests::Requests;
use super::session::Session;
use super::shared::Shared;
use super::upstream::Upstream;
use super::wire::Flavour;
use crate::base::uds::Peers;

/// Serves the allowed peers until the task group stops.
pub(super) async fn serve<U: Upstream>(
    shared: Arc<Shared<U>>,
    listener: UnixListener,
) -> Result<(), tonic::transport::Error> {
    let peers = shared.config.peers.clone();
    let connections = UnixListenerStream::new(listener).filter_map(move |connection| {
        let peers = peers.clone();
        async move { admit(connection, &peers).await.map(Ok) }
    });
    serve_connections(shared, connections).await
}

/// Serves these connections, whoever is on the other end.
pub(super) async fn serve_connections<U, S, C>(
    shared: Arc<Shared<U>>,
    connections: S,
) -> Result<(), tonic::transport::Error>
where
    U: Upstream,
    S: Stream<Item = Result<C, io::Error>>,
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let stop = shared.tasks.stop_signal();
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .add_service(Discovery { shared })
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await
}

async fn admit(connection: io::Result<UnixStream>, peers: &Peers) -> Option<UnixStream> {
    match connection {
        Ok(stream) => peers.admit(&stream, "xds").then_some(stream),
        Err(error) => {
            warn!(%error, "Cannot accept a connection at the discovery socket.");
            // Out of file descriptors, most likely: trying at once would only burn the processor.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// The aggregated discovery service.
struct Discovery<U> {
    shared: Arc<Shared<U>>,
}

impl<U: Upstream> Discovery<U> {
    /// Starts a session and answers with its stream at once, before istiod has said anything.
    fn open(&self, flavour: Flavour, requests: Body) -> Response<Body> {
        let (to_envoy, messages) = mpsc::channel(RESPONSES);
        let (end, ended) = oneshot::channel();
        let (number, replaced) = self.shared.enter();
        let shared = Arc::clone(&self.shared);
        let session = Session { shared, flavour, number, to_envoy, replaced };
        self.shared.tasks.spawn("xds stream", session.run(Requests::new(requests), end));
        let mut response = Response::new(Body::new(Outgoing::response(messages, ended)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

impl<U: Upstream> Service<Request<Body>> for Discovery<U> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ready(Ok(match Flavour::of_path(request.uri().path()) {
            Some(flavour) => self.open(flavour, request.into_body()),
            None => Status::unimplemented("no such discovery method").into_http(),
        }))
    }
}

impl<U> NamedService for Discovery<U> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<U> Clone for Discovery<U> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Responses that wait for Envoy to read them: they may be large, so only one.
const RESPONSES: usize = 1;
/// Streams of one connection; Envoy uses one.
const STREAMS: u32 = 16;
/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
