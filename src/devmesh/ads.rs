//! The aggregated discovery service: registers machines, and answers every subscription with
//! nothing, which is a valid configuration.

use std::sync::Arc;

use futures_util::StreamExt;
use prost_types::Struct;
use prost_types::value::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Fault, State, ca, lock};
use crate::base::tasks::Tasks;
use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Node,
};

pub(super) fn service(
    state: Arc<State>,
    tasks: Tasks,
) -> AggregatedDiscoveryServiceServer<Service> {
    AggregatedDiscoveryServiceServer::new(Service { state, tasks })
}

pub(super) struct Service {
    state: Arc<State>,
    tasks: Tasks,
}

/// What both flavours' requests have.
struct Asked {
    node: Option<Node>,
    type_url: String,
    nonce: String,
    refused: bool,
}

impl Service {
    fn converse<Q: Send + 'static, R: Send + 'static>(
        &self,
        request: Request<Streaming<Q>>,
        read: fn(Q) -> Asked,
        answer: fn(String, String) -> R,
    ) -> Result<Response<ReceiverStream<Result<R, Status>>>, Status> {
        let (id, _) = ca::caller(&self.state, &request)?;
        self.state.see(|seen| seen.streams += 1);
        let (responses, stream) = mpsc::channel(16);
        let state = Arc::clone(&self.state);
        let mut requests = request.into_inner();
        self.tasks.spawn("ads-stream", async move {
            let mut known = false;
            let mut number = 0_u64;
            while let Some(Ok(asked)) = requests.next().await {
                let asked = read(asked);
                let refusal =
                    if known { Ok(()) } else { register(&state, &id, asked.node.as_ref()) };
                if state.fault() == Fault::Hang {
                    std::future::pending::<()>().await;
                }
                if let Err(status) = refusal {
                    drop(responses.send(Err(status)).await);
                    return;
                }
                known = true;
                if !asked.nonce.is_empty() {
                    state.see(|seen| if asked.refused { seen.nacks += 1 } else { seen.acks += 1 });
                    continue;
                }
                number += 1;
                if responses.send(Ok(answer(asked.type_url, number.to_string()))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// istiod's checks of a new stream (`pilot/pkg/xds/auth.go`, `pilot/pkg/autoregistration`).
fn register(state: &State, id: &str, node: Option<&Node>) -> Result<(), Status> {
    let node = node.filter(|node| !node.id.is_empty());
    let node = node.ok_or_else(|| Status::invalid_argument("missing node information"))?;
    let metadata = node.metadata.as_ref();
    let (namespace, account) = (text(metadata, "NAMESPACE"), text(metadata, "SERVICE_ACCOUNT"));
    if !id.ends_with(&format!("/ns/{namespace}/sa/{account}")) {
        let words =
            format!("authorization failed: no identities ([{id}]) matched {namespace}/{account}");
        return Err(Status::permission_denied(words));
    }
    let group = text(metadata, "AUTO_REGISTER_GROUP");
    if group.is_empty() {
        return Ok(());
    }
    if !lock(&state.groups).contains(&format!("{namespace}/{group}")) {
        let words = format!(
            "auto-registration WorkloadEntry of {}: cannot find WorkloadGroup {namespace}/{group}",
            node.id
        );
        return Err(Status::failed_precondition(words));
    }
    let ip = text(metadata, "INSTANCE_IPS").split(',').next().unwrap_or_default().to_owned();
    let spec = serde_json::json!({"address": ip, "serviceAccount": account});
    state.kube.put(&format!("{namespace}/{group}-{ip}"), serde_json::json!({"spec": spec}));
    Ok(())
}

fn text(metadata: Option<&Struct>, key: &str) -> String {
    let value = metadata.and_then(|metadata| metadata.fields.get(key)?.kind.clone());
    if let Some(Kind::StringValue(text)) = value { text } else { String::new() }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let read = |asked: DiscoveryRequest| Asked {
            node: asked.node,
            type_url: asked.type_url,
            nonce: asked.response_nonce,
            refused: asked.error_detail.is_some(),
        };
        self.converse(request, read, |type_url, nonce| DiscoveryResponse {
            version_info: nonce.clone(),
            type_url,
            nonce,
            ..DiscoveryResponse::default()
        })
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let read = |asked: DeltaDiscoveryRequest| Asked {
            node: asked.node,
            type_url: asked.type_url,
            nonce: asked.response_nonce,
            refused: asked.error_detail.is_some(),
        };
        self.converse(request, read, |type_url, nonce| DeltaDiscoveryResponse {
            type_url,
            nonce,
            ..DeltaDiscoveryResponse::default()
        })
    }
}
