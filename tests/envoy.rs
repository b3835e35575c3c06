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
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_agent::base::clock;
use vm_agent::base::tasks::Tasks;
use vm_agent::envoy::{
    BootstrapInputs, Config, Handle, ProxyOrigin, ProxyPhase, ProxyState, Register, Supervisor,
    bootstrap, end_leftover, find_binary, resolve_user, version_of,
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
        launch_socket: None,
        binary: envoy(),
        user: resolve_user(None).unwrap(),
        directory: directory.to_owned(),
        bootstrap,
        version: "1.0.0".to_owned(),
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
    supervise(config(directory, free_port()))
}

fn supervise(config: Config) -> (Handle, Tasks) {
    let (tasks, _ends) = Tasks::new();
    let (supervisor, handle) = Supervisor::new(config, clock::system(), tasks.clone());
    tasks.detached("proxy", supervisor.run());
    (handle, tasks)
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn it_runs_here_and_tells_its_version() {
    let version = version_of(&envoy(), None).await.unwrap();
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

/// Waits until its admin interface answers.
async fn live(handle: &Handle) -> ProxyState {
    handle.state().wait_for(|state| state.phase == ProxyPhase::Live).await.unwrap().clone()
}

/// A page that the proxy answers by itself, with an access log at its standard output.
fn page(port: u16) -> serde_json::Value {
    let typed = |kind: &str| format!("type.googleapis.com/envoy.extensions.{kind}");
    serde_json::json!({
        "name": "page",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{
            "name": "http",
            "typed_config": {
                "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "page",
                "access_log": [{"name": "file", "typed_config": {
                    "@type": typed("access_loggers.file.v3.FileAccessLog"), "path": "/dev/stdout"}}],
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
                "http_filters": [{"name": "router", "typed_config": {
                    "@type": typed("filters.http.router.v3.Router")}}],
            },
        }]}],
    })
}

fn ask(port: u16, path: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Our log, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The log of all tests, as tasks may log from any thread.
    fn start() -> Self {
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_writer(move || writer.clone()).init();
        log
    }

    async fn says(&self, words: &str) {
        let said = async {
            while !String::from_utf8_lossy(&self.0.lock().unwrap()).contains(words) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let limit = tokio::time::timeout(Duration::from_secs(30), said).await;
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        assert!(limit.is_ok(), "not said: {words}\n{text}");
    }
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn an_envoy_that_an_agent_left_serves_on_is_adopted_and_still_heard_as_any_user() {
    let log = Log::start();
    for (user, who) in [(resolve_user(None).unwrap(), "usual"), (None, "same")] {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut config = config(directory.path(), free_port());
        config.user = user;
        *config.bootstrap.pointer_mut("/static_resources/listeners").unwrap() =
            serde_json::json!([page(port)]);
        // It would wait for a control plane first.
        config.bootstrap.as_object_mut().unwrap().remove("dynamic_resources");
        let (handle, tasks) = supervise(config.clone());
        let left = live(&handle).await;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ask(port, &format!("/first/{who}"));
        log.says(&format!("GET /first/{who}")).await;
        handle.release().await;
        assert!(tasks.finish(Duration::from_secs(10)).await);
        ask(port, &format!("/nobody-reads/{who}"));
        let (handle, _tasks) = supervise(config.clone());
        let found = live(&handle).await;
        assert_eq!((found.pid, found.origin), (left.pid, ProxyOrigin::Adopted));
        let apart = found.started_at.unwrap().duration_since(left.started_at.unwrap());
        assert!(apart.unwrap_or_else(|error| error.duration()) < Duration::from_secs(2));
        log.says(&format!("GET /nobody-reads/{who}")).await;
        ask(port, &format!("/second/{who}"));
        log.says(&format!("GET /second/{who}")).await;
        handle.stop().await;
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn an_envoy_of_another_bootstrap_is_ended_first_and_so_is_one_that_nobody_wants() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let (handle, _tasks) = supervise(config(directory.path(), port));
    let left = live(&handle).await.pid;
    handle.release().await;
    let mut other = config(directory.path(), port);
    *other.bootstrap.pointer_mut("/node/metadata/MESH_ID").unwrap() = "other".into();
    let (handle, _tasks) = supervise(other);
    // The port of its admin interface is the same: there is never a second one.
    let new = live(&handle).await;
    assert_eq!((new.origin, new.restarts), (ProxyOrigin::Started, 0));
    assert_ne!(new.pid, left);
    handle.release().await;
    assert_eq!(end_leftover(directory.path()).await, new.pid);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Puts another file at the binary's place, at once, as a package does.
fn install(binary: &Path, make: impl FnOnce(&Path)) {
    let new = binary.with_extension("new");
    make(&new);
    std::fs::rename(new, binary).unwrap();
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn a_binary_that_does_not_start_never_replaces_an_envoy_that_serves() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let (directory, binaries) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(binaries.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = binaries.path().join("envoy");
    let good = |path: &Path| symlink(envoy(), path).unwrap();
    install(&binary, good);
    let config = Config { binary: binary.clone(), ..config(directory.path(), free_port()) };
    let (handle, _tasks) = supervise(config.clone());
    let first = live(&handle).await;
    handle.release().await;

    install(&binary, |path| {
        let says = "envoy  version: 0/1.99.0/Clean/RELEASE/none";
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && {{ echo '{says}'; exit 0; }}\necho cannot work here >&2\nexit 3\n"
        );
        std::fs::write(path, script).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    });
    let (handle, _tasks) = supervise(config.clone());
    let mut state = handle.state();
    let kept = state.wait_for(|state| state.rejected_replacement.is_some()).await.unwrap().clone();
    assert_eq!((kept.pid, kept.origin), (first.pid, ProxyOrigin::Adopted));
    let what = kept.rejected_replacement.unwrap().what;
    assert!(what.contains("exit status 3 (cannot work here)"), "{what}");
    let kept = live(&handle).await;
    assert_eq!(kept.version, Some(version_of(&envoy(), None).await.unwrap()), "that of what runs");
    handle.restart(Duration::ZERO).await;
    let still = live(&handle).await;
    assert_eq!((still.pid, still.refused_restarts), (first.pid, 1));

    install(&binary, good);
    let next = state
        .wait_for(|state| state.pid.is_some() && state.pid != first.pid)
        .await
        .unwrap()
        .clone();
    assert!(next.rejected_replacement.is_none());
    live(&handle).await;
    handle.stop().await;
}

#[tokio::test]
#[ignore = "needs ENVOY, the real one: make test-envoy"]
async fn a_note_of_a_dead_envoy_is_no_hindrance() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, _tasks) = start(directory.path());
    let left = live(&handle).await.pid.unwrap();
    handle.release().await;
    let raw = nix::unistd::Pid::from_raw(i32::try_from(left).unwrap());
    nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGKILL).unwrap();
    let (handle, _tasks) = start(directory.path());
    assert_eq!(live(&handle).await.origin, ProxyOrigin::Started);
    handle.kill().await;
}
