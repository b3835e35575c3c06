mod convergence;
mod fakes;
mod health;
mod rejections;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use super::wire::{CLUSTER, LISTENER, NAME_TABLE};
use super::{Claims, Config, Health, Inputs, Opening, Phase, relay_over};
use crate::base::backoff::Retry;
use crate::base::uds::Peers;
use crate::base::{clock, uds};
use crate::identity::SpiffeId;
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Node,
    Resource,
};
use crate::proto::nds::{NameInfo, NameTable};
use crate::workload::Workload;
use fakes::{World, within};

const SOTW: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Field 1000 with the text "hi", which no schema of ours knows.
const UNKNOWN: [u8; 5] = [0xc2, 0x3e, 2, b'h', b'i'];
/// Longer than every wait of the relay.
const LONG: Duration = Duration::from_secs(120);
/// What the others have to hear of an unhealthy workload.
const NOTICE: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn relays_both_flavours_byte_for_byte() {
    for path in [SOTW, DELTA] {
        let mut world = World::new().await;
        let mut envoy = world.envoy(path).await;
        let mut up = request(path, CLUSTER, "").to_vec();
        up.extend(UNKNOWN);
        envoy.send(up.clone().into()).await;
        let mut stream = world.istiod.stream().await;
        assert_eq!(stream.path, path);
        assert_eq!(stream.metadata.get("clusterid").unwrap(), "Kubernetes");
        assert_eq!(stream.receive().await, up);

        let mut down = response(CLUSTER, "n1", &[b"not decoded"]).to_vec();
        down.extend(UNKNOWN);
        stream.send(down.clone().into()).await;
        assert_eq!(envoy.receive().await, down);

        envoy.send(request(path, CLUSTER, "n1")).await;
        stream.receive().await;
        let state = world.relay.snapshot();
        assert_eq!((state.phase, state.requests, state.responses), (Phase::Connected, 2, 1));
        assert_eq!(state.types[CLUSTER].acks, 1);
        assert!(state.connected_since.is_some() && state.trouble.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_of_many_megabytes_passes() {
    let mut world = World::new().await;
    let (mut envoy, stream) = world.connected(DELTA).await;
    let large: Vec<u8> = (0..20 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    let large = response(CLUSTER, "big", &[&large]);
    stream.send(large.clone()).await;
    assert!(envoy.receive().await == large, "the bytes differ");
    stream.send(response(CLUSTER, "small", &[])).await;
    assert_eq!(envoy.receive().await, response(CLUSTER, "small", &[]));
}

#[tokio::test(start_paused = true)]
async fn requests_flow_while_envoy_does_not_read_its_responses() {
    let mut world = World::new().await;
    let (mut envoy, mut stream) = world.connected(DELTA).await;
    // Far more than all windows and queues hold.
    let flood = world.tasks.child();
    let (full, mut is_full) = tokio::sync::mpsc::channel(64);
    let (requests, large) = (1500, response(CLUSTER, "n", &[&vec![7; 1 << 20]]));
    let responses = stream.responses();
    flood.spawn("flood", async move {
        for _ in 0..32 {
            responses.send(Ok(large.clone())).await.unwrap();
            full.send(()).await.unwrap();
        }
    });
    is_full.recv().await.unwrap();
    for _ in 0..requests {
        envoy.send(request(DELTA, CLUSTER, "n")).await;
    }
    for _ in 0..requests {
        stream.receive().await;
    }
    assert!(is_full.len() < 31, "the flood was never held back");
    for _ in 0..32 {
        envoy.receive().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_name_table_is_asked_for_taken_out_published_and_acknowledged() {
    let mut world = World::new().await;
    let names = world.relay.name_table();
    let (mut envoy, mut stream) = world.connected(SOTW).await;
    envoy.send(request(SOTW, LISTENER, "")).await;
    assert_eq!(stream.receive().await, request(SOTW, LISTENER, ""));
    let asked = DiscoveryRequest::decode(stream.receive().await).unwrap();
    assert_eq!(asked, DiscoveryRequest { type_url: NAME_TABLE.into(), ..Default::default() });

    let table = names_of("10.0.0.7");
    stream.send(response(NAME_TABLE, "n5", &[&table.encode_to_vec()])).await;
    let ack = DiscoveryRequest::decode(stream.receive().await).unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.version_info.as_str()), ("n5", "v"));
    assert_eq!((ack.type_url.as_str(), ack.error_detail), (NAME_TABLE, None));
    assert_eq!(names.borrow().as_ref().map(|names| &names.table), Some(&table));

    stream.send(response(NAME_TABLE, "n6", &[b"\xff rubbish"])).await;
    let nack = DiscoveryRequest::decode(stream.receive().await).unwrap();
    assert_eq!(nack.response_nonce, "n6");
    assert_eq!(nack.error_detail.unwrap().code, 13);
    assert_eq!(
        names.borrow().as_ref().map(|names| &names.table),
        Some(&table),
        "the good table stays"
    );
    assert!(envoy.is_held_for(LONG).await, "Envoy must see none of it");
}

#[tokio::test(start_paused = true)]
async fn the_name_table_is_read_from_delta_responses_too() {
    let mut world = World::new().await;
    let (envoy, mut stream) = world.connected(DELTA).await;
    envoy.send(request(DELTA, LISTENER, "")).await;
    stream.receive().await;
    let asked = DeltaDiscoveryRequest::decode(stream.receive().await).unwrap();
    assert_eq!(asked, DeltaDiscoveryRequest { type_url: NAME_TABLE.into(), ..Default::default() });

    let table = names_of("10.0.0.8");
    let value = table.encode_to_vec();
    let any = prost_types::Any { type_url: NAME_TABLE.into(), value };
    let resource = Resource { resource: Some(any), ..Default::default() };
    let message = DeltaDiscoveryResponse {
        type_url: NAME_TABLE.into(),
        nonce: "d1".into(),
        resources: vec![resource],
        ..Default::default()
    };
    stream.send(message.encode_to_vec().into()).await;
    let ack = DeltaDiscoveryRequest::decode(stream.receive().await).unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("d1", None));
    assert_eq!(world.relay.name_table().borrow().as_ref().unwrap().table, table);
}

#[tokio::test(start_paused = true)]
async fn types_that_envoy_does_not_know_are_dropped() {
    let mut world = World::new().await;
    let (mut envoy, stream) = world.connected(DELTA).await;
    let foreign = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";
    let workload = "type.googleapis.com/istio.workload.Workload";
    stream.send(response(foreign, "p", &[])).await;
    stream.send(Bytes::from_static(b"\xff\xff")).await;
    stream.send(response(workload, "w", &[])).await;
    assert_eq!(envoy.receive().await, response(workload, "w", &[]));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_envoy_is_shown_in_its_words() {
    let mut world = World::new().await;
    let (envoy, mut stream) = world.connected(SOTW).await;
    let mut state = world.relay.state();
    state.mark_unchanged();
    let nack = DiscoveryRequest {
        type_url: CLUSTER.into(),
        response_nonce: "n".into(),
        error_detail: Some(crate::proto::discovery::Status {
            code: 13,
            message: "no such filter".into(),
        }),
        ..Default::default()
    };
    envoy.send(nack.encode_to_vec().into()).await;
    stream.receive().await;
    within(state.changed()).await.unwrap();
    let state = world.relay.snapshot();
    assert_eq!((state.rejected, state.types[CLUSTER].nacks), (1, 1));
    assert!(state.types[CLUSTER].refused);
    assert_eq!(state.last_rejection, Some(format!("{CLUSTER}: no such filter")));
    assert!(serde_json::to_string(&state).unwrap().contains("\"phase\":\"connected\""));
}

#[tokio::test(start_paused = true)]
async fn envoys_stream_waits_while_istiod_cannot_be_reached() {
    let mut world = World::new().await;
    world.istiod.cut(false);
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(request(DELTA, CLUSTER, "")).await;
    assert!(envoy.is_held_for(LONG).await);
    let state = world.relay.snapshot();
    assert_eq!((state.phase, state.connections), (Phase::Retrying, 0));
    assert_eq!(state.failures, world.istiod.dials());
    assert!((40..130).contains(&state.failures), "{} tries in two minutes", state.failures);
    let trouble = state.trouble.unwrap();
    assert_eq!(trouble.hint.as_deref(), Some("Start istiod."));
    assert!(trouble.what.contains("connection refused"), "{}", trouble.what);

    world.istiod.cut(true);
    let back = tokio::time::Instant::now();
    let mut stream = world.istiod.stream().await;
    assert!(back.elapsed() <= Duration::from_secs(3), "took {:?}", back.elapsed());
    assert_eq!(stream.receive().await, request(DELTA, CLUSTER, ""));
    stream.send(response(CLUSTER, "1", &[])).await;
    envoy.receive().await;
    assert!(world.relay.snapshot().trouble.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_lost_istiod_leaves_the_stream_open_until_it_is_back() {
    let mut world = World::new().await;
    let (mut envoy, _stream) = world.connected(DELTA).await;
    world.istiod.cut(false);
    assert!(envoy.is_held_for(LONG).await);
    let state = world.relay.snapshot();
    assert_eq!((state.phase, state.terminations), (Phase::Retrying, 1));
    assert!(state.trouble.is_some() && state.connected_since.is_none());

    world.istiod.cut(true);
    assert_eq!(envoy.end().await, Code::Ok);
    let dials = world.istiod.dials();
    let mut envoy = world.envoy(DELTA).await;
    let replay = request(DELTA, CLUSTER, "");
    envoy.send(replay.clone()).await;
    let mut stream = world.istiod.stream().await;
    assert_eq!(stream.receive().await, replay);
    stream.send(response(CLUSTER, "1", &[])).await;
    envoy.receive().await;
    assert_eq!(world.istiod.dials(), dials, "the waiting connection is used");
    assert_eq!(world.relay.snapshot().phase, Phase::Connected);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_connection_that_died_is_replaced() {
    let mut world = World::new().await;
    let (mut envoy, _stream) = world.connected(DELTA).await;
    world.istiod.cut(true);
    assert_eq!(envoy.end().await, Code::Ok);
    world.istiod.cut(true);
    let failures = world.relay.snapshot().failures;
    let (_envoy, _stream) = world.connected(DELTA).await;
    assert_eq!(world.relay.snapshot().failures, failures, "no trouble for anybody");
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_tried_again_at_our_pace_with_all_that_envoy_said() {
    let mut world = World::new().await;
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(request(DELTA, CLUSTER, "")).await;
    envoy.send(request(DELTA, LISTENER, "")).await;
    let words = "auto-registration failed: cannot find WorkloadGroup vms/client";
    let first = tokio::time::Instant::now();
    for _ in 0..6 {
        let mut stream = world.istiod.stream().await;
        assert_eq!(types(&mut stream, 3).await, [CLUSTER, LISTENER, NAME_TABLE]);
        stream.refuse(Status::failed_precondition(words)).await;
    }
    // Half of 2, 4, 8, 15 and 15 seconds.
    assert!(first.elapsed() >= Duration::from_secs(22), "{:?}", first.elapsed());
    assert!(envoy.is_held_for(Duration::from_secs(5)).await);
    let state = world.relay.snapshot();
    assert_eq!((state.phase, state.failures, state.connections), (Phase::Retrying, 6, 6));
    let trouble = state.trouble.unwrap();
    assert!(trouble.what.contains(words), "{}", trouble.what);
    assert!(trouble.hint.unwrap().contains("WorkloadGroup"));
    assert_eq!(trouble.retry, Retry::Later);

    let mut stream = world.istiod.stream().await;
    assert_eq!(types(&mut stream, 3).await, [CLUSTER, LISTENER, NAME_TABLE]);
    stream.send(response(CLUSTER, "1", &[])).await;
    envoy.receive().await;
    let state = world.relay.snapshot();
    assert_eq!((state.phase, state.trouble), (Phase::Connected, None));
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_of_envoy_does_not_quicken_the_tries() {
    let mut world = World::new().await;
    let first = tokio::time::Instant::now();
    for _ in 0..4 {
        let envoy = world.envoy(DELTA).await;
        envoy.send(request(DELTA, CLUSTER, "")).await;
        let mut stream = world.istiod.stream().await;
        stream.receive().await;
        let mut state = world.relay.state();
        let failures = state.borrow().failures;
        stream.refuse(Status::permission_denied("authorization failed")).await;
        within(state.wait_for(|state| state.failures > failures)).await.unwrap();
    }
    assert!(first.elapsed() >= Duration::from_secs(7), "{:?}", first.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_istiod_that_ends_each_stream_after_a_response_is_not_stormed() {
    let mut world = World::new().await;
    let first = tokio::time::Instant::now();
    for _ in 0..8 {
        let (mut envoy, stream) = world.connected(DELTA).await;
        stream.refuse(Status::resource_exhausted("too many pushes")).await;
        assert_eq!(envoy.end().await, Code::Ok);
    }
    // Half of 0.1, 0.2, 0.4, 0.8, 1.6, 3, 3 and 3 seconds.
    assert!(first.elapsed() >= Duration::from_secs(6), "{:?}", first.elapsed());
    assert_eq!(world.relay.snapshot().terminations, 8);
}

#[tokio::test(start_paused = true)]
async fn an_istiod_that_does_not_answer_is_left_and_named() {
    let mut world = World::new().await;
    let mut envoy = world.envoy(SOTW).await;
    assert!(envoy.is_held_for(LONG).await, "without a request there is nothing to answer");
    assert_eq!(world.istiod.dials(), 1);
    envoy.send(request(SOTW, CLUSTER, "")).await;
    let mut silent = world.istiod.stream().await;
    silent.receive().await;
    let mut next = world.istiod.stream().await;
    let trouble = world.relay.snapshot().trouble.unwrap();
    assert!(trouble.what.contains("does not answer"), "{}", trouble.what);
    assert_eq!(next.receive().await, request(SOTW, CLUSTER, ""));
    next.send(response(CLUSTER, "1", &[])).await;
    envoy.receive().await;
    assert!(envoy.is_held_for(LONG).await, "the limit is for the first response only");
    assert_eq!(world.istiod.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn istiod_is_not_dialled_before_it_may_be() {
    let mut world = World::new().await;
    world.admission.send_replace(false);
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(request(DELTA, CLUSTER, "")).await;
    assert!(envoy.is_held_for(LONG).await);
    assert_eq!((world.istiod.dials(), world.relay.snapshot().phase), (0, Phase::Idle));
    world.admission.send_replace(true);
    assert_eq!(world.istiod.stream().await.receive().await, request(DELTA, CLUSTER, ""));
}

#[tokio::test(start_paused = true)]
async fn a_second_stream_of_envoy_closes_the_first() {
    let mut world = World::new().await;
    let (mut first, mut upstream) = world.connected(DELTA).await;
    let (mut second, stream) = world.connected(DELTA).await;
    assert_eq!(first.end().await, Code::Aborted);
    assert!(upstream.is_over().await, "istiod's first stream is closed as well");
    stream.send(response(CLUSTER, "1", &[])).await;
    assert_eq!(second.receive().await, response(CLUSTER, "1", &[]));
    assert_eq!(world.relay.snapshot().phase, Phase::Connected);
}

pub(super) fn workload(address: &str) -> Workload {
    Workload {
        name: "vm1".to_owned(),
        id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
        group: None,
        address: address.parse().unwrap(),
        instance_ips: vec![address.parse().unwrap()],
        labels: [("app".to_owned(), "old".to_owned())].into(),
        ports: [].into(),
        network: String::new(),
        locality: None,
        weight: None,
    }
}

/// Who the machine is now, other than Envoy knows.
fn moved() -> Claims {
    let labels = [("app".to_owned(), "new".to_owned())].into();
    let workload = Workload { labels, ..workload("10.0.0.2") };
    Claims { workload: Some(Arc::new(workload)), opening: Opening::Now }
}

/// Envoy's first request, as it always tells it.
fn first_request() -> Bytes {
    let id = "sidecar~10.0.0.1~vm1.vms~vms.svc.cluster.local".to_owned();
    let node = Node { id, metadata: Some(prost_types::Struct::default()), ..Default::default() };
    let type_url = LISTENER.to_owned();
    let request = DeltaDiscoveryRequest { node: Some(node), type_url, ..Default::default() };
    request.encode_to_vec().into()
}

fn node_of(request: Bytes) -> Node {
    DeltaDiscoveryRequest::decode(request).unwrap().node.unwrap()
}

#[tokio::test(start_paused = true)]
async fn other_claims_are_told_in_a_new_stream_in_place_of_envoys() {
    let mut world = World::new().await;
    let (mut envoy, mut upstream) = world.connected(DELTA).await;
    world.claims.send_replace(moved());
    assert_eq!(envoy.end().await, Code::Ok, "Envoy comes back at once");
    assert!(upstream.is_over().await);
    let envoy = world.envoy(DELTA).await;
    envoy.send(first_request()).await;
    let mut upstream = world.istiod.stream().await;
    let node = node_of(upstream.receive().await);
    assert_eq!(node.id, "sidecar~10.0.0.2~vm1.vms~vms.svc.cluster.local");
    assert!(node.metadata.unwrap().fields.contains_key("LABELS"));
}

#[tokio::test(start_paused = true)]
async fn before_istiods_first_response_other_claims_cost_envoy_nothing() {
    let mut world = World::new().await;
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(first_request()).await;
    let mut silent = world.istiod.stream().await;
    assert_eq!(node_of(silent.receive().await).id.split('~').nth(1), Some("10.0.0.1"));
    world.claims.send_replace(moved());
    let mut upstream = world.istiod.stream().await;
    assert_eq!(node_of(upstream.receive().await).id.split('~').nth(1), Some("10.0.0.2"));
    upstream.send(response(LISTENER, "1", &[])).await;
    assert_eq!(envoy.receive().await, response(LISTENER, "1", &[]));
}

#[tokio::test(start_paused = true)]
async fn istiod_is_not_called_before_it_may_hear_the_claims() {
    let mut world = World::new().await;
    world.claims.send_modify(|claims| claims.opening = Opening::Closed);
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(first_request()).await;
    assert!(envoy.is_held_for(Duration::from_secs(3600)).await);
    assert_eq!(world.istiod.dials(), 0);
    let start = tokio::time::Instant::now();
    let opening = Opening::At(start + Duration::from_secs(12));
    world.claims.send_modify(|claims| claims.opening = opening);
    world.istiod.stream().await;
    assert!(start.elapsed() >= Duration::from_secs(12));
}

#[tokio::test(start_paused = true)]
async fn while_istiod_must_not_hear_the_claims_the_line_is_idle() {
    let mut world = World::new().await;
    let (mut envoy, mut upstream) = world.connected(DELTA).await;
    world.claims.send_modify(|claims| claims.opening = Opening::Closed);
    assert!(upstream.is_over().await);
    assert!(envoy.is_held_for(LONG).await);
    let state = world.relay.snapshot();
    assert_eq!((state.phase, state.connected_since), (Phase::Idle, None));
    world.claims.send_modify(|claims| claims.opening = Opening::Now);
    assert_eq!(envoy.end().await, Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn claims_that_are_closed_while_istiod_is_away_stay_so_when_it_is_back() {
    let mut world = World::new().await;
    world.istiod.cut(false);
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(first_request()).await;
    assert!(envoy.is_held_for(LONG).await);
    world.claims.send_modify(|claims| claims.opening = Opening::Closed);
    world.istiod.cut(true);
    assert!(envoy.is_held_for(LONG).await);
    assert_eq!(world.relay.snapshot().requests, 0, "istiod was told nothing");
    world.claims.send_modify(|claims| claims.opening = Opening::Now);
    world.istiod.stream().await;
}

#[tokio::test(start_paused = true)]
async fn nor_is_a_waiting_connection_used_before_istiod_may_hear_the_claims() {
    let mut world = World::new().await;
    let (mut envoy, _upstream) = world.connected(DELTA).await;
    world.istiod.cut(true);
    assert_eq!(envoy.end().await, Code::Ok);
    world.claims.send_modify(|claims| claims.opening = Opening::Closed);
    let requests = world.relay.snapshot().requests;
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(first_request()).await;
    assert!(envoy.is_held_for(LONG).await);
    assert_eq!(world.relay.snapshot().requests, requests);
    world.claims.send_modify(|claims| claims.opening = Opening::Now);
    world.istiod.stream().await;
}

#[tokio::test(start_paused = true)]
async fn envoys_leaving_closes_the_stream_to_istiod() {
    let mut world = World::new().await;
    let (envoy, mut upstream) = world.connected(DELTA).await;
    drop(envoy);
    assert!(upstream.is_over().await);
    let mut state = world.relay.state();
    within(state.wait_for(|state| state.phase == Phase::Idle)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn at_stop_envoy_is_told_and_no_task_remains() {
    let mut world = World::new().await;
    let (mut envoy, _stream) = world.connected(DELTA).await;
    assert!(world.tasks.finish(Duration::from_secs(5)).await);
    assert_ne!(envoy.end().await, Code::Ok);
}

#[tokio::test]
async fn serves_at_a_unix_socket() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xds.sock");
    let listener = uds::bind(&path, uds::Reach::Owner).unwrap();
    let me = nix::unistd::getuid().as_raw();
    let config = Config {
        peers: Peers::new(vec![me]),
        name_table: false,
        workload: Arc::new(workload("10.0.0.1")),
        labels_of_entry: false,
        services_file: None,
        notice: NOTICE,
    };
    let inputs = Inputs {
        health: world.health.subscribe(),
        admission: world.admission.subscribe(),
        claims: world.claims.subscribe(),
        inbound_delayed: world.delayed.subscribe(),
    };
    let (wire, mut istiod) = fakes::istiod(&world.tasks);
    let relay = relay_over(config, wire, inputs, clock::system(), world.tasks.child());
    let server = relay.serve(listener);
    world.tasks.spawn("relay", async move { server.await.unwrap() });

    let uri = format!("unix:{}", path.display());
    let channel = tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    let mut envoy = fakes::open(channel, DELTA).await;
    envoy.send(request(DELTA, LISTENER, "")).await;
    let mut stream = istiod.stream().await;
    assert_eq!(stream.receive().await, request(DELTA, LISTENER, ""));
    stream.send(response(LISTENER, "1", &[])).await;
    assert_eq!(envoy.receive().await, response(LISTENER, "1", &[]));
}

fn request(path: &str, type_url: &str, nonce: &str) -> Bytes {
    let (type_url, response_nonce) = (type_url.to_owned(), nonce.to_owned());
    if path == DELTA {
        let request = DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() };
        request.encode_to_vec().into()
    } else {
        let request = DiscoveryRequest { type_url, response_nonce, ..Default::default() };
        request.encode_to_vec().into()
    }
}

fn response(type_url: &str, nonce: &str, resources: &[&[u8]]) -> Bytes {
    let any = |value: &&[u8]| prost_types::Any { type_url: type_url.into(), value: value.to_vec() };
    let response = DiscoveryResponse {
        version_info: "v".into(),
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: resources.iter().map(any).collect(),
    };
    response.encode_to_vec().into()
}

async fn types(stream: &mut fakes::Stream, count: usize) -> Vec<String> {
    let mut types = Vec::new();
    for _ in 0..count {
        types.push(DeltaDiscoveryRequest::decode(stream.receive().await).unwrap().type_url);
    }
    types
}

fn names_of(address: &str) -> NameTable {
    let info = NameInfo { ips: vec![address.into()], ..Default::default() };
    NameTable { table: [("reviews.default".to_owned(), info)].into() }
}
