//! The whole agent: what it does with its entry when the configuration or the entry is another one.

use std::time::Duration;

use serde_json::json;

use crate::bed::{Bed, registered, trouble, valid};
use crate::kubernetes_bed;
use crate::world::ENTRIES;

#[tokio::test]
async fn a_reload_changes_the_entry_and_names_what_needs_a_restart() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(json!({"registration": {"mode": "kubernetes", "kubernetes": kubernetes}}));
    bed.until("registered", registered).await;
    bed.configure(&["workload", "labels"], json!({"app": "client", "version": "2"}));
    bed.configure(&["log"], json!({"level": "debug"}));
    let said = bed.command(&["reload"]);
    assert_eq!(said.status.code(), Some(0));
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(words.contains("log.level has changed and needs a restart"), "{words}");
    let status = bed
        .until("relabelled", |_| {
            let entry = bed.mesh.entry("vms/vm1").unwrap();
            entry["spec"]["labels"]["version"] == "2"
        })
        .await;
    assert_eq!(status["configuration"]["restart"], json!(["log.level"]));
    assert_eq!(status["workload"]["labels"]["version"], "2");
    assert!(trouble(&status, "configuration").is_empty());
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn a_bad_configuration_changes_nothing_and_is_said_until_it_is_mended() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(json!({"registration": {"mode": "kubernetes", "kubernetes": kubernetes}}));
    bed.until("registered", registered).await;
    bed.configure(&["workload", "labels"], json!({"app": "new", "x y": "z"}));
    let said = bed.command(&["reload"]);
    assert_eq!(said.status.code(), Some(4), "{said:?}");
    let status = bed.status().unwrap();
    assert!(trouble(&status, "configuration").contains("workload.labels"), "{status}");
    assert_eq!(status["ready"], json!(false), "the proxy of this test is none");
    assert_eq!(bed.mesh.entry("vms/vm1").unwrap()["spec"].get("labels"), None);
    bed.configure(&["workload", "labels"], json!({"app": "new"}));
    bed.signal(nix::sys::signal::Signal::SIGHUP);
    bed.until("mended", |status| trouble(status, "configuration").is_empty()).await;
    bed.until("relabelled", |_| {
        bed.mesh.entry("vms/vm1").unwrap()["spec"]["labels"]["app"] == "new"
    })
    .await;
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn an_entry_that_was_made_anew_is_connected_anew() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(json!({"registration": {"mode": "kubernetes", "kubernetes": kubernetes}}));
    bed.until("registered", registered).await;
    let _proxy = bed.proxy("client").await;
    let mut seen = bed.mesh.seen();
    seen.wait_for(|seen| seen.streams == 1 && seen.acks > 0).await.unwrap();
    bed.mesh.objects().delete(ENTRIES, "vms", "vm1");
    seen.wait_for(|seen| seen.streams_ended == 1).await.unwrap();
    assert!(bed.mesh.entry("vms/vm1").is_some(), "the entry comes first");
    let _proxy = bed.proxy("client").await;
    seen.wait_for(|seen| seen.streams == 2).await.unwrap();
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn istiods_entry_of_old_labels_goes_before_the_machine_is_registered_with_new_ones() {
    let (mut bed, kubernetes) = kubernetes_bed().await;
    bed.run(
        json!({"registration": {"kubernetes": kubernetes}, "workload": {"labels": {"v": "1"}}}),
    );
    bed.until("certified", valid).await;
    let _proxy = bed.proxy("client").await;
    bed.until("registered", registered).await;
    let entry = || bed.mesh.entry("vms/client-127.0.0.1");
    let before = entry().unwrap();
    bed.configure(&["workload", "labels"], json!({"v": "2"}));
    assert_eq!(bed.command(&["reload"]).status.code(), Some(0));
    let mut seen = bed.mesh.seen();
    seen.wait_for(|seen| seen.streams_ended == 1).await.unwrap();
    let _proxy = bed.proxy("client").await;
    bed.until("registered with new labels", |_| {
        entry().is_some_and(|entry| entry["spec"]["labels"]["v"] == "2")
    })
    .await;
    assert_ne!(entry().unwrap()["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn without_the_kubernetes_api_istiod_is_given_time_to_forget_the_old_entry() {
    let mut bed = Bed::new().await;
    let labels = |v: &str| json!({"labels": {"v": v}});
    bed.run(json!({"workload": labels("1"), "registration": {"gracePeriod": "1s"}}));
    bed.until("certified", valid).await;
    let _proxy = bed.proxy("client").await;
    bed.until("registered", registered).await;
    bed.until("kept", |_| bed.state("registration.json").exists()).await;
    let uid =
        |bed: &Bed| bed.mesh.entry("vms/client-127.0.0.1").unwrap()["metadata"]["uid"].clone();
    let before = uid(&bed);
    assert_eq!(bed.stop().await, 0);
    // While it was stopped, it was given other labels.
    bed.run(json!({"workload": labels("2"), "registration": {"gracePeriod": "1s"}}));
    bed.until("certified again", valid).await;
    let streams = bed.mesh.seen().borrow().streams;
    let _proxy = bed.proxy("client").await;
    assert_eq!(bed.mesh.seen().borrow().streams, streams, "istiod is not called yet");
    assert_eq!(bed.mesh.sweep(Duration::ZERO), 1);
    bed.until("registered anew", registered).await;
    assert_ne!(
        uid(&bed),
        before,
        "the proxy of this test tells no labels, but it is another entry"
    );
    assert_eq!(bed.stop().await, 0);
}
