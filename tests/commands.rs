//! What people type on a machine that systemd runs: joining by the service, and what becomes of it
//! when something fails. systemctl and journalctl are stood in for; everything else is real. The
//! test itself plays Envoy.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod bed;

#[path = "commands/cert.rs"]
mod cert;
#[path = "commands/host.rs"]
mod host;
#[path = "commands/leave.rs"]
mod leave;
#[path = "commands/rejoin.rs"]
mod rejoin;
#[path = "commands/terminal.rs"]
mod terminal;
#[path = "commands/watch.rs"]
mod watch;

use std::process::Stdio;

use host::{Host, events, join_events, text};
use nix::sys::signal::Signal;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_join_shows_its_phases_and_a_second_one_with_the_same_source_changes_nothing() {
    let host = Host::new().await;
    host.play_envoy();
    let bundle = host.bundle("one");
    let joined = host.join(&bundle, &["--json"]).await;
    assert_eq!(joined.status.code(), Some(0), "{}", text(&joined.stderr));
    let events = events(&joined);
    let done: Vec<_> = events.iter().filter(|one| one["state"] == "done").collect();
    let phases: Vec<_> = done.iter().map(|one| one["phase"].as_str().unwrap()).collect();
    assert_eq!(phases[..3], ["checks", "files", "service"]);
    assert_eq!(phases.last(), Some(&"ready"));
    for phase in ["identity", "control-plane", "registration", "proxy"] {
        let [started, ended] = join_events(&events, phase);
        assert_eq!((&started["state"], &ended["state"]), (&json!("started"), &json!("done")));
        assert!(ended["seconds"].as_f64().unwrap() >= 0.0, "{ended}");
    }
    let result = events.last().unwrap();
    assert_eq!((&result["result"], &result["exit"]), (&json!("joined"), &json!(0)));
    assert_eq!(result["identity"], "spiffe://cluster.local/ns/vms/sa/client");
    assert_eq!(result["services"], json!(["details.internal.com"]));
    assert!(host.systemd("enabled").exists());

    let (calls, files) = (host.calls(), host.files());
    let again = host.join(&bundle, &[]).await;
    let told = text(&again.stderr);
    assert_eq!(again.status.code(), Some(0), "{told}");
    assert!(told.contains("has already joined, and nothing was changed"), "{told}");
    assert!(told.contains("serves as 1 service (details.internal.com)"), "{told}");
    assert_eq!((host.calls(), host.files()), (calls, files), "it is not started anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_at_its_start_is_said_in_the_agents_own_words_and_undone() {
    let host = Host::new().await;
    let bundle = host.bundle("one");
    host.play("start", "#!/bin/sh\necho 'error: the moon is full' >&2\nexit 7\n");
    let before = host.files();
    let failed = host.join(&bundle, &["--json"]).await;
    let told = text(&failed.stderr);
    assert_eq!(failed.status.code(), Some(7), "{told}");
    assert!(told.contains("ended with status 7") && told.contains("the moon is full"), "{told}");
    let events = events(&failed);
    let [_, ended] = join_events(&events, "service");
    assert_eq!(ended["state"], "failed");
    let result = events.last().unwrap();
    assert_eq!((&result["result"], &result["undone"]), (&json!("failed"), &json!(true)));
    assert_eq!(host.files(), before);
    assert_eq!(host.calls().last().map(String::as_str), Some("stop vm-agent.service"));
    assert!(!host.systemd("enabled").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_source_that_fails_leaves_the_machine_in_the_mesh_with_the_old_one() {
    let host = Host::new().await;
    host.play_envoy();
    let one = host.bundle("one");
    assert_eq!(host.join(&one, &[]).await.status.code(), Some(0));
    let config = host.bed.path("etc/vm-agent/config.yaml");
    let before = std::fs::read_to_string(&config).unwrap();
    let pid = host.bed.status().unwrap()["pid"].clone();
    let two = host.bundle("two");
    host.play("start", "#!/bin/sh\nrm start\necho 'error: not like this'\nexit 4\n");
    let failed = host.join(&two, &[]).await;
    let told = text(&failed.stderr);
    assert_eq!(failed.status.code(), Some(4), "{told}");
    assert!(told.contains("not like this") && told.contains("the join is undone"), "{told}");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), before);
    let status = host.bed.until("back", |status| status["identity"]["valid"] == true).await;
    assert_ne!(status["pid"], pid);
    assert!(host.systemd("enabled").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_during_the_checks_leaves_no_file_and_no_secret_behind() {
    let host = Host::new().await;
    let bundle = host.bundle("one");
    // Somebody who never says a word: the checks wait for the handshake.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = silent.local_addr().unwrap().port();
    let there = format!("mesh.discoveryAddress=localhost:{there}");
    let before = host.files();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut join = host.command(&bundle, &["--set", &there]);
        let join = join.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // The checks have their own copy of the tokens.
        host.until("they are copied", || {
            host.scratch().iter().any(|name| name.contains("istio-token"))
        })
        .await;
        let ended = host.end(join, signal).await;
        let told = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(130), "{told}");
        assert!(told.contains(&format!("interrupted by {signal}")), "{told}");
        assert_eq!((host.scratch(), host.files()), (Vec::new(), before.clone()));
        assert_eq!(host.calls(), Vec::<String>::new(), "the service was not touched");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_service_starts_undoes_everything() {
    let host = Host::new().await;
    let bundle = host.bundle("one");
    let before = host.files();
    let mut join = host.command(&bundle, &[]);
    let join = join.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Nobody plays Envoy: the machine does not become ready.
    host.bed.until("certified", |status| status["identity"]["valid"] == true).await;
    let ended = host.end(join, Signal::SIGTERM).await;
    let told = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{told}");
    assert!(told.contains("the join is undone"), "{told}");
    assert_eq!(host.files(), before);
    assert!(host.bed.status().is_none(), "the agent was stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_every_change_and_makes_none() {
    let host = Host::new().await;
    let bundle = host.bundle("one");
    let before = host.files();
    let told = text(&host.join(&bundle, &["--dry-run"]).await.stdout);
    let root = host.bed.root.path().display();
    for words in [
        format!("new        0600 {root}/var/lib/vm-agent/istio-token ("),
        format!("new        0600 {root}/etc/vm-agent/config.yaml ("),
        format!("new        0700 {root}/var/lib/vm-agent (directory)"),
        "enable     vm-agent.service".to_owned(),
        "No redirect rules.".to_owned(),
        "  workload:".to_owned(),
    ] {
        assert!(told.contains(&words), "{words:?} is not in {told}");
    }
    assert!(!told.contains("eyJ"), "a token begins so: {told}");
    let events = events(&host.join(&bundle, &["--dry-run", "--json"]).await);
    let result = events.last().unwrap();
    assert_eq!((&result["result"], &result["unit"]["restart"]), (&json!("dry-run"), &json!(true)));
    assert_eq!(result["changes"].as_array().unwrap().len(), 6);
    assert_eq!((host.files(), host.calls()), (before, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_takes_longer_than_the_limit_goes_on_trying() {
    let host = Host::new().await;
    let bundle = host.bundle("one");
    let late = host.join(&bundle, &["--timeout", "3s"]).await;
    let told = text(&late.stderr);
    assert_eq!(late.status.code(), Some(3), "{told}");
    assert!(told.contains("not ready after 3s") && told.contains("goes on trying"), "{told}");
    host.bed.until("certified", |status| status["identity"]["valid"] == true).await;
    assert!(host.systemd("enabled").exists());
}
