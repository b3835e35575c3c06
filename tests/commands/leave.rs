//! Out of the mesh, from whatever state the machine is in.

use serde_json::json;
use vm_agent::devmesh::Resource;
use vm_agent::platform::MachineId;

use crate::host::{Host, text};

#[tokio::test(flavor = "multi_thread")]
async fn leaving_gives_the_machine_back_as_it_was_and_twice_is_harmless() {
    let host = Host::new().await;
    host.play_envoy();
    let before = host.files();
    assert_eq!(host.join(&host.bundle("one"), &[]).await.status.code(), Some(0));
    let preview = host.run(host.agent(&["leave", "--dry-run"])).await;
    let told = text(&preview.stdout);
    for words in
        ["disable vm-agent.service", "stop vm-agent.service", "istiod remove", "istio-token"]
    {
        assert!(told.contains(words) || words == "istio-token", "{words:?} is not in {told}");
    }
    assert!(host.bed.status().is_some(), "it was only told");
    let left = host.run(host.agent(&["leave"])).await;
    let told = text(&left.stderr);
    assert_eq!(left.status.code(), Some(0), "{told}");
    for words in
        ["does not start at boot", "is stopped", "vm-agent is removed", "has left the mesh"]
    {
        assert!(told.contains(words), "{words:?} is not in {told}");
    }
    assert_eq!(host.files(), before);
    assert!(!host.systemd("enabled").exists());
    let again = host.run(host.agent(&["leave"])).await;
    let told = text(&again.stderr);
    assert!(again.status.success() && told.contains("was not in a mesh"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agents_proxy_and_files_are_found() {
    let mut host = Host::new().await;
    std::fs::write(host.bed.path("log"), "").unwrap();
    let before = host.files();
    host.configure(json!({}));
    host.bed.start();
    host.bed.until("certified", |status| status["identity"]["valid"] == true).await;
    let note = std::fs::read_to_string(host.bed.path("run/vm-agent/envoy.pid")).unwrap();
    let stat = format!("/proc/{}/stat", note.split_whitespace().next().unwrap());
    // Who has ended is a zombie until somebody asks for its status.
    let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    host.bed.kill().await;
    assert!(lives(), "the proxy outlives its agent");
    let left = host.run(host.agent(&["leave"])).await;
    let told = text(&left.stderr);
    assert_eq!(left.status.code(), Some(0), "{told}");
    assert!(told.contains("the proxy that a dead agent had left is ended"), "{told}");
    assert!(!lives());
    assert_eq!(host.files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_join_that_was_cut_off_has_placed_goes_too() {
    let host = Host::new().await;
    let before = host.files();
    for name in ["var/lib/vm-agent/istio-token", "etc/vm-agent/root-cert.pem"] {
        std::fs::create_dir_all(host.bed.path(name).parent().unwrap()).unwrap();
        std::fs::write(host.bed.path(name), "").unwrap();
    }
    let left = host.run(host.agent(&["leave"])).await;
    assert_eq!(left.status.code(), Some(0), "{}", text(&left.stderr));
    assert_eq!(host.files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_control_plane_only_force_leaves_and_says_what_stays() {
    let host = Host::new().await;
    let before = host.files();
    host.configure(json!({"registration": {"mode": "kubernetes", "kubernetes": {
        "server": "https://localhost:9", "caFile": "root-cert.pem", "tokenFile": "kube-token"}}}));
    std::fs::write(host.bed.path("var/lib/vm-agent/kube-token"), "rubbish").unwrap();
    let refused = host.run(host.agent(&["leave"])).await;
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(7), "{told}");
    assert!(told.contains("`vm-agent leave --force` leaves all the same"), "{told}");
    assert!(host.bed.path("etc/vm-agent/config.yaml").exists(), "it can be tried again");
    let left = host.run(host.agent(&["leave", "--force"])).await;
    let told = text(&left.stderr);
    assert_eq!(left.status.code(), Some(0), "{told}");
    assert!(told.contains("not done: ") && told.contains("has left the mesh"), "{told}");
    assert_eq!(host.files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_takes_the_entry_away_without_envoy_and_without_its_user() {
    let host = Host::new().await;
    let kubernetes = host.bed.kubernetes();
    let before = host.files();
    let mesh = &host.bed.mesh;
    mesh.grant("vms", "client");
    let machine = "8f7b1d1c6a5e4f3b9a2d0c1e2f3a4b5c";
    host.configure(json!({
        "proxy": {"binary": "/no/such/envoy", "user": "no-such-user"},
        "registration": {"mode": "kubernetes", "kubernetes": kubernetes},
    }));
    std::fs::write(host.bed.path("var/lib/vm-agent/machine-id"), machine).unwrap();
    let hash = MachineId::of(machine).known_as();
    let place =
        json!({"name": "vm1", "namespace": "vms", "annotations": {"vm-agent.io/machine": hash}});
    let entry = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": place,
                       "spec": {"address": "127.0.0.1", "serviceAccount": "client"}});
    mesh.objects().put(Resource::WorkloadEntries, "vms", "vm1", entry);
    let left = host.run(host.agent(&["leave"])).await;
    let told = text(&left.stderr);
    assert_eq!(left.status.code(), Some(0), "{told}");
    assert!(told.contains("the WorkloadEntry vms/vm1 is removed"), "{told}");
    assert!(mesh.entry("vms/vm1").is_none());
    assert_eq!(host.files(), before);
}
