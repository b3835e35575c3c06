//! gRPC's own health check as a probe (`grpc.health.v1.Health/Check`).

use http::Uri;
use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::connect::Way;
use crate::base::trouble::chain;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks once, over a connection of its own.
pub(super) async fn check(
    way: Way,
    host: Option<&str>,
    port: u16,
    service: &str,
) -> Result<(), String> {
    let stream = way.connect(host, port).await.map_err(|error| error.to_string())?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("it hung up"));
        std::future::ready(stream)
    });
    let endpoint = Endpoint::from_static("http://probe").user_agent(USER_AGENT);
    let endpoint = endpoint.map_err(|error| chain(&error))?;
    let channel = endpoint.connect_with_connector(connector).await;
    let mut client = Grpc::new(channel.map_err(|error| chain(&error))?);
    client = client.max_decoding_message_size(ANSWER);
    client.ready().await.map_err(|error| chain(&error))?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    match client.unary(request, path, codec).await {
        Ok(answer) => judge(answer.into_inner().status),
        Err(status) => Err(match status.code() {
            Code::Unimplemented => "it has no gRPC health service".to_owned(),
            Code::NotFound => format!("it knows no service {service:?}"),
            code => format!("{code:?}: {}", super::quoted(status.message().as_bytes())),
        }),
    }
}

/// What an answer's bytes say.
///
/// # Errors
/// With why the service does not serve.
pub fn answer(bytes: &[u8]) -> Result<(), String> {
    let answer = HealthCheckResponse::decode(bytes).map_err(|error| error.to_string())?;
    judge(answer.status)
}

/// The numbers of `ServingStatus`.
fn judge(status: i32) -> Result<(), String> {
    Err(match status {
        1 => return Ok(()),
        0 => "its status is UNKNOWN".to_owned(),
        2 => "its status is NOT_SERVING".to_owned(),
        3 => "its status is SERVICE_UNKNOWN".to_owned(),
        other => format!("its status is {other}, which means nothing"),
    })
}

const USER_AGENT: &str = concat!("vm-agent-probe/", env!("CARGO_PKG_VERSION"));
/// The answer has two bytes.
const ANSWER: usize = 4096;
