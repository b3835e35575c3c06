//! What istiod is told of the workload's health, and what that does to Envoy's configuration.

use super::super::scan::tests::clusters;
use super::super::wire::{CLUSTER, Flavour, HEALTH, LISTENER, NAME_TABLE, ROUTE};
use super::fakes::{Envoy, Stream};
use super::*;

const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

#[tokio::test(start_paused = true)]
async fn health_follows_the_first_listener_request_and_is_told_again_on_each_stream() {
    let mut world = World::new().await;
    world.health.send_replace(Some(Health::Unhealthy { message: "not yet".into() }));
    let (envoy, mut stream) = world.connected(DELTA).await;
    assert!(stream.is_quiet_for(LONG).await, "health waits for the listener request");
    envoy.send(request(DELTA, LISTENER, "")).await;
    assert_eq!(types(&mut stream, 3).await, [LISTENER, NAME_TABLE, HEALTH]);

    world.health.send_replace(Some(Health::Unhealthy { message: "HTTP 503".into() }));
    let report = DeltaDiscoveryRequest::decode(stream.receive().await).unwrap();
    assert_eq!(report.type_url, HEALTH);
    assert_eq!(report.error_detail.unwrap().message, "HTTP 503");
    envoy.send(request(DELTA, LISTENER, "2")).await;
    assert_eq!(types(&mut stream, 1).await, [LISTENER]);
    assert!(stream.is_quiet_for(LONG).await, "told once per change and stream");

    drop((envoy, stream));
    let (envoy, mut stream) = world.connected(DELTA).await;
    envoy.send(request(DELTA, LISTENER, "")).await;
    assert_eq!(types(&mut stream, 2).await, [LISTENER, NAME_TABLE]);
    let report = DeltaDiscoveryRequest::decode(stream.receive().await).unwrap();
    assert_eq!(report.error_detail.unwrap().message, "HTTP 503");
}

/// Envoy's next stream, on which istiod hears that the workload is healthy.
async fn next(world: &mut World, path: &'static str) -> (Envoy, Stream) {
    let (envoy, mut stream) = world.connected(path).await;
    envoy.send(request(path, LISTENER, "")).await;
    // That, the request for the name table, the report.
    for _ in 0..3 {
        stream.receive().await;
    }
    (envoy, stream)
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_becomes_unhealthy_at_once_keeps_its_stream() {
    let mut world = World::new().await;
    world.health.send_replace(Some(Health::Healthy));
    let (mut envoy, mut stream) = next(&mut world, DELTA).await;
    world.health.send_replace(Some(Health::Leaving { message: "it stops".into() }));
    assert_eq!(types(&mut stream, 1).await, [HEALTH]);
    assert!(envoy.is_held_for(LONG).await);
}

/// A stream on which istiod has heard that the workload is healthy, and which stays.
async fn healthy(world: &mut World) -> (Envoy, Stream) {
    world.health.send_replace(Some(Health::Healthy));
    let (mut envoy, stream) = next(world, DELTA).await;
    let served = clusters(Flavour::Delta, &["inbound|9080||"]);
    stream.send(served.clone()).await;
    assert_eq!(envoy.receive().await, served);
    (envoy, stream)
}

#[tokio::test(start_paused = true)]
async fn envoy_keeps_what_it_has_while_the_others_hear_that_its_workload_is_unhealthy() {
    let mut world = World::new().await;
    let (mut envoy, mut stream) = healthy(&mut world).await;
    world.health.send_replace(Some(Health::Unhealthy { message: "HTTP 503".into() }));
    assert_eq!(types(&mut stream, 1).await, [HEALTH]);
    let told = tokio::time::Instant::now();
    for held in [CLUSTER, LISTENER, ROUTE] {
        stream.send(response(held, "1", &[])).await;
    }
    stream.send(response(ENDPOINTS, "1", &[])).await;
    assert_eq!(envoy.receive().await, response(ENDPOINTS, "1", &[]));
    assert_eq!(told.elapsed(), Duration::ZERO, "others are not to be called where they are not");
    for held in [CLUSTER, LISTENER, ROUTE] {
        assert_eq!(envoy.receive().await, response(held, "1", &[]));
        assert_eq!(told.elapsed(), NOTICE);
    }
    stream.send(response(CLUSTER, "2", &[])).await;
    assert_eq!(envoy.receive().await, response(CLUSTER, "2", &[]));
    assert_eq!(told.elapsed(), NOTICE);
}

#[tokio::test(start_paused = true)]
async fn envoy_keeps_what_it_has_to_its_end() {
    let mut world = World::new().await;
    let (mut envoy, mut stream) = healthy(&mut world).await;
    world.health.send_replace(Some(Health::Leaving { message: "it stops".into() }));
    assert_eq!(types(&mut stream, 1).await, [HEALTH]);
    stream.send(response(CLUSTER, "1", &[])).await;
    assert!(envoy.is_held_for(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn an_envoy_that_starts_gets_its_configuration_at_once() {
    for health in [
        Health::Unhealthy { message: "not yet".into() },
        Health::Leaving { message: "it stops".into() },
    ] {
        let mut world = World::new().await;
        world.health.send_replace(Some(health));
        let (mut envoy, mut stream) = world.connected(DELTA).await;
        envoy.send(request(DELTA, LISTENER, "")).await;
        assert_eq!(types(&mut stream, 3).await, [LISTENER, NAME_TABLE, HEALTH]);
        let told = tokio::time::Instant::now();
        stream.send(response(LISTENER, "1", &[])).await;
        assert_eq!(envoy.receive().await, response(LISTENER, "1", &[]));
        assert_eq!(told.elapsed(), Duration::ZERO);
    }
}
