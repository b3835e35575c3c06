//! The aggregated discovery service in both flavours: who may subscribe, what is sent when, and
//! what proxies took (`pilot/pkg/xds/{ads,delta}.go`). What is sent stands in `resources`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt;
use prost_types::Any;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::ca::{self, Caller};
use super::faults::{Fault, Service as Which};
use super::registration::{self, Registered};
use super::seen::{SeenAnswer, SeenCaller, record};
use super::{State, lock, resources};
use crate::base::tasks::Tasks;
use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Node,
    Resource,
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
    /// The proxy's words when it refused a response, or the machine's when it is unhealthy.
    error: Option<String>,
    names: Names,
}

/// How a request changes the names of a subscription.
enum Names {
    /// State of the world: these and no others.
    All(BTreeSet<String>),
    /// Delta: these too, and those no more.
    Change { more: BTreeSet<String>, fewer: Vec<String> },
}

/// What both flavours' responses have.
struct Sent {
    type_url: String,
    version: String,
    nonce: String,
    resources: Vec<(String, Any)>,
}

/// What is known of one type on one stream.
#[derive(Default)]
struct Subscription {
    names: BTreeSet<String>,
    nonce: String,
}

/// One stream.
struct Conversation<R> {
    state: Arc<State>,
    caller: Caller,
    admitted: bool,
    registered: Option<Registered>,
    subscriptions: BTreeMap<String, Subscription>,
    sent: u64,
    say: fn(Sent) -> R,
    responses: mpsc::Sender<Result<R, Status>>,
}

impl Service {
    async fn converse<Q: Send + 'static, R: Send + 'static>(
        &self,
        request: Request<Streaming<Q>>,
        read: fn(Q) -> Asked,
        say: fn(Sent) -> R,
        delta: bool,
    ) -> Result<Response<ReceiverStream<Result<R, Status>>>, Status> {
        self.state.faults.pass(Which::Ads).await?;
        let caller = ca::caller(&self.state, &request)?;
        self.state.see(|seen| {
            seen.streams += 1;
            let (id, proof) = (caller.id.to_string(), caller.proof.clone());
            record(&mut seen.callers, SeenCaller { id, proof, delta });
        });
        let (responses, stream) = mpsc::channel(QUEUE);
        let mut conversation = Conversation {
            state: Arc::clone(&self.state),
            caller,
            admitted: false,
            registered: None,
            subscriptions: BTreeMap::new(),
            sent: 0,
            say,
            responses,
        };
        let pushes = self.state.pushes.subscribe();
        let requests = request.into_inner();
        self.tasks.spawn("devmesh-stream", async move {
            let end = conversation.run(requests, read, pushes).await;
            if let Err(status) = end {
                // The proxy may be gone already.
                drop(conversation.responses.send(Err(status)).await);
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl<R> Drop for Conversation<R> {
    fn drop(&mut self) {
        // First the entry, then the counter: who waits for the counter finds the entry changed.
        self.registered = None;
        self.state.see(|seen| seen.streams_ended += 1);
    }
}

impl<R> Conversation<R> {
    async fn run<Q>(
        &mut self,
        mut requests: Streaming<Q>,
        read: fn(Q) -> Asked,
        mut pushes: watch::Receiver<u64>,
    ) -> Result<(), Status> {
        pushes.mark_unchanged();
        loop {
            tokio::select! {
                asked = requests.next() => match asked {
                    Some(Ok(asked)) => self.hear(read(asked)).await?,
                    Some(Err(_)) | None => return Ok(()),
                },
                changed = pushes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.push().await?;
                }
            }
        }
    }

    async fn push(&mut self) -> Result<(), Status> {
        // Envoy wants clusters before what refers to them, and "cluster" sorts first.
        for type_url in self.subscriptions.keys().cloned().collect::<Vec<_>>() {
            self.answer(type_url).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, asked: Asked) -> Result<(), Status> {
        if asked.type_url == resources::HEALTH {
            if self.admitted {
                registration::report(&self.state, self.registered.as_ref(), asked.error);
            } else {
                self.state.see(|seen| seen.ignored_health += 1);
            }
            return Ok(());
        }
        if !self.admitted {
            self.registered = registration::admit(&self.state, &self.caller, asked.node.as_ref())?;
            self.admitted = true;
        }
        if self.wants_answer(&asked) { self.answer(asked.type_url).await } else { Ok(()) }
    }

    /// Takes a request in; true when it asks for something.
    fn wants_answer(&mut self, asked: &Asked) -> bool {
        let known = self.subscriptions.contains_key(&asked.type_url);
        let subscription = self.subscriptions.entry(asked.type_url.clone()).or_default();
        let news = subscription.change(&asked.names);
        if asked.nonce.is_empty() || !known {
            // A new stream may begin with the nonce of an older one.
            return news || !known;
        }
        let current = asked.nonce == subscription.nonce;
        self.state.see(|seen| {
            let answer = SeenAnswer {
                type_url: asked.type_url.clone(),
                nonce: asked.nonce.clone(),
                message: asked.error.clone().unwrap_or_default(),
            };
            if asked.error.is_some() {
                seen.nacks += 1;
                record(&mut seen.rejections, answer);
            } else if current {
                seen.acks += 1;
                record(&mut seen.acked, answer);
            }
        });
        news && current && asked.error.is_none()
    }

    async fn answer(&mut self, type_url: String) -> Result<(), Status> {
        if self.state.faults.of(Which::Ads) == Fault::Hang {
            // Silence; the stream goes on listening, so that its end is noticed.
            return Ok(());
        }
        let fault = self.state.faults.pass(Which::Ads).await?;
        let found = resources::of(&type_url, &lock(&self.state.names));
        let Some(mut resources) = found else { return Ok(()) };
        if fault == Fault::Rubbish {
            for (_, resource) in &mut resources {
                resource.value = RUBBISH.to_vec();
            }
        }
        self.sent += 1;
        let push = *self.state.pushes.borrow();
        let (version, nonce) = (format!("devmesh/{push}"), format!("devmesh-{}", self.sent));
        if let Some(subscription) = self.subscriptions.get_mut(&type_url) {
            subscription.nonce.clone_from(&nonce);
        }
        let response = (self.say)(Sent { type_url, version, nonce, resources });
        let sent = self.responses.send(Ok(response)).await;
        sent.map_err(|_| Status::cancelled("the proxy has gone"))
    }
}

impl Subscription {
    /// True when names came in that were not subscribed before.
    fn change(&mut self, names: &Names) -> bool {
        match names {
            Names::All(all) => {
                let news = *all != self.names;
                self.names.clone_from(all);
                news
            }
            Names::Change { more, fewer } => {
                self.names.retain(|name| !fewer.contains(name));
                self.names.extend(more.iter().cloned());
                !more.is_empty()
            }
        }
    }
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
            error: asked.error_detail.map(|error| error.message),
            names: Names::All(asked.resource_names.into_iter().collect()),
        };
        let say = |sent: Sent| DiscoveryResponse {
            version_info: sent.version,
            resources: sent.resources.into_iter().map(|(_, resource)| resource).collect(),
            type_url: sent.type_url,
            nonce: sent.nonce,
        };
        self.converse(request, read, say, false).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let read = |asked: DeltaDiscoveryRequest| Asked {
            node: asked.node,
            type_url: asked.type_url,
            nonce: asked.response_nonce,
            error: asked.error_detail.map(|error| error.message),
            names: Names::Change {
                more: asked.resource_names_subscribe.into_iter().collect(),
                fewer: asked.resource_names_unsubscribe,
            },
        };
        let say = |sent: Sent| {
            let version = sent.version.clone();
            let resource = |(name, resource)| Resource {
                name,
                version: version.clone(),
                resource: Some(resource),
            };
            DeltaDiscoveryResponse {
                system_version_info: sent.version.clone(),
                resources: sent.resources.into_iter().map(resource).collect(),
                type_url: sent.type_url,
                nonce: sent.nonce,
                removed_resources: Vec::new(),
            }
        };
        self.converse(request, read, say, true).await
    }
}

/// Responses that a slow proxy may leave unread before the mesh waits for it.
const QUEUE: usize = 16;
/// No protocol buffer: a field of the wire type 7, which does not exist.
const RUBBISH: &[u8] = &[0xff, 0xff];
