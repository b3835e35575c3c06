//! The aggregated discovery service in both flavours: who may subscribe, what is sent when, and
//! what proxies took (`pilot/pkg/xds/{ads,delta}.go`). What is sent stands in `resources`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use prost_types::Any;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::ca::{self, Caller};
use super::faults::{Fault, Service as Which};
use super::ledger::Stream;
use super::proxy::Proxy;
use super::registration::{self, Registered};
use super::resources::{self, View};
use super::seen::{SeenAnswer, SeenCaller, record};
use super::subscription::{Names, Subscription, Why};
use super::{State, lock};
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

/// Wakes the streams when the objects mean something else than before; changes that come in quick
/// succession are one.
pub(super) async fn follow(state: Arc<State>) {
    let mut objects = state.objects.changed();
    let mut known = state.catalog();
    while objects.changed().await.is_ok() {
        tokio::time::sleep(DEBOUNCE).await;
        objects.mark_unchanged();
        let now = state.catalog();
        if now != known {
            known = now;
            state.configured.send_modify(|count| *count += 1);
        }
    }
}

/// What both flavours' requests have.
struct Asked {
    node: Option<Node>,
    type_url: String,
    nonce: String,
    /// The proxy's words when it refused a response, or the machine's when it is unhealthy.
    error: Option<String>,
    names: Names,
    /// What a proxy that comes back still has (delta).
    held: BTreeSet<String>,
}

/// What both flavours' responses have.
struct Sent {
    type_url: String,
    version: String,
    nonce: String,
    resources: Vec<(String, Any)>,
    /// Names of those that are no more (delta).
    removed: Vec<String>,
}

/// One stream.
struct Conversation<R> {
    state: Arc<State>,
    caller: Caller,
    delta: bool,
    /// What the admitted proxy said of itself, with the stream's number in the ledger.
    proxy: Option<(Proxy, u64)>,
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
        let caller = ca::caller(&self.state, &request)
            .inspect_err(|status| self.state.deny("somebody", CONFIGURATION, status.message()))?;
        self.state.see(|seen| {
            seen.streams += 1;
            let (id, proof) = (caller.id.to_string(), caller.proof.clone());
            record(&mut seen.callers, SeenCaller { id, proof, delta });
        });
        let (responses, stream) = mpsc::channel(QUEUE);
        let mut conversation = Conversation {
            state: Arc::clone(&self.state),
            caller,
            delta,
            proxy: None,
            registered: None,
            subscriptions: BTreeMap::new(),
            sent: 0,
            say,
            responses,
        };
        let (pushes, objects) = (self.state.pushes.subscribe(), self.state.configured.subscribe());
        let requests = request.into_inner();
        self.tasks.spawn("devmesh-stream", async move {
            let end = conversation.run(requests, read, (pushes, objects)).await;
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
        if let Some((_, number)) = self.proxy {
            self.state.ledger.close(number);
        }
        self.state.see(|seen| seen.streams_ended += 1);
    }
}

impl<R> Conversation<R> {
    async fn run<Q>(
        &mut self,
        mut requests: Streaming<Q>,
        read: fn(Q) -> Asked,
        (mut pushes, mut objects): (watch::Receiver<u64>, watch::Receiver<u64>),
    ) -> Result<(), Status> {
        pushes.mark_unchanged();
        objects.mark_unchanged();
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
                    self.push(Why::Pushed).await?;
                }
                changed = objects.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.push(Why::Changed).await?;
                }
            }
        }
    }

    async fn push(&mut self, why: Why<'_>) -> Result<(), Status> {
        // Envoy wants clusters, endpoints, listeners and routes in this order, which is the
        // alphabet's.
        let mut again = BTreeSet::new();
        for type_url in self.subscriptions.keys().cloned().collect::<Vec<_>>() {
            let why = if again.contains(type_url.as_str()) { Why::Pushed } else { why };
            if self.answer(&type_url, why).await? {
                again.extend(resources::follower(&type_url));
            }
        }
        Ok(())
    }

    async fn hear(&mut self, asked: Asked) -> Result<(), Status> {
        if asked.type_url == resources::HEALTH {
            if self.proxy.is_some() {
                registration::report(&self.state, self.registered.as_ref(), asked.error);
            } else {
                self.state.see(|seen| seen.ignored_health += 1);
            }
            return Ok(());
        }
        if self.proxy.is_none() {
            self.admit(asked.node.as_ref())?;
        }
        if !self.wants_answer(&asked) {
            return Ok(());
        }
        let sent = self.answer(&asked.type_url, Why::Asked(&asked.names)).await?;
        // A proxy that takes other clusters waits for their endpoints anew.
        match resources::follower(&asked.type_url).filter(|_| sent) {
            Some(next) if self.subscriptions.contains_key(next) => {
                self.answer(next, Why::Pushed).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    fn admit(&mut self, node: Option<&Node>) -> Result<(), Status> {
        let (state, caller) = (&self.state, &self.caller);
        let admitted = registration::admit(state, caller, node);
        let (proxy, registered) = admitted.inspect_err(|status| {
            state.deny(&caller.id.to_string(), CONFIGURATION, status.message());
        })?;
        let number = state.ledger.open(Stream {
            proxy: proxy.clone(),
            id: caller.id.to_string(),
            proof: caller.proof.clone(),
            since: state.options.clock.now(),
            types: BTreeMap::new(),
        });
        (self.proxy, self.registered) = (Some((proxy, number)), registered);
        Ok(())
    }

    /// Takes a request in; true when it asks for something.
    fn wants_answer(&mut self, asked: &Asked) -> bool {
        let known = self.subscriptions.contains_key(&asked.type_url);
        let subscription = self.subscriptions.entry(asked.type_url.clone()).or_default();
        let news = subscription.change(&asked.names);
        if !known {
            subscription.held = asked.held.iter().map(|name| (name.clone(), None)).collect();
        }
        if asked.nonce.is_empty() || !known {
            // A new stream may begin with the nonce of an older one.
            return news || !known;
        }
        let current = asked.nonce == subscription.nonce;
        if current {
            self.note(asked);
        }
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

    /// Keeps in the ledger what the proxy did with the newest version, and logs a refusal.
    fn note(&self, asked: &Asked) {
        let Some((proxy, number)) = &self.proxy else { return };
        let version = self.subscriptions.get(&asked.type_url).map(|known| known.version.clone());
        if let Some(error) = &asked.error {
            let (node, kind) = (&proxy.id, &asked.type_url);
            tracing::warn!(node, kind, error, "A proxy refused its configuration.");
            self.state.deny(&self.caller.id.to_string(), CONFIGURATION, error);
        }
        self.state.ledger.progress(*number, &asked.type_url, |progress| {
            progress.refused.clone_from(&asked.error);
            if asked.error.is_none() {
                progress.taken = version;
            }
        });
    }

    /// What the proxy shall have of a type now; `None` when that type is nobody's.
    fn wanted(&self, type_url: &str) -> Option<Vec<(String, Any)>> {
        let (proxy, _) = self.proxy.as_ref()?;
        let (catalog, names) = (self.state.catalog(), lock(&self.state.names));
        let view = View {
            catalog: &catalog,
            proxy,
            trust_domain: &self.state.trust_domain,
            mutual_tls: self.state.options.mutual_tls,
            names: &names,
        };
        let mut found = resources::of(type_url, &view)?;
        if resources::is_named(type_url) {
            let named = self.subscriptions.get(type_url).map(|known| &known.names);
            found.retain(|(name, _)| named.is_some_and(|named| named.contains(name)));
        }
        Some(found)
    }

    /// Sends what there is to send of a type; false when that was nothing.
    async fn answer(&mut self, type_url: &str, why: Why<'_>) -> Result<bool, Status> {
        if self.state.faults.of(Which::Ads) == Fault::Hang {
            // Silence; the stream goes on listening, so that its end is noticed.
            return Ok(false);
        }
        let fault = self.state.faults.pass(Which::Ads).await?;
        let revision = self.state.objects.revision();
        let Some(wanted) = self.wanted(type_url) else { return Ok(false) };
        let Some(subscription) = self.subscriptions.get_mut(type_url) else { return Ok(false) };
        let count = wanted.len();
        let (mut resources, removed) = subscription.turn(wanted, why, self.delta);
        if why == Why::Changed && resources.is_empty() && removed.is_empty() {
            return Ok(false);
        }
        if fault == Fault::Rubbish {
            for (_, resource) in &mut resources {
                resource.value = RUBBISH.to_vec();
            }
        }
        self.sent += 1;
        let push = *self.state.pushes.borrow();
        let (version, nonce) =
            (format!("devmesh/{push}.{revision}"), format!("devmesh-{}", self.sent));
        subscription.nonce.clone_from(&nonce);
        subscription.version.clone_from(&version);
        if let Some((_, number)) = &self.proxy {
            self.state.ledger.progress(*number, type_url, |progress| {
                (progress.resources, progress.sent) = (count, version.clone());
            });
        }
        let type_url = type_url.to_owned();
        let response = (self.say)(Sent { type_url, version, nonce, resources, removed });
        let sent = self.responses.send(Ok(response)).await;
        sent.map(|()| true).map_err(|_| Status::cancelled("the proxy has gone"))
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
            held: BTreeSet::new(),
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
            held: asked.initial_resource_versions.into_keys().collect(),
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
                removed_resources: sent.removed,
            }
        };
        self.converse(request, read, say, true).await
    }
}

/// What a refusal of this service is about.
const CONFIGURATION: &str = "configuration";
/// istiod waits as long for further changes.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Responses that a slow proxy may leave unread before the mesh waits for it.
const QUEUE: usize = 16;
/// No protocol buffer: a field of the wire type 7, which does not exist.
const RUBBISH: &[u8] = &[0xff, 0xff];
