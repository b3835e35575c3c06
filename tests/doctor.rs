//! `vm-agent doctor`, the whole program against the development mesh: faults are injected one by
//! one, and each has to be the first thing that it names.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test"
)]

mod bed;

#[path = "doctor/ward.rs"]
mod ward;

#[path = "doctor/faults.rs"]
mod faults;

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use vm_agent::devmesh::KUBERNETES_AUDIENCE;

use faults::{FAULTS, Stage};
use ward::Ward;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_cause_of_every_fault_is_named_first() {
    let mut missed = Vec::new();
    for fault in FAULTS {
        let mut ward = Ward::new(fault.stage, fault.mesh).await;
        (fault.inject)(&mut ward);
        let (report, status) = ward.doctor(fault.stage).await;
        let first = &report["first"];
        let finding = report["findings"].as_array().unwrap().iter().find(|one| one["id"] == *first);
        let cause = finding.map(|one| one["cause"].to_string()).unwrap_or_default();
        let named = *first == fault.first && cause.contains(fault.words);
        let mended = finding.is_some_and(|one| !one["mend"].is_null());
        if !named || !mended || status != fault.status {
            let all = report["findings"].as_array().unwrap().iter();
            let all: Vec<_> =
                all.map(|one| format!("{} {} {}", one["id"], one["state"], one["cause"])).collect();
            missed.push(format!(
                "{}: {first} ({status}): {cause}\n  {}",
                fault.name,
                all.join("\n  ")
            ));
        }
    }
    println!("{} of {} faults are named first", FAULTS.len() - missed.len(), FAULTS.len());
    assert!(FAULTS.len() >= 40, "{}", FAULTS.len());
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_a_fault_has_none() {
    for stage in [Stage::Dead, Stage::Kubernetes] {
        let mut ward = Ward::new(stage, faults::MESH).await;
        let (report, status) = ward.doctor(stage).await;
        assert_eq!(
            (status, &report["first"], &report["state"]),
            (0, &json!("daemon"), &json!("warning")),
            "{report:#}"
        );
        assert_eq!(
            (&report["schema"], report["findings"].as_array().unwrap().len()),
            (&json!(1), 30)
        );
    }
    let mut ward = Ward::new(Stage::Ready, faults::MESH).await;
    let (report, status) = ward.doctor(Stage::Ready).await;
    assert_eq!(
        (status, &report["state"], &report["first"]),
        (0, &json!("ok"), &Value::Null),
        "{report:#}"
    );
    for id in [
        "tls",
        "root",
        "server-name",
        "token",
        "certificate",
        "registration",
        "names",
        "health",
        "ready",
    ] {
        assert_eq!(ward::state(&report, id), "ok", "{id} {report:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_machine_has_joined_it_says_so_and_looks_at_the_host() {
    let ward = Ward::new(Stage::Dead, faults::MESH).await;
    let empty = tempfile::tempdir().unwrap();
    let envoy = format!("PATH={}", std::path::absolute("tests/fakes").unwrap().display());
    let output = std::process::Command::new("env")
        .args([&envoy, bed::AGENT, "--root"])
        .arg(empty.path())
        .args(["doctor", "--json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["first"]), (Some(4), &json!("configuration")));
    let finding = &report["findings"][0];
    assert!(finding["mend"].as_str().unwrap().contains("vm-agent join"), "{finding}");
    assert_eq!(
        (ward::state(&report, "proxy"), ward::state(&report, "token")),
        ("ok".into(), "skipped".into())
    );
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "it changes nothing");
    drop(ward);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_changes_nothing_and_shows_people_the_mending_command() {
    let ward = Ward::new(Stage::Dead, faults::MESH).await;
    ward.bed.write_token("istio-ca", 0);
    let before = ward.files();
    let output = ward.bed.command(&["doctor"]);
    assert_eq!(ward.files(), before);
    assert_eq!(output.status.code(), Some(5));
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        out.contains("✗ token")
            && out.contains("mend it: ")
            && out.contains("kubectl create token"),
        "{out}"
    );
    assert!(error.contains("token: the token in") && error.contains("hint:"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bug_report_has_everything_and_no_secret() {
    let mut ward = Ward::new(Stage::Ready, faults::MESH).await;
    // A secret where nobody should have put one.
    ward.bed.configure(&["mesh", "metadata"], json!({"note": ward.bed.mesh.token("vms", "client", KUBERNETES_AUDIENCE, std::time::Duration::from_secs(60))}));
    ward.doctor(Stage::Ready).await;
    let path = ward.bed.path("report.json");
    let output = ward.bed.command(&["bugreport", "-o", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    for part in ["doctor", "status", "config", "versions", "log", "envoy"] {
        assert!(!report[part].is_null(), "{part}");
    }
    assert_eq!(report["status"]["ready"], true);
    assert!(report["envoy"]["stats"].to_string().contains("server.state"), "{}", report["envoy"]);
    assert!(text.contains("(token)"), "the token in the configuration was there");
    for file in ["var/lib/vm-agent/istio-token", "var/lib/vm-agent/identity.json"] {
        let secret = std::fs::read_to_string(ward.bed.path(file)).unwrap();
        let parts = secret.split(['.', '"', '\\']).filter(|part| part.len() > 60);
        for part in parts.filter(|part| !part.contains("BEGIN CERTIFICATE")) {
            assert!(!text.contains(part), "a part of {file} is in the report");
        }
    }
    assert!(!text.contains("PRIVATE KEY") && !text.contains("eyJ"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_hangs_at_once_is_waited_for_less_than_half_a_minute() {
    let mut ward = Ward::new(Stage::Kubernetes, faults::MESH).await;
    faults::hang(&mut ward);
    let asked = std::time::Instant::now();
    let (report, status) = ward.doctor(Stage::Kubernetes).await;
    assert_ne!(status, 0);
    assert!(asked.elapsed().as_secs() < 30, "{:?} {report:#}", asked.elapsed());
}
