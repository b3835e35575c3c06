//! A machine that is in the mesh, and a join that would take it out: the agent that serves goes on.

use std::path::Path;

use serde_json::json;

use crate::host::{Host, text};

/// A join that must be refused, and the machine before and after it.
async fn refused(host: &Host, source: &Path, exit: i32, words: &[&str]) {
    let identity = || std::fs::read_to_string(host.bed.state("identity.json")).unwrap();
    let before =
        (host.calls(), host.files(), identity(), host.bed.status().unwrap()["pid"].clone());
    for more in [&["--dry-run"][..], &[]] {
        let told = host.join(source, more).await;
        let (code, told) = (told.status.code(), text(&told.stderr));
        assert_eq!(code, Some(exit), "{told}");
        for words in words {
            assert!(told.contains(words), "{words:?} is not in {told}");
        }
        assert!(!told.contains("taking back"), "{told}");
    }
    let status = host.bed.status().unwrap();
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!((host.calls(), host.files(), identity(), status["pid"].clone()), before);
}

async fn joined() -> Host {
    let host = Host::new().await;
    host.play_envoy();
    let first = host.join(&host.bundle("one"), &[]).await;
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_becomes_another_workload_only_after_it_has_left() {
    let host = joined().await;
    host.bed.mesh.add_group("vms/other");
    let other_group = host.changed("group", |tree| {
        tree["settings"]["workload"]["group"] = json!("other");
    });
    let words = ["joined as WorkloadGroup vms/client", "vms/other", "`vm-agent leave` first"];
    refused(&host, &other_group, 7, &words).await;
    let other_account = host.changed("account", |tree| {
        tree["settings"]["workload"]["serviceAccount"] = json!("details");
    });
    refused(&host, &other_account, 7, &["(service account details)"]).await;
    assert_eq!(host.run(host.agent(&["leave"])).await.status.code(), Some(0));
    // Whoever has left may be anything. (The test's own Envoy still holds its port.)
    let told = text(&host.join(&other_group, &["--dry-run"]).await.stderr);
    assert!(!told.contains("has joined as") && told.contains("is needed for"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_the_authority_refuses_ends_the_join_and_not_the_service() {
    let host = joined().await;
    let forged = host.changed("forged", |tree| {
        let token = tree["credential"]["istioToken"].as_str().unwrap();
        let (signed, _) = token.rsplit_once('.').unwrap();
        tree["credential"]["istioToken"] = json!(format!("{signed}.AAAA"));
    });
    refused(&host, &forged, 5, &["no certificate for spiffe://cluster.local/ns/vms/sa/client"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_istiod_that_is_away_ends_the_join_and_not_the_service() {
    let host = joined().await;
    host.bed.mesh.go_away().await.unwrap();
    let told = host.join(&host.bundle("two"), &[]).await;
    assert_eq!(told.status.code(), Some(6), "{}", text(&told.stderr));
    assert_eq!(host.calls().iter().filter(|call| call.starts_with("restart")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_names_no_program_and_nothing_that_is_for_the_machine_to_say() {
    let host = Host::new().await;
    let probe = json!({"exec": {"command": ["/bin/sh", "-c", "id > /pwned"]}});
    let exec = host.changed("exec", |tree| tree["settings"]["health"] = json!({"probe": probe}));
    let before = host.files();
    let told = host.join(&exec, &[]).await;
    let (code, told) = (told.status.code(), text(&told.stderr));
    assert_eq!(code, Some(4), "{told}");
    for words in ["health.probe.exec: this machine would run", "id > /pwned", "--allow-exec"] {
        assert!(told.contains(words), "{words:?} is not in {told}");
    }
    let told = text(&host.join(&exec, &["--allow-exec", "--dry-run"]).await.stderr);
    assert!(told.contains("this machine can join"), "{told}");
    let shown = host.run(host.agent(&["bundle", "inspect", exec.to_str().unwrap()])).await;
    assert!(text(&shown.stdout).contains("! runs"), "{}", text(&shown.stdout));
    let hostile = host.changed("hostile", |tree| {
        tree["settings"]["proxy"]["binary"] = json!("/tmp/x");
        tree["settings"]["capture"] = json!({"mode": "none"});
        tree["settings"]["dns"] = json!({"listen": "0.0.0.0:53"});
    });
    let told = host.join(&hostile, &["--allow-exec"]).await;
    let (code, told) = (told.status.code(), text(&told.stderr));
    assert_eq!(code, Some(4), "{told}");
    for words in ["proxy.binary: a bundle may not set this", "capture.mode: ", "dns.listen: "] {
        assert!(told.contains(words), "{words:?} is not in {told}");
    }
    assert_eq!((host.files(), host.calls()), (before, Vec::new()));
    let shown = host.run(host.agent(&["bundle", "inspect", hostile.to_str().unwrap()])).await;
    let shown = text(&shown.stdout);
    assert!(shown.contains("! refused") && shown.contains("proxy.binary = \"/tmp/x\""), "{shown}");
}
