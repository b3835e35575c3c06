//! Whether istiod configures Envoy to serve what this machine serves, and what the relay does until
//! it does.

use super::super::ServicesState;
use super::super::scan::tests::{clusters, endpoints};
use super::super::wire::{Flavour, HEALTH};
use super::fakes::{Envoy, Stream};
use super::*;

const OUTBOUND: &str = "outbound|80||details.example";
const INBOUND: &str = "inbound|9080||";

fn flavour(path: &str) -> Flavour {
    Flavour::of_path(path).unwrap()
}

/// Envoy's first request for clusters: with what it holds from before, or of a new process.
fn asks(path: &str, holds: &[&str]) -> Bytes {
    let type_url = CLUSTER.to_owned();
    if path == DELTA {
        let version = |name: &&str| ((*name).to_owned(), "1".to_owned());
        let initial_resource_versions = holds.iter().map(version).collect();
        let request =
            DeltaDiscoveryRequest { type_url, initial_resource_versions, ..Default::default() };
        return request.encode_to_vec().into();
    }
    let version_info = if holds.is_empty() { String::new() } else { "v".to_owned() };
    DiscoveryRequest { type_url, version_info, ..Default::default() }.encode_to_vec().into()
}

/// Envoy's next stream; istiod hears of the workload's health on it.
async fn next(world: &mut World, path: &'static str, holds: &[&str]) -> (Envoy, Stream) {
    let envoy = world.envoy(path).await;
    envoy.send(asks(path, holds)).await;
    envoy.send(request(path, LISTENER, "")).await;
    let mut stream = world.istiod.stream().await;
    for _ in 0..4 {
        stream.receive().await;
    }
    (envoy, stream)
}

/// istiod sends clusters, and Envoy receives them.
async fn sends(path: &str, stream: &Stream, envoy: &mut Envoy, names: &[&str]) {
    let message = clusters(flavour(path), names);
    stream.send(message.clone()).await;
    assert_eq!(envoy.receive().await, message);
}

fn services(world: &World) -> ServicesState {
    world.relay.snapshot().services
}

/// A machine that serves, on a stream that stays.
async fn serving(world: &mut World, path: &'static str) -> (Envoy, Stream) {
    world.health.send_replace(Some(Health::Healthy));
    let (mut envoy, stream) = next(world, path, &[]).await;
    sends(path, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
    assert!(envoy.is_held_for(LONG).await, "what is complete stays");
    assert_eq!(services(world).ports, Some(vec![9080]));
    (envoy, stream)
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_no_service_selects_has_one_new_stream() {
    for path in [DELTA, SOTW] {
        let mut world = World::new().await;
        let start = tokio::time::Instant::now();
        world.health.send_replace(Some(Health::Healthy));
        let (mut envoy, stream) = next(&mut world, path, &[]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND]).await;
        // istiod has taken note of the report: it decides again, too early.
        sends(path, &stream, &mut envoy, &[OUTBOUND]).await;
        assert_eq!(envoy.end().await, Code::Ok);
        assert_eq!(start.elapsed(), Duration::ZERO, "before the others hear of the machine");
        let (mut envoy, stream) = next(&mut world, path, &[OUTBOUND]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND]).await;
        assert!(envoy.is_held_for(LONG).await);
        // A push of a later time has nothing to do with it.
        sends(path, &stream, &mut envoy, &[OUTBOUND, "outbound|80||new.example"]).await;
        assert!(envoy.is_held_for(LONG).await);
        let services = services(&world);
        assert_eq!((services.resubscriptions, services.trouble), (1, None), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_istiod_that_pushes_nothing_is_asked_once_more() {
    let mut world = World::new().await;
    world.health.send_replace(Some(Health::Healthy));
    let (mut envoy, stream) = next(&mut world, DELTA, &[]).await;
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
    let start = tokio::time::Instant::now();
    assert_eq!(envoy.end().await, Code::Ok);
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND]).await;
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
    assert!(envoy.is_held_for(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_push_that_brings_the_services_needs_no_new_stream() {
    let mut world = World::new().await;
    world.health.send_replace(Some(Health::Healthy));
    let (mut envoy, stream) = next(&mut world, DELTA, &[]).await;
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
    assert!(envoy.is_held_for(LONG).await);
    assert_eq!(services(&world).resubscriptions, 0);
}

#[tokio::test(start_paused = true)]
async fn an_istiod_that_is_far_away_is_given_time_and_asked_again() {
    for way in [20, 250, 900].map(Duration::from_millis) {
        let mut world = World::new().await;
        world.health.send_replace(Some(Health::Healthy));
        let (mut envoy, stream) = next(&mut world, DELTA, &[]).await;
        tokio::time::sleep(2 * way).await;
        sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
        let answered = tokio::time::Instant::now();
        assert_eq!(envoy.end().await, Code::Ok, "{way:?}");
        let waited = answered.elapsed();
        assert!(waited >= way && waited <= Duration::from_secs(1) + 8 * way, "{waited:?}");
        let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND]).await;
        sends(DELTA, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
        assert!(envoy.is_held_for(LONG).await, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_name_this_machine_prove_that_its_services_are_missing() {
    for path in [DELTA, SOTW] {
        let mut world = World::new().await;
        world.health.send_replace(Some(Health::Healthy));
        let (mut envoy, stream) = next(&mut world, path, &[]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND]).await;
        assert_eq!(envoy.end().await, Code::Ok);
        let (mut envoy, stream) = next(&mut world, path, &[OUTBOUND]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND]).await;
        let others = endpoints(flavour(path), OUTBOUND, &[("10.0.0.9", 9080)]);
        stream.send(others.clone()).await;
        assert_eq!(envoy.receive().await, others);
        assert!(envoy.is_held_for(LONG).await, "others' endpoints prove nothing");
        let named = endpoints(flavour(path), OUTBOUND, &[("10.0.0.9", 9080), ("10.0.0.1", 9080)]);
        stream.send(named.clone()).await;
        assert_eq!(envoy.receive().await, named);
        assert_eq!(envoy.end().await, Code::Ok);
        let (mut envoy, stream) = next(&mut world, path, &[OUTBOUND]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
        stream.send(named.clone()).await;
        assert_eq!(envoy.receive().await, named);
        assert!(envoy.is_held_for(LONG).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_of_another_namespace_is_asked_for_a_few_times_only() {
    let mut world = World::new().await;
    world.health.send_replace(Some(Health::Healthy));
    let named = endpoints(Flavour::Delta, OUTBOUND, &[("10.0.0.1", 9080)]);
    let mut streams = 0;
    loop {
        let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND]).await;
        sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
        stream.send(named.clone()).await;
        assert_eq!(envoy.receive().await, named);
        streams += 1;
        if envoy.is_held_for(LONG).await {
            break;
        }
    }
    assert_eq!(streams, 4);
    assert_eq!(services(&world).trouble, None);
}

#[tokio::test(start_paused = true)]
async fn envoy_keeps_its_services_until_istiod_has_them_again() {
    for path in [DELTA, SOTW] {
        let mut world = World::new().await;
        let (mut envoy, _stream) = serving(&mut world, path).await;
        // The entry was deleted and made anew: that of before is said again.
        world.claims.send_replace(Claims::default());
        assert_eq!(envoy.end().await, Code::Ok);
        let start = tokio::time::Instant::now();
        let (mut envoy, stream) = next(&mut world, path, &[OUTBOUND, INBOUND]).await;
        stream.send(clusters(flavour(path), &[OUTBOUND])).await;
        stream.send(response(LISTENER, "1", &[])).await;
        assert!(
            envoy.is_held_for(Duration::from_millis(200)).await,
            "{path}: nothing is taken away"
        );
        stream.send(clusters(flavour(path), &[OUTBOUND])).await;
        assert_eq!(envoy.end().await, Code::Ok);
        let (mut envoy, stream) = next(&mut world, path, &[OUTBOUND, INBOUND]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(envoy.is_held_for(LONG).await, "{path}");
        assert_eq!(services(&world).trouble, None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_held_back_is_not_passed_before_what_came_after_it() {
    let mut world = World::new().await;
    let (mut envoy, _stream) = serving(&mut world, DELTA).await;
    world.claims.send_replace(Claims::default());
    assert_eq!(envoy.end().await, Code::Ok);
    let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND, INBOUND]).await;
    stream.send(clusters(Flavour::Delta, &[OUTBOUND])).await;
    assert!(envoy.is_held_for(Duration::from_millis(50)).await);
    stream.send(clusters(Flavour::Delta, &[OUTBOUND, INBOUND])).await;
    assert_eq!(envoy.end().await, Code::Ok, "Envoy hears it in one piece, on a new stream");
}

#[tokio::test(start_paused = true)]
async fn services_that_stay_away_are_a_condition_and_envoy_follows_istiod() {
    let mut world = World::new().await;
    let (mut envoy, _stream) = serving(&mut world, DELTA).await;
    world.claims.send_replace(Claims::default());
    assert_eq!(envoy.end().await, Code::Ok);
    let start = tokio::time::Instant::now();
    let mut streams = 0;
    let (mut envoy, stream) = loop {
        let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND, INBOUND]).await;
        streams += 1;
        stream.send(clusters(Flavour::Delta, &[OUTBOUND])).await;
        let gone = start + Duration::from_secs(15) - tokio::time::Instant::now();
        if envoy.is_held_for(gone).await {
            break (envoy, stream);
        }
    };
    assert!((5..=10).contains(&streams), "{streams} streams in {:?}", start.elapsed());
    assert_eq!(envoy.receive().await, clusters(Flavour::Delta, &[OUTBOUND]));
    let mut state = world.relay.state();
    let state = within(state.wait_for(|state| state.services.trouble.is_some())).await.unwrap();
    assert_eq!(state.services.missing, [9080]);
    let trouble = state.services.trouble.clone().unwrap();
    assert!(trouble.what.contains("9080") && trouble.hint.is_some(), "{}", trouble.what);
    drop(state);
    // As soon as istiod has them, nothing is wrong.
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
    let mut state = world.relay.state();
    within(state.wait_for(|state| state.services.trouble.is_none())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ports_whose_services_stay_away_are_given_up_in_the_end() {
    let mut world = World::new().await;
    let (envoy, stream) = serving(&mut world, DELTA).await;
    drop((envoy, stream));
    let start = tokio::time::Instant::now();
    loop {
        let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND, INBOUND]).await;
        stream.send(clusters(Flavour::Delta, &[OUTBOUND])).await;
        while tokio::time::timeout(LONG, envoy.end_or_response()).await == Ok(true) {}
        if start.elapsed() > Duration::from_secs(700) {
            break;
        }
    }
    let services = services(&world);
    assert_eq!((services.missing, services.trouble), (vec![], None));
    assert!(services.resubscriptions < 30, "{}", services.resubscriptions);
}

#[tokio::test(start_paused = true)]
async fn a_port_whose_service_is_gone_is_not_missing() {
    for path in [DELTA, SOTW] {
        let mut world = World::new().await;
        let (mut envoy, stream) = serving(&mut world, path).await;
        let named = endpoints(flavour(path), OUTBOUND, &[("10.0.0.1", 9080)]);
        stream.send(named.clone()).await;
        assert_eq!(envoy.receive().await, named);
        let message = if path == SOTW {
            clusters(Flavour::StateOfTheWorld, &["outbound|80||other.example"])
        } else {
            let removed_resources = [OUTBOUND, INBOUND].map(str::to_owned).into();
            let type_url = CLUSTER.to_owned();
            DeltaDiscoveryResponse { type_url, removed_resources, ..Default::default() }
                .encode_to_vec()
                .into()
        };
        stream.send(message.clone()).await;
        assert_eq!(envoy.receive().await, message, "{path}");
        assert!(envoy.is_held_for(LONG).await, "{path}");
        assert_eq!(services(&world).resubscriptions, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_healthy_machine_that_is_no_endpoint_any_more_is_registered_anew() {
    let mut world = World::new().await;
    let (mut envoy, stream) = serving(&mut world, DELTA).await;
    let named = endpoints(Flavour::Delta, OUTBOUND, &[("10.0.0.1", 9080)]);
    stream.send(named.clone()).await;
    assert_eq!(envoy.receive().await, named);
    // Somebody has deleted the entry that istiod made.
    let without = endpoints(Flavour::Delta, OUTBOUND, &[("10.0.0.9", 9080)]);
    stream.send(without.clone()).await;
    assert_eq!(envoy.receive().await, without);
    assert_eq!(envoy.end().await, Code::Ok);
    let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND, INBOUND]).await;
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
    assert!(envoy.is_held_for(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_machine_that_is_no_endpoint_is_as_it_should_be() {
    let mut world = World::new().await;
    let (mut envoy, mut stream) = serving(&mut world, DELTA).await;
    let named = endpoints(Flavour::Delta, OUTBOUND, &[("10.0.0.1", 9080)]);
    stream.send(named.clone()).await;
    assert_eq!(envoy.receive().await, named);
    world.health.send_replace(Some(Health::Unhealthy { message: "HTTP 503".into() }));
    assert_eq!(types(&mut stream, 1).await, [HEALTH]);
    let without = endpoints(Flavour::Delta, OUTBOUND, &[]);
    stream.send(without.clone()).await;
    assert_eq!(envoy.receive().await, without);
    assert!(envoy.is_held_for(LONG).await);
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
    assert!(envoy.is_held_for(LONG).await);
    assert_eq!(services(&world).resubscriptions, 0);
}

#[tokio::test(start_paused = true)]
async fn the_ports_are_known_after_a_restart_of_the_agent_as_long_as_the_workload_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services.json");
    let mut before = World::keeping(Some(file.clone())).await;
    drop(serving(&mut before, DELTA).await);
    for (claims, expected) in [(Claims::default(), true), (moved(), false)] {
        let mut world = World::keeping(Some(file.clone())).await;
        world.claims.send_replace(claims);
        world.health.send_replace(Some(Health::Healthy));
        let (mut envoy, stream) = next(&mut world, SOTW, &[OUTBOUND]).await;
        let message = clusters(Flavour::StateOfTheWorld, &[OUTBOUND]);
        stream.send(message.clone()).await;
        if expected {
            assert!(envoy.is_held_for(Duration::from_millis(100)).await);
            assert_eq!(envoy.end().await, Code::Ok);
        } else {
            assert_eq!(envoy.receive().await, message);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn new_connections_wait_from_before_the_report_until_envoy_has_the_services() {
    for path in [DELTA, SOTW] {
        let mut world = World::new().await;
        let mut delay = world.relay.inbound_delay();
        let is_waiting = |delay: &mut tokio::sync::watch::Receiver<
            Option<tokio::time::Instant>,
        >| delay.borrow_and_update().is_some();
        world.delayed.send_replace(false);
        let mut envoy = world.envoy(path).await;
        envoy.send(asks(path, &[])).await;
        envoy.send(request(path, LISTENER, "")).await;
        let mut stream = world.istiod.stream().await;
        delay.wait_for(Option::is_some).await.unwrap();
        assert!(stream.is_quiet_for(Duration::from_millis(900)).await, "nothing asked for before");
        world.delayed.send_replace(true);
        for _ in 0..3 {
            stream.receive().await;
        }
        let until = delay.borrow_and_update().unwrap();
        world.delayed.send_replace(false);
        world.health.send_replace(Some(Health::Healthy));
        delay.wait_for(|now| now.is_some_and(|now| now < until)).await.unwrap();
        assert!(stream.is_quiet_for(Duration::from_millis(900)).await, "not reported before");
        world.delayed.send_replace(true);
        assert_eq!(stream.receive().await, flavour(path).health(&Health::Healthy));
        sends(path, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
        stream.send(response(LISTENER, "1", &[])).await;
        envoy.receive().await;
        assert!(is_waiting(&mut delay), "Envoy has not acknowledged the listeners");
        envoy.send(request(path, LISTENER, "nonce")).await;
        stream.receive().await;
        delay.wait_for(Option::is_none).await.unwrap();
        // A new stream of an Envoy that serves makes nobody wait; a new Envoy does.
        drop(envoy);
        let (envoy, _stream) = next(&mut world, path, &[OUTBOUND, INBOUND]).await;
        assert!(!is_waiting(&mut delay));
        drop(envoy);
        let (_envoy, _stream) = next(&mut world, path, &[]).await;
        assert!(is_waiting(&mut delay));
    }
}

#[tokio::test(start_paused = true)]
async fn envoy_and_a_report_of_health_wait_for_the_rule_for_a_limited_time() {
    let mut world = World::new().await;
    world.delayed.send_replace(false);
    let start = tokio::time::Instant::now();
    world.health.send_replace(Some(Health::Healthy));
    let (_envoy, _stream) = next(&mut world, DELTA, &[]).await;
    assert_eq!(start.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn what_a_leaving_envoy_keeps_it_keeps_over_streams() {
    for path in [DELTA, SOTW] {
        let mut world = World::new().await;
        let (mut envoy, mut stream) = serving(&mut world, path).await;
        let leaving = Health::Leaving { message: "it stops".to_owned() };
        world.health.send_replace(Some(leaving));
        // The report.
        stream.receive().await;
        // istiod restarts at that moment, and configures what it has noted.
        world.istiod.cut(true);
        assert_eq!(envoy.end().await, Code::Ok);
        let (mut envoy, stream) = next(&mut world, path, &[OUTBOUND, INBOUND]).await;
        stream.send(clusters(flavour(path), &[OUTBOUND])).await;
        assert!(envoy.is_held_for(LONG).await, "{path}");
        // The next process has nothing to keep.
        let (mut envoy, stream) = next(&mut world, path, &[]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_right_after_its_start_lets_envoy_keep_what_it_has() {
    let mut world = World::new().await;
    world.health.send_replace(Some(Health::Leaving { message: "it stops".to_owned() }));
    let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND, INBOUND]).await;
    stream.send(clusters(Flavour::Delta, &[OUTBOUND])).await;
    assert!(envoy.is_held_for(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn services_that_may_lack_their_policies_do_not_reach_envoy() {
    for path in [DELTA, SOTW] {
        let mut world = World::grouped().await;
        world.health.send_replace(Some(Health::Healthy));
        let (mut envoy, stream) = next(&mut world, path, &[]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND]).await;
        stream.send(clusters(flavour(path), &[OUTBOUND, INBOUND])).await;
        assert_eq!(envoy.end().await, Code::Ok, "{path}");
        let (mut envoy, stream) = next(&mut world, path, &[OUTBOUND]).await;
        sends(path, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
        assert!(envoy.is_held_for(LONG).await);
        // A push that brings nothing new is no reason.
        sends(path, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
        assert!(envoy.is_held_for(LONG).await);
        assert_eq!(services(&world).resubscriptions, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_istiod_that_always_pushes_services_later_is_asked_a_few_times() {
    let mut world = World::grouped().await;
    world.health.send_replace(Some(Health::Healthy));
    for _ in 0..3 {
        let (mut envoy, stream) = next(&mut world, DELTA, &[]).await;
        sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
        stream.send(clusters(Flavour::Delta, &[OUTBOUND, INBOUND])).await;
        assert_eq!(envoy.end().await, Code::Ok);
    }
    let (mut envoy, stream) = next(&mut world, DELTA, &[]).await;
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND]).await;
    sends(DELTA, &stream, &mut envoy, &[OUTBOUND, INBOUND]).await;
    assert!(envoy.is_held_for(LONG).await);
}

/// A machine that serves, has become unhealthy, as istiod has heard, and has no istiod since, for longer
/// than the others need to hear of it.
async fn unhealthy_without_istiod(world: &mut World) -> Envoy {
    let (mut envoy, mut stream) = serving(world, DELTA).await;
    world.health.send_replace(Some(Health::Unhealthy { message: "sick".to_owned() }));
    assert_eq!(types(&mut stream, 1).await, [HEALTH]);
    world.istiod.cut(false);
    assert!(envoy.is_held_for(2 * NOTICE).await);
    envoy
}

#[tokio::test(start_paused = true)]
async fn who_hears_from_a_new_istiod_only_that_a_machine_is_unhealthy_is_served_meanwhile() {
    let mut world = World::new().await;
    let mut envoy = unhealthy_without_istiod(&mut world).await;
    world.istiod.cut(true);
    assert_eq!(envoy.end().await, Code::Ok);
    let (mut envoy, stream) = next(&mut world, DELTA, &[OUTBOUND, INBOUND]).await;
    let start = tokio::time::Instant::now();
    stream.send(clusters(Flavour::Delta, &[OUTBOUND])).await;
    assert_eq!(envoy.receive().await, clusters(Flavour::Delta, &[OUTBOUND]));
    assert_eq!(start.elapsed(), NOTICE);
}

#[tokio::test(start_paused = true)]
async fn envoy_keeps_its_services_on_a_stream_that_is_about_to_report_the_workload_healthy() {
    let mut world = World::new().await;
    let mut envoy = unhealthy_without_istiod(&mut world).await;
    world.health.send_replace(Some(Health::Healthy));
    world.istiod.cut(true);
    assert_eq!(envoy.end().await, Code::Ok);
    let mut envoy = world.envoy(DELTA).await;
    envoy.send(asks(DELTA, &[OUTBOUND, INBOUND])).await;
    let mut stream = world.istiod.stream().await;
    stream.receive().await;
    // istiod has not heard of the recovery yet; Envoy asks for listeners after this.
    stream.send(clusters(Flavour::Delta, &[OUTBOUND])).await;
    assert!(envoy.is_held_for(Duration::from_secs(1)).await);
}
