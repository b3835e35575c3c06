//! Configuration streams in both flavours.

use prost::Message;
use prost_types::value::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Node,
    Status as Detail,
};
use crate::proto::nds::{NameInfo, NameTable};

fn node(pairs: &[(&str, &str)]) -> Node {
    let text = |value: &str| prost_types::Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let own =
        [("NAMESPACE", "vms"), ("SERVICE_ACCOUNT", "client"), ("INSTANCE_IPS", "10.0.0.7,::1")];
    let fields = own.iter().chain(pairs).map(|&(key, value)| (key.to_owned(), text(value)));
    Node {
        id: "sidecar~10.0.0.7~vm1.vms~vms.svc.cluster.local".to_owned(),
        metadata: Some(prost_types::Struct { fields: fields.collect() }),
        ..Default::default()
    }
}

struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn open(mesh: &Mesh, first: DeltaDiscoveryRequest) -> Self {
        let mut client = AggregatedDiscoveryServiceClient::new(channel(mesh, None).await);
        let (requests, stream) = mpsc::channel(8);
        requests.send(first).await.unwrap();
        let request = with_token(ReceiverStream::new(stream), &token(mesh));
        let responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
        Self { requests, responses }
    }

    /// The status with which the stream ends at once.
    async fn refusal(mesh: &Mesh, node: Option<Node>) -> Status {
        let mut stream = Self::open(mesh, ask(LISTENERS, node)).await;
        stream.responses.message().await.unwrap_err()
    }

    async fn say(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.responses.message().await.unwrap().unwrap()
    }
}

fn ask(type_url: &str, node: Option<Node>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), node, ..Default::default() }
}

fn answer(to: &DeltaDiscoveryResponse, error: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: to.type_url.clone(),
        response_nonce: to.nonce.clone(),
        error_detail: error.map(|words| Detail { code: 13, message: words.to_owned() }),
        ..Default::default()
    }
}

fn health(error: Option<&str>) -> DeltaDiscoveryRequest {
    answer(&DeltaDiscoveryResponse { type_url: HEALTH.to_owned(), ..Default::default() }, error)
}

#[tokio::test]
async fn a_stream_without_a_good_name_is_refused_in_istiods_words() {
    let mesh = mesh().await;
    let refused = Delta::refusal(&mesh, None).await;
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "missing node information")
    );
    let refused = Delta::refusal(&mesh, Some(node(&[("SERVICE_ACCOUNT", "admin")]))).await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        format!("authorization failed: no identities ([{ID}]) matched vms/admin")
    );
    let refused = Delta::refusal(&mesh, Some(node(&[("AUTO_REGISTER_GROUP", "none")]))).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "cannot find WorkloadGroup vms/none");
}

#[tokio::test]
async fn a_stream_without_credentials_is_refused() {
    let mesh = mesh().await;
    let mut client = AggregatedDiscoveryServiceClient::new(channel(&mesh, None).await);
    let (_requests, stream) = mpsc::channel::<DeltaDiscoveryRequest>(1);
    let refused = client.delta_aggregated_resources(ReceiverStream::new(stream)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(mesh.seen().borrow().streams, 0);
}

#[tokio::test]
async fn a_machine_is_registered_reports_its_health_and_is_swept_away_after_it_left() {
    let mesh = mesh().await;
    let template =
        json!({"serviceAccount": "client", "labels": {"app": "client"}, "ports": {"http": 9080}});
    let group =
        json!({"spec": {"metadata": {"annotations": {"team": "red"}}, "template": template}});
    mesh.objects().put(Resource::WorkloadGroups, "vms", "client", group);
    let own = node(&[("AUTO_REGISTER_GROUP", "client"), ("NETWORK", "vpc")]);
    let mut stream = Delta::open(&mesh, health(None)).await;
    stream.say(ask(LISTENERS, Some(own))).await;
    stream.next().await;
    let name = "vms/client-10.0.0.7-vpc";
    let entry = mesh.entry(name).unwrap();
    assert_eq!(
        entry["spec"],
        json!({"serviceAccount": "client", "labels": {"app": "client"}, "ports": {"http": 9080},
               "address": "10.0.0.7", "network": "vpc"})
    );
    let annotations = &entry["metadata"]["annotations"];
    assert_eq!(annotations["istio.io/autoRegistrationGroup"], "client");
    assert_eq!(annotations["team"], "red");
    assert!(annotations["istio.io/connectedAt"].is_string());
    assert_eq!(entry["metadata"]["ownerReferences"][0]["kind"], "WorkloadGroup");

    stream.say(health(Some("no answer"))).await;
    let seen = mesh.seen().wait_for(|seen| !seen.health.is_empty()).await.unwrap();
    assert_eq!((seen.ignored_health, seen.registered), (1, vec![name.to_owned()]));
    let condition = mesh.entry(name).unwrap()["status"]["conditions"][0].clone();
    assert_eq!(
        (&condition["status"], &condition["message"]),
        (&json!("False"), &json!("no answer"))
    );

    assert_eq!(mesh.sweep(Duration::ZERO), 0, "it is connected");
    drop(stream);
    mesh.seen().wait_for(|seen| seen.streams_ended == 1).await.unwrap();
    assert!(mesh.entry(name).unwrap()["metadata"]["annotations"]["istio.io/connectedAt"].is_null());
    assert_eq!(mesh.sweep(HOUR), 0, "the grace time has not passed");
    assert_eq!(mesh.sweep(Duration::ZERO), 1);
    assert_eq!(mesh.entry(name), None);
}

#[tokio::test]
async fn a_second_stream_of_a_machine_keeps_its_entry_connected() {
    let mesh = mesh().await;
    mesh.add_group("vms/client");
    let own = || Some(node(&[("AUTO_REGISTER_GROUP", "client")]));
    let mut first = Delta::open(&mesh, ask(LISTENERS, own())).await;
    first.next().await;
    let mut second = Delta::open(&mesh, ask(LISTENERS, own())).await;
    second.next().await;
    drop(first);
    mesh.seen().wait_for(|seen| seen.streams_ended == 1).await.unwrap();
    assert_eq!(mesh.sweep(Duration::ZERO), 0);
    mesh.go_away().await.unwrap();
    assert_eq!(mesh.sweep(Duration::ZERO), 1, "all streams are gone");
}

#[tokio::test]
async fn a_machine_may_not_register_into_a_group_of_another_account() {
    let mesh = mesh().await;
    mesh.add_group("vms/bank");
    let refused = Delta::refusal(&mesh, Some(node(&[("AUTO_REGISTER_GROUP", "bank")]))).await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(mesh.objects().list(Resource::WorkloadEntries, None), Vec::<Value>::new());
}

#[tokio::test]
async fn a_delta_stream_gets_configuration_and_what_it_takes_and_refuses_is_seen() {
    let mesh = mesh().await;
    let mut stream = Delta::open(&mesh, ask(CLUSTERS, Some(node(&[])))).await;
    let clusters = stream.next().await;
    assert_eq!(
        (clusters.type_url.as_str(), clusters.resources[0].name.as_str()),
        (CLUSTERS, "BlackHoleCluster")
    );
    stream.say(answer(&clusters, None)).await;
    mesh.seen().wait_for(|seen| seen.acks == 1).await.unwrap();
    stream.say(ask(ENDPOINTS, None)).await;
    let endpoints = stream.next().await;
    assert!(endpoints.resources.is_empty());
    stream.say(answer(&endpoints, Some("bad endpoints"))).await;
    let seen = mesh.seen().wait_for(|seen| seen.nacks == 1).await.unwrap();
    assert_eq!(seen.rejections[0].message, "bad endpoints");
    assert_eq!((seen.acks, seen.callers[0].delta), (1, true));

    mesh.push();
    let pushed = [stream.next().await, stream.next().await];
    assert_eq!(pushed.each_ref().map(|one| one.type_url.as_str()), [CLUSTERS, ENDPOINTS]);
    assert_ne!(pushed[0].system_version_info, clusters.system_version_info);
    assert_ne!(pushed[0].nonce, clusters.nonce);
}

#[tokio::test]
async fn a_state_of_the_world_stream_is_answered_when_its_names_change() {
    let mesh = mesh().await;
    let mut client = AggregatedDiscoveryServiceClient::new(channel(&mesh, None).await);
    let (requests, stream) = mpsc::channel(8);
    let ask = |names: &[&str], nonce: &str| DiscoveryRequest {
        node: Some(node(&[])),
        type_url: ENDPOINTS.to_owned(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    };
    requests.send(ask(&["a"], "")).await.unwrap();
    let request = with_token(ReceiverStream::new(stream), &token(&mesh));
    let mut responses = client.stream_aggregated_resources(request).await.unwrap().into_inner();
    let mut next = async || -> DiscoveryResponse { responses.message().await.unwrap().unwrap() };
    let first = next().await;
    requests.send(ask(&["a"], &first.nonce)).await.unwrap();
    requests.send(ask(&["a", "b"], &first.nonce)).await.unwrap();
    let second = next().await;
    assert_ne!(second.nonce, first.nonce, "the first one's acknowledgement was not answered");
    assert_eq!(mesh.seen().borrow().acks, 2);
    // A new type URL with a nonce is a proxy that has come back.
    let mut listeners = ask(&[], "of another stream");
    listeners.type_url = LISTENERS.to_owned();
    requests.send(listeners).await.unwrap();
    let listeners = next().await;
    assert_eq!((listeners.type_url.as_str(), listeners.resources.len()), (LISTENERS, 2));
    assert!(!mesh.seen().borrow().callers[0].delta);
}

#[tokio::test]
async fn the_name_table_is_sent_when_it_changes() {
    let mesh = mesh().await;
    let mut stream = Delta::open(&mesh, ask(NAME_TABLE, Some(node(&[])))).await;
    let table = |response: &DeltaDiscoveryResponse| {
        let any = response.resources[0].resource.clone().unwrap();
        NameTable::decode(any.value.as_slice()).unwrap().table
    };
    assert!(table(&stream.next().await).is_empty());
    let info = NameInfo { ips: vec!["10.96.0.9".to_owned()], ..Default::default() };
    mesh.set_names(BTreeMap::from([("shop.vms.svc.cluster.local".to_owned(), info)]));
    assert_eq!(table(&stream.next().await)["shop.vms.svc.cluster.local"].ips, ["10.96.0.9"]);
}

#[tokio::test]
async fn faults_of_the_streams_break_or_silence_them() {
    let mesh = mesh().await;
    mesh.faults().set(Service::Ads, Fault::Rubbish);
    let mut stream = Delta::open(&mesh, ask(CLUSTERS, Some(node(&[])))).await;
    let rubbish = stream.next().await.resources[0].resource.clone().unwrap();
    assert!(NameTable::decode(rubbish.value.as_slice()).is_err());
    mesh.faults().set(Service::Ads, Fault::Hang);
    mesh.push();
    mesh.faults().set(Service::Ads, Fault::Status(Code::Unavailable, "away"));
    mesh.push();
    // Silence or the end, but never another response.
    let end = stream.responses.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    let mut client = AggregatedDiscoveryServiceClient::new(channel(&mesh, None).await);
    let (_requests, requests) = mpsc::channel(1);
    let request = with_token(ReceiverStream::new(requests), &token(&mesh));
    let refused = client.delta_aggregated_resources(request).await.unwrap_err();
    assert_eq!(refused.message(), "away");
}

#[tokio::test]
async fn a_machine_that_made_its_entry_itself_is_told_of_there_and_the_entry_stays() {
    let mesh = mesh().await;
    let made = json!({"spec": {"address": "10.0.0.7", "serviceAccount": "client"}});
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm1", made);
    let others = json!({"spec": {"address": "10.0.0.8", "serviceAccount": "bank"}});
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm2", others);
    let refused = Delta::refusal(&mesh, Some(node(&[("WORKLOAD_ENTRY", "vm2")]))).await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    let own = node(&[("WORKLOAD_ENTRY", "vm1")]);
    let mut stream = Delta::open(&mesh, ask(LISTENERS, Some(own))).await;
    stream.next().await;
    stream.say(health(None)).await;
    mesh.seen().wait_for(|seen| !seen.health.is_empty()).await.unwrap();
    let status = |mesh: &Mesh| mesh.entry("vms/vm1").unwrap()["status"]["conditions"][0].clone();
    assert_eq!(status(&mesh)["status"], "True");
    drop(stream);
    mesh.seen().wait_for(|seen| seen.streams_ended == 2).await.unwrap();
    assert_eq!(mesh.sweep(Duration::ZERO), 0);
    assert_eq!(status(&mesh)["message"], "the machine has disconnected");
}

#[tokio::test]
async fn only_what_changes_is_sent_and_what_is_no_more_is_named() {
    let mesh = mesh().await;
    let service = |host: &str| {
        json!({"spec": {
            "hosts": [host], "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        }})
    };
    let services = Resource::ServiceEntries;
    mesh.objects().put(services, "vms", "a", service("a.internal"));
    let mut first = ask(CLUSTERS, Some(node(&[])));
    first.initial_resource_versions.insert("outbound|80||gone.internal".to_owned(), String::new());
    let mut stream = Delta::open(&mesh, first).await;
    let all = stream.next().await;
    assert_eq!(all.removed_resources, ["outbound|80||gone.internal"]);
    assert_eq!(all.resources.len(), 4);
    stream.say(answer(&all, None)).await;
    mesh.objects().put(services, "vms", "b", service("b.internal"));
    let more = stream.next().await;
    let names: Vec<_> = more.resources.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((names, more.removed_resources.len()), (vec!["outbound|80||b.internal"], 0));
    mesh.objects().delete(services, "vms", "a");
    let less = stream.next().await;
    assert_eq!(
        (less.resources.len(), less.removed_resources),
        (0, vec!["outbound|80||a.internal".to_owned()])
    );
    // What an annotation changes is nobody's concern: the refusal of `c` comes next.
    mesh.objects().put(services, "vms", "b", {
        let mut same = service("b.internal");
        same["metadata"] = json!({"annotations": {"note": "x"}});
        same
    });
    mesh.objects().put(services, "vms", "c", service("c.internal"));
    let next = stream.next().await;
    assert_eq!(next.resources[0].name, "outbound|80||c.internal");
    stream.say(answer(&next, Some("no such cluster"))).await;
    mesh.seen().wait_for(|seen| seen.nacks == 1).await.unwrap();
    let picture = mesh.picture();
    let configuration = &picture.machines[0].stream.as_ref().unwrap().configuration["clusters"];
    assert_eq!(configuration.refused.as_deref(), Some("no such cluster"));
    assert_ne!(configuration.taken.as_ref(), Some(&configuration.sent));
    assert_eq!(picture.denials.last().unwrap().why, "no such cluster");
}
