//! The gRPC server on the proxy's socket.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::codec::Opaque;
use super::exchange::Exchange;
use super::intercept::Flavour;
use super::upstream::Shared;
use crate::base::tasks::Tasks;

pub(super) async fn serve(
    listener: UnixListener,
    shared: Arc<Shared>,
    tasks: Tasks,
) -> Result<(), tonic::transport::Error> {
    let stop = tasks.stop_signal();
    let peers = shared.config.peers.clone();
    let incoming = UnixListenerStream::new(listener).filter(move |stream| {
        let refused = stream.as_ref().ok().and_then(|stream| peers.check(stream).err());
        if let Some(uid) = refused {
            tracing::warn!(?uid, "Refused a process of another user at the configuration socket.");
        }
        std::future::ready(refused.is_none())
    });
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .add_service(Service { shared, tasks })
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// The aggregated discovery service with opaque messages.
#[derive(Clone)]
struct Service {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl NamedService for Service {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl tower::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let flavours = [Flavour::StateOfTheWorld, Flavour::Delta];
        let path = request.uri().path();
        let flavour = flavours.into_iter().find(|flavour| flavour.path() == path);
        let method = flavour.map(|flavour| Method { flavour, service: self.clone() });
        Box::pin(async move {
            let Some(method) = method else {
                return Ok(Status::unimplemented("no such method").into_http());
            };
            let mut grpc = Grpc::new(Opaque).max_decoding_message_size(REQUEST_BYTES);
            grpc = grpc.max_encoding_message_size(usize::MAX);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct Method {
    flavour: Flavour,
    service: Service,
}

impl StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (responses, stream) = mpsc::channel(1);
        let exchange = Exchange {
            shared: Arc::clone(&self.service.shared),
            flavour: self.flavour,
            requests: request.into_inner(),
            responses,
            early: Vec::new(),
        };
        self.service.tasks.spawn("xds-stream", exchange.run());
        std::future::ready(Ok(Response::new(ReceiverStream::new(stream))))
    }
}

/// The proxy needs one; a restarted one has two for a moment.
const STREAMS: u32 = 16;
/// A subscription names every cluster: a megabyte in a very large mesh.
const REQUEST_BYTES: usize = 64 << 20;
