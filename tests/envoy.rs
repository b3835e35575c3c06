//! The tier "real Envoy": what only the real one can say about our bootstrap and our supervision.
//! `ENVOY` names its binary; `make test-envoy` sets it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vm_agent::base::clock;
use vm_agent::base::tasks::Tasks;
use vm_agent::envoy::{
    BootstrapInputs, Config, Handle, ProxyPhase, Register, Supervisor, bootstrap, find_binary,
    resolve_user, version_of,
};
use vm_agent::identity::SpiffeId;
use vm_agent::workload::{ProxyConfig, Workload};

fn envoy() -> PathBuf {
    let path =
        std::env::var_os("ENVOY").expect("ENVOY must name the real Envoy: run `make test-envoy`");
    find_binary(Some(Path::new(&path)), None).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn workload(ip: &str) -> Workload {
    Workload {
        name: "vm1".to_owned(),
        id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
        group: Some("client".to_owned()),
        address: ip.parse().unwrap(),
        instance_ips: vec![ip.parse().unwrap()],
        labels: BTreeMap::new(),
        ports: BTreeMap::new(),
        network: String::new(),
        locality: Some("eu/a".parse().unwrap()),
        weight: None,
    }
}

fn config(directory: &Path, admin_port: u16) -> Config {
    let proxy = ProxyConfig::default();
    let mut bootstrap = bootstrap(&BootstrapInputs {
        workload: &workload("127.0.0.1"),
        proxy: &proxy,
        cluster_id: "Kubernetes",
        mesh_id: "",
        metadata: &BTreeMap::new(),
        platform: &BTreeMap::new(),
        register: Register::None,
        dns_capture: false,
        transparent: false,
        status_port: 15_020,
        admin_port,
    });
    // Other tests and other programs of this machine may hold Istio's usual ports.
    *bootstrap.pointer_mut("/static_resources/listeners").unwrap() = serde_json::json!([]);
    Config {
        launcher: PathBuf::from(env!("CARGO_BIN_EXE_vm-agent")),
        binary: envoy(),
        user: resolve_user(None).unwrap(),
        directory: directory.to_owned(),
        bootstrap,
        admin_port,
        log_level: "warning".to_owned(),
        drain_time: Duration::from_secs(45),
        transparent: false,
        termination_drain: Duration::from_secs(2),
        concurrency: Some(1),
        only_ipv6: false,
        extra_args: vec![],
    }
}

fn start(directory: &Path) -> (Handle, Tasks) {
    let (tasks, _ends) = Tasks::new();
    let (supervisor, handle) =
        Supervisor::new(config(directory, free_port()), clock::system(), tasks.clone());
    tasks.detached("proxy", supervisor.run());
    (handle, tasks)
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn it_runs_here_and_tells_its_version() {
    let version = version_of(&envoy()).await.unwrap();
    assert!(version.split('.').count() == 3, "{version}");
}

#[test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
fn the_real_envoy_accepts_our_bootstrap_on_ipv4_and_ipv6() {
    for ip in ["10.0.0.1", "fd00::1"] {
        let directory = tempfile::tempdir().unwrap();
        let made = bootstrap(&BootstrapInputs {
            workload: &workload(ip),
            proxy: &ProxyConfig::default(),
            cluster_id: "Kubernetes",
            mesh_id: "mesh",
            metadata: &BTreeMap::from([("WORKLOAD_NAME".to_owned(), "client".to_owned())]),
            platform: &BTreeMap::new(),
            register: Register::Entry("vm1".to_owned()),
            dns_capture: true,
            transparent: false,
            status_port: 15_020,
            admin_port: 15_000,
        });
        let path = directory.path().join("envoy.json");
        std::fs::write(&path, made.to_string()).unwrap();
        let output =
            Command::new(envoy()).args(["--mode", "validate", "-c"]).arg(&path).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("OK"),
            "{ip}: {words}"
        );
    }
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn a_killed_envoy_lives_again_under_another_number_and_a_stopped_one_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, tasks) = start(directory.path());
    let mut state = handle.state();
    let first = state.wait_for(|state| state.phase == ProxyPhase::Live).await.unwrap().pid.unwrap();
    let raw = nix::unistd::Pid::from_raw(i32::try_from(first).unwrap());
    nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGKILL).unwrap();
    let again = state
        .wait_for(|state| state.phase == ProxyPhase::Live && state.pid != Some(first))
        .await
        .unwrap()
        .clone();
    assert_eq!(again.restarts, 1);
    handle.stop().await;
    assert!(!Path::new(&format!("/proc/{}", again.pid.unwrap())).exists());
    assert!(tasks.finish(Duration::from_secs(10)).await);
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn an_envoy_that_refuses_its_bootstrap_is_a_trouble_with_its_words() {
    let directory = tempfile::tempdir().unwrap();
    let (tasks, _ends) = Tasks::new();
    let mut wrong = config(directory.path(), free_port());
    wrong.bootstrap =
        serde_json::json!({"static_resources": {"listeners": [{"name": "no address"}]}});
    let (supervisor, handle) = Supervisor::new(wrong, clock::system(), tasks.clone());
    tasks.detached("proxy", supervisor.run());
    let mut state = handle.state();
    let what = state
        .wait_for(|state| state.trouble.is_some())
        .await
        .unwrap()
        .trouble
        .clone()
        .unwrap()
        .what;
    assert!(what.contains("address"), "{what}");
    handle.kill().await;
}
