//! The whole agent, as a program, against the development mesh: the faults that a real control
//! plane cannot be asked for. The test itself plays the proxy on the agent's sockets.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod bed;

use std::path::Path;

use bed::{Bed, channel, registered, trouble, valid};
use serde_json::json;
use vm_agent::devmesh::{Fault, Mesh, Options};
use vm_agent::proto::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;

#[path = "agent/damaged.rs"]
mod damaged;
#[path = "agent/disk.rs"]
mod disk;
#[path = "agent/guard.rs"]
mod guard;
#[path = "agent/hostile.rs"]
mod hostile;
#[path = "agent/memory.rs"]
mod memory;
#[path = "agent/pages.rs"]
mod pages;
#[path = "agent/secret_files.rs"]
mod secret_files;
#[path = "agent/sources.rs"]
mod sources;
#[path = "agent/survival.rs"]
mod survival;

#[tokio::test]
async fn the_token_comes_first_and_the_certificate_afterwards() {
    let mut bed = Bed::new().await;
    bed.run(json!({"identity": {"ttl": "6s"}}));
    bed.until("certified", valid).await;
    let mut seen = bed.mesh.seen();
    let seen = seen.wait_for(|seen| seen.by_certificate >= 2).await.unwrap().clone();
    assert_eq!((seen.by_token, seen.refused), (1, 0));
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn a_restarted_agent_serves_its_kept_identity_while_istiod_is_away() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    let first = bed.until("certified", valid).await["identity"]["serial"].clone();
    assert_eq!(bed.stop().await, 0);
    bed.mesh.go_away().await.unwrap();
    bed.run(json!({}));
    let again = bed.until("certified again", valid).await;
    assert_eq!(
        (&again["identity"]["serial"], &again["identity"]["renewal"]["restored"]),
        (&first, &json!(true))
    );
    let mut sds =
        SecretDiscoveryServiceClient::new(channel(&bed.path("run/vm-agent/sds.sock")).await);
    let asked = vm_agent::proto::discovery::DiscoveryRequest {
        resource_names: vec!["default".to_owned()],
        ..Default::default()
    };
    assert_eq!(sds.fetch_secrets(asked).await.unwrap().into_inner().resources.len(), 1);
}

#[tokio::test]
async fn whatever_the_authority_does_wrong_is_refused_said_and_healed() {
    let mut bed = Bed::new().await;
    bed.run(json!({"identity": {"ttl": "8s"}}));
    let first = bed.until("certified", valid).await["identity"]["serial"].clone();
    for (fault, words) in [
        (Fault::OtherIdentity, "is for spiffe://cluster.local/ns/vms/sa/client-other"),
        (Fault::Rubbish, "there is no certificate"),
        (Fault::UntrustedRoot, "leads to no trusted root"),
        (Fault::Refuse, "Unauthenticated"),
    ] {
        bed.mesh.set_fault(fault);
        let status = bed.until(words, |status| trouble(status, "identity").contains(words)).await;
        assert_eq!(status["identity"]["renewal"]["issued"], 1, "{fault:?}");
        assert_eq!(status["identity"]["serial"], first, "the old one is kept");
    }
    bed.mesh.set_fault(Fault::None);
    bed.write_token("istio-ca", 3600);
    let healed =
        bed.until("healed", |status| valid(status) && trouble(status, "identity").is_empty()).await;
    assert_ne!(healed["identity"]["serial"], first);
}

#[tokio::test]
async fn istiod_away_at_the_start_is_said_and_found_when_it_comes() {
    let mut bed = Bed::new().await;
    bed.mesh.go_away().await.unwrap();
    bed.run(json!({}));
    let status = bed
        .until("troubled", |status| trouble(status, "identity").contains("cannot connect"))
        .await;
    assert_eq!((status["phase"].as_str(), valid(&status)), (Some("certifying"), false));
    bed.mesh.come_back().await.unwrap();
    bed.until("certified", valid).await;
}

#[tokio::test]
async fn an_istiod_that_hangs_is_said_and_left_again_when_it_answers() {
    let mut bed = Bed::new().await;
    bed.mesh.set_fault(Fault::Hang);
    bed.run(json!({}));
    bed.until("troubled", |status| trouble(status, "identity").contains("did not answer")).await;
    bed.mesh.set_fault(Fault::None);
    bed.until("certified", valid).await;
}

#[tokio::test]
async fn an_expired_token_is_never_sent_and_a_new_one_is_found() {
    let mut bed = Bed::new().await;
    bed.write_token("istio-ca", 0);
    bed.run(json!({}));
    bed.until("troubled", |status| trouble(status, "identity").contains("expired at")).await;
    assert_eq!(bed.mesh.seen().borrow().refused, 0);
    bed.write_token("istio-ca", 3600);
    bed.until("certified", valid).await;
}

#[tokio::test]
async fn a_proxys_stream_registers_the_machine_and_survives_istiods_absence() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    bed.until("certified", valid).await;
    let _proxy = bed.proxy("client").await;
    bed.until("registered", registered).await;
    assert_eq!(bed.mesh.entry("vms/client-127.0.0.1").unwrap()["spec"]["serviceAccount"], "client");
    let mut seen = bed.mesh.seen();
    seen.wait_for(|seen| seen.acks > 0).await.unwrap();
    bed.mesh.go_away().await.unwrap();
    let away = bed.until("away", |status| !trouble(status, "control-plane").is_empty()).await;
    assert_eq!(away["registration"]["registered"], true, "nobody took the entry away");
    bed.mesh.come_back().await.unwrap();
    // The proxy's stream is ended once istiod is there again; a real one comes back by itself.
    let _proxy = bed.proxy("client").await;
    bed.until("connected", |status| status["control_plane"]["phase"] == "connected").await;
}

#[tokio::test]
async fn a_missing_group_and_a_wrong_account_are_said_with_istiods_words() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    bed.until("certified", valid).await;
    let proxy = bed.proxy("admin").await;
    bed.until("refused", |status| {
        trouble(status, "control-plane").contains("authorization failed")
    })
    .await;
    drop(proxy);
    let mut other = Bed::new().await;
    other.mesh = Mesh::start(Options::default()).await.unwrap();
    std::fs::write(other.path("etc/vm-agent/root-cert.pem"), other.mesh.root_pem()).unwrap();
    other.write_token("istio-ca", 3600);
    other.run(json!({}));
    other.until("certified", valid).await;
    let _proxy = other.proxy("client").await;
    let status = other
        .until("refused", |status| {
            trouble(status, "registration").contains("cannot find WorkloadGroup")
        })
        .await;
    assert!(status.to_string().contains("Create the WorkloadGroup"), "and what to do");
    other.mesh.add_group("vms/client");
    other.until("registered", registered).await;
}

#[tokio::test]
async fn our_own_entry_is_applied_before_istiod_is_asked_and_removed_on_stop() {
    let mut bed = Bed::new().await;
    let registration =
        json!({"mode": "kubernetes", "removeOnStop": true, "kubernetes": bed.kubernetes()});
    bed.run(json!({"registration": registration}));
    let refused = bed
        .until("refused", |status| trouble(status, "registration").contains("is forbidden"))
        .await;
    assert!(refused.to_string().contains("a Role with verbs"));
    let _proxy = bed.proxy("client").await;
    assert_eq!(bed.mesh.seen().borrow().streams, 0, "istiod waits for the entry");
    bed.mesh.grant("vms", "client");
    bed.until("registered", registered).await;
    assert_eq!(bed.mesh.entry("vms/vm1").unwrap()["spec"]["address"], "127.0.0.1");
    bed.mesh.seen().wait_for(|seen| seen.streams > 0).await.unwrap();
    assert_eq!(bed.stop().await, 0);
    assert_eq!(bed.mesh.entry("vms/vm1"), None);
}

#[tokio::test]
async fn a_stopped_agent_leaves_no_process_and_no_socket() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    let status =
        bed.until("started", |status| valid(status) && status["proxy"]["pid"].is_u64()).await;
    assert_eq!(bed.stop().await, 0);
    assert!(!Path::new(&format!("/proc/{}", status["proxy"]["pid"])).exists());
    assert!(!bed.path("run/vm-agent").exists());
}
