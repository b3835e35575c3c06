//! What Envoy rejects: it is shown, and requested again until Envoy accepts it.

use super::super::wire::{CLUSTER, LISTENER};
use super::fakes::{Envoy, Stream};
use super::*;
use crate::proto::discovery::Status as Detail;

/// Envoy's answer to the listeners of this nonce.
fn verdict(path: &str, nonce: &str, reason: Option<&str>) -> Bytes {
    let error_detail = reason.map(|reason| Detail { code: 13, message: reason.to_owned() });
    let (type_url, response_nonce) = (LISTENER.to_owned(), nonce.to_owned());
    if path == SOTW {
        let answer =
            DiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() };
        return answer.encode_to_vec().into();
    }
    let answer =
        DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() };
    answer.encode_to_vec().into()
}

/// A stream on which istiod has sent listeners and Envoy has given its verdict on them.
async fn judged(world: &mut World, path: &'static str, reason: Option<&str>) -> (Envoy, Stream) {
    let (mut envoy, mut stream) = world.connected(path).await;
    envoy.send(request(path, LISTENER, "")).await;
    // That, and the request for the name table.
    stream.receive().await;
    stream.receive().await;
    stream.send(response(LISTENER, "n", &[])).await;
    envoy.receive().await;
    envoy.send(verdict(path, "n", reason)).await;
    stream.receive().await;
    (envoy, stream)
}

#[tokio::test(start_paused = true)]
async fn what_envoy_rejects_is_a_condition_and_requested_again_until_envoy_accepts_it() {
    for path in [SOTW, DELTA] {
        let mut world = World::new().await;
        let reason = "virtualInbound: cannot bind '0.0.0.0:15006': Address already in use";
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let (mut envoy, _stream) = judged(&mut world, path, Some(reason)).await;
            let condition = world.relay.snapshot().rejected_configuration.unwrap();
            assert!(condition.what.contains(&format!("Listener: {reason}")), "{condition}");
            assert!(condition.hint.unwrap().contains("ss -ltnp"));
            assert_eq!(condition.retry, Retry::Soon);
            let since = tokio::time::Instant::now();
            assert_eq!(envoy.end().await, Code::Ok, "Envoy comes back at once");
            pauses.push(since.elapsed().as_secs_f64());
        }
        for (pause, most) in pauses.iter().zip([5.0, 10.0, 20.0, 40.0, 60.0, 60.0]) {
            assert!((most / 2.0..=most + 0.1).contains(pause), "{pauses:?}");
        }
        assert_eq!(world.relay.snapshot().rejections[LISTENER].times, 6);

        let (mut envoy, _stream) = judged(&mut world, path, None).await;
        let state = world.relay.snapshot();
        assert!(state.rejected_configuration.is_none() && state.rejections.is_empty());
        assert!(envoy.is_held_for(LONG).await, "what is accepted needs no other stream");
    }
}

#[tokio::test(start_paused = true)]
async fn what_envoy_does_not_ask_for_any_more_is_not_requested_again() {
    let mut world = World::new().await;
    let (mut envoy, _stream) = judged(&mut world, DELTA, Some("no")).await;
    assert_eq!(envoy.end().await, Code::Ok);
    let (mut envoy, mut stream) = world.connected(DELTA).await;
    envoy.send(request(DELTA, CLUSTER, "")).await;
    stream.receive().await;
    assert!(world.relay.snapshot().rejected_configuration.is_some());
    assert!(envoy.is_held_for(LONG).await);
    assert!(world.relay.snapshot().rejected_configuration.is_none());
}

#[tokio::test(start_paused = true)]
async fn envoy_keeps_what_it_has_while_the_machine_leaves() {
    let mut world = World::new().await;
    let (mut envoy, mut stream) = judged(&mut world, DELTA, Some("no")).await;
    world.health.send_replace(Some(Health::Healthy));
    stream.receive().await;
    world.health.send_replace(Some(Health::Leaving { message: "leaves".into() }));
    stream.receive().await;
    assert!(envoy.is_held_for(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn secrets_in_envoys_reason_are_not_shown() {
    let mut world = World::new().await;
    let reason = "invalid: config { key: \"PULL_SECRET\" value: \"hunter2\" } \u{1b}[2J";
    let (_envoy, _stream) = judged(&mut world, DELTA, Some(reason)).await;
    let shown = serde_json::to_string(&world.relay.snapshot()).unwrap();
    assert!(shown.contains("Listener: invalid: config") && !shown.contains("hunter2"), "{shown}");
    assert!(!shown.contains("\\u001b"), "{shown}");
}
