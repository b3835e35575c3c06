use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::base::clock;
use crate::base::tasks::Tasks;
use crate::identity::SpiffeId;
use crate::workload::{ProxyConfig, Workload};

/// Our bootstrap against the one that Istio's agent made for the same machine. Every difference has
/// its reason here; one that is not listed fails, and so does one that is no more.
const DIFFERENCES: [(&str, &str); 22] = [
    (
        "/dynamic_resources/ads_config/grpc_services/0/envoy_grpc/retry_policy",
        "our relay is on this machine and holds streams while istiod is away",
    ),
    (
        "/stats_config/stats_matcher/inclusion_list/patterns/13",
        "the drain counts open connections, as Istio's does with EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
    ),
    (
        "/stats_config/stats_matcher/inclusion_list/patterns/14",
        "it counts inbound connections, too",
    ),
    ("/admin/profile_path", "the profile goes to our run directory: Istio's may not exist"),
    ("/node/metadata/INSTANCE_IPS", "loopback addresses are no instance addresses of a VM"),
    (
        "/node/metadata/ISTIO_VERSION",
        "we are no Istio version; istiod treats its absence as the newest",
    ),
    ("/node/metadata/PROXY_CONFIG/binaryPath", "we choose the binary; istiod does not read it"),
    ("/node/metadata/PROXY_CONFIG/configPath", "we choose the path; istiod does not read it"),
    ("/node/metadata/PROXY_CONFIG/controlPlaneAuthPolicy", "Istio's default, which istiod assumes"),
    ("/node/metadata/PROXY_CONFIG/drainDuration", "Istio's default, which istiod assumes"),
    ("/node/metadata/PROXY_CONFIG/proxyAdminPort", "Istio's default, which istiod assumes"),
    ("/node/metadata/PROXY_CONFIG/proxyBootstrapTemplatePath", "we have no template"),
    ("/node/metadata/PROXY_CONFIG/serviceCluster", "Istio's default, which istiod assumes"),
    ("/node/metadata/PROXY_CONFIG/statNameLength", "Istio's default, which istiod assumes"),
    ("/node/metadata/PROXY_CONFIG/statusPort", "Istio's default, which istiod assumes"),
    (
        "/node/metadata/PROXY_CONFIG/terminationDrainDuration",
        "Istio's default, which istiod assumes",
    ),
    (
        "/node/metadata/WORKLOAD_IDENTITY_SOCKET_FILE",
        "the name of our socket is no matter of istiod's",
    ),
    (
        "/node/metadata/app",
        "Istio's agent spills ISTIO_METAJSON_LABELS beside LABELS; nobody reads it",
    ),
    ("/node/metadata/service.istio.io~1canonical-name", "the same"),
    ("/node/metadata/service.istio.io~1canonical-revision", "the same"),
    (
        "/static_resources/clusters/2/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/pipe/path",
        "our socket",
    ),
    (
        "/static_resources/clusters/3/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/pipe/path",
        "our socket",
    ),
];

fn differences(at: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    let null = Value::Null;
    match (ours, theirs) {
        (Value::Object(one), Value::Object(two)) => {
            let names: std::collections::BTreeSet<_> = one.keys().chain(two.keys()).collect();
            for name in names {
                let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
                let value = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or(Value::Null)
                };
                differences(&at, &value(one), &value(two), found);
            }
        }
        (Value::Array(one), Value::Array(two)) => {
            for index in 0..one.len().max(two.len()) {
                let (one, two) = (one.get(index), two.get(index));
                differences(
                    &format!("{at}/{index}"),
                    one.unwrap_or(&null),
                    two.unwrap_or(&null),
                    found,
                );
            }
        }
        _ if ours == theirs => {}
        _ => found.push(at.to_owned()),
    }
}

fn workload() -> Workload {
    let labels = [
        ("app", "client"),
        ("service.istio.io/canonical-name", "client"),
        ("service.istio.io/canonical-revision", "latest"),
    ];
    Workload {
        name: "vm1".to_owned(),
        id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
        group: Some("client".to_owned()),
        address: "10.99.0.11".parse().unwrap(),
        instance_ips: vec!["10.99.0.11".parse().unwrap()],
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ports: BTreeMap::new(),
        network: String::new(),
        locality: None,
        weight: None,
    }
}

#[test]
fn the_bootstrap_means_what_istios_means_but_for_listed_differences() {
    let theirs = std::fs::read_to_string("tests/golden/istio-bootstrap.json").unwrap();
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    let metadata = theirs.pointer("/node/metadata/PROXY_CONFIG/proxyMetadata").unwrap();
    let raw = serde_json::json!({"proxyMetadata": metadata});
    let proxy = ProxyConfig::from_json(raw.as_object().unwrap().clone()).unwrap();
    let metadata = proxy.metadata.iter();
    let metadata = metadata.filter_map(|(name, value)| {
        Some((name.strip_prefix("ISTIO_META_")?.to_owned(), value.clone()))
    });
    let ours = bootstrap(&BootstrapInputs {
        workload: &workload(),
        proxy: &proxy,
        cluster_id: "Kubernetes",
        mesh_id: "",
        metadata: &metadata.collect(),
        platform: &BTreeMap::new(),
        register: Register::Group("client".to_owned()),
        dns_capture: true,
        transparent: false,
        status_port: 15_020,
        admin_port: 15_000,
    });
    let mut found = Vec::new();
    differences("", &ours, &theirs, &mut found);
    found.sort_unstable();
    let mut listed: Vec<_> = DIFFERENCES.iter().map(|(at, _)| (*at).to_owned()).collect();
    listed.sort_unstable();
    assert_eq!(found, listed);
}

/// A stand-in for our own binary and for Envoy at once, which runs `script`.
fn config(directory: &Path, script: &str) -> Config {
    std::fs::write(directory.join("script"), script).unwrap();
    let launcher = std::path::absolute("tests/fakes/launcher").unwrap();
    Config {
        binary: launcher.clone(),
        launcher,
        launch_socket: None,
        user: None,
        directory: directory.to_owned(),
        bootstrap: Value::Null,
        version: "1.0.0".to_owned(),
        // Nobody listens there.
        admin_port: 1,
        log_level: "warning,conn_handler:debug".to_owned(),
        drain_time: Duration::from_secs(45),
        transparent: false,
        termination_drain: Duration::from_millis(300),
        concurrency: Some(1),
        only_ipv6: false,
        extra_args: vec![],
    }
}

fn supervise(config: Config) -> (Handle, Tasks) {
    let (tasks, _ends) = Tasks::new();
    let (supervisor, handle) = Supervisor::new(config, clock::system(), tasks.clone());
    tasks.spawn("proxy", supervisor.run());
    (handle, tasks)
}

#[tokio::test]
async fn a_killed_proxy_is_started_again_in_place_and_a_stopped_one_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, _tasks) = supervise(config(directory.path(), "exec sleep 600"));
    let mut state = handle.state();
    let first = state.wait_for(|state| state.pid.is_some()).await.unwrap().pid.unwrap();
    let raw = nix::unistd::Pid::from_raw(i32::try_from(first).unwrap());
    nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGKILL).unwrap();
    let again =
        state.wait_for(|state| state.pid.is_some_and(|pid| pid != first)).await.unwrap().clone();
    assert_eq!(again.restarts, 1);
    assert!(again.last_exit.unwrap().contains("signal 9"));
    handle.stop().await;
    assert_eq!(state.borrow().phase, ProxyPhase::Stopped);
    assert!(!Path::new(&format!("/proc/{}", again.pid.unwrap())).exists());
    for file in ["envoy.pid", "envoy.json"] {
        assert!(!directory.path().join(file).exists(), "{file}");
    }
}

#[tokio::test]
async fn a_proxy_that_dies_at_once_is_a_trouble_with_its_own_words() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, _tasks) =
        supervise(config(directory.path(), "echo 'cannot bind 15001' >&2; exit 3"));
    let mut state = handle.state();
    let failed = state.wait_for(|state| state.trouble.is_some()).await.unwrap().clone();
    let what = failed.trouble.unwrap().what;
    assert!(what.contains("exit status 3") && what.contains("cannot bind 15001"), "{what}");
    handle.kill().await;
}

/// Supervises until there is a process, and lets it go, perhaps before it has noted itself; returns
/// its number.
async fn leave_one(config: Config) -> u32 {
    let (handle, _tasks) = supervise(config);
    let mut state = handle.state();
    let pid = state.wait_for(|state| state.pid.is_some()).await.unwrap().pid.unwrap();
    handle.release().await;
    pid
}

/// Waits until the process in a directory has noted itself.
async fn noted(directory: &Path) {
    while living(directory).is_none() {
        tokio::task::yield_now().await;
    }
}

fn kill(pid: u32) {
    let raw = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn the_proxy_that_an_agent_left_is_gone_on_with_and_its_end_is_learned() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), "exec sleep 600");
    let left = leave_one(config.clone()).await;
    let (handle, _tasks) = supervise(config);
    let mut state = handle.state();
    let found = state.wait_for(|state| state.pid.is_some()).await.unwrap().clone();
    assert_eq!((found.pid, found.origin, found.restarts), (Some(left), ProxyOrigin::Adopted, 0));
    let age = clock::system().now().duration_since(found.started_at.unwrap()).unwrap();
    assert!(age < Duration::from_secs(60), "{age:?}");
    kill(left);
    let again = state.wait_for(|state| state.pid.is_some_and(|pid| pid != left)).await;
    let again = again.unwrap().clone();
    assert_eq!((again.origin, again.restarts), (ProxyOrigin::Started, 1));
    assert!(again.last_exit.unwrap().contains("not known"));
    handle.stop().await;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the script is left");
}

#[tokio::test]
async fn a_proxy_that_was_started_with_something_else_is_ended_before_a_new_one_starts() {
    let directory = tempfile::tempdir().unwrap();
    let first = config(directory.path(), "exec sleep 600");
    let mut other_bootstrap = first.clone();
    other_bootstrap.bootstrap = serde_json::json!({"node": {"metadata": {"NAME": "other"}}});
    let mut other_level = other_bootstrap.clone();
    other_level.log_level = "info".to_owned();
    let mut left = leave_one(first).await;
    for config in [other_bootstrap, other_level] {
        let next = leave_one(config).await;
        assert_ne!(next, left);
        assert!(!Path::new(&format!("/proc/{left}")).exists() || is_zombie(left));
        left = next;
    }
    assert_eq!(end_leftover(directory.path()).await, Some(left));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the script is left");
    assert_eq!(end_leftover(directory.path()).await, None);
}

#[tokio::test]
async fn a_proxy_that_started_with_other_addresses_and_labels_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let of = |ip: &str, app: &str| {
        let metadata =
            serde_json::json!({"INSTANCE_IPS": ip, "LABELS": {"app": app}, "NAME": "vm1"});
        serde_json::json!({"node": {"id": format!("sidecar~{ip}~vm1"), "metadata": metadata}})
    };
    let first = config(directory.path(), "exec sleep 600");
    let left = leave_one(Config { bootstrap: of("10.0.0.1", "old"), ..first.clone() }).await;
    assert_eq!(leave_one(Config { bootstrap: of("10.0.0.2", "new"), ..first }).await, left);
    assert_eq!(end_leftover(directory.path()).await, Some(left));
}

#[tokio::test]
async fn another_version_goes_on_with_a_proxy_whose_bootstrap_it_would_make_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let first = config(directory.path(), "exec sleep 600");
    let left = leave_one(first.clone()).await;
    let bootstrap = serde_json::json!({"node": {"metadata": {"NAME": "other"}}});
    let next = Config { bootstrap, version: "1.0.1".to_owned(), ..first.clone() };
    let (handle, _tasks) = supervise(next.clone());
    let mut state = handle.state();
    let found = state.wait_for(|state| state.pid.is_some()).await.unwrap().clone();
    assert_eq!((found.pid, found.bootstrap_of.as_deref()), (Some(left), Some("1.0.0")));
    // Until somebody wants the new one to count.
    handle.restart(Duration::ZERO).await;
    let now = state.borrow().clone();
    assert_ne!(now.pid, Some(left));
    assert_eq!(now.bootstrap_of, None);
    handle.release().await;
    // Whom it cannot talk to, or what runs as somebody else, it cannot go on with.
    let other = leave_one(Config { admin_port: 2, version: "1.0.2".to_owned(), ..next }).await;
    assert_ne!(Some(other), now.pid);
    assert_eq!(end_leftover(directory.path()).await, Some(other));
}

/// A configuration whose bootstrap names its admin port, by which a supervisor knows whether it can go
/// on with a process.
fn with_admin(directory: &Path, script: &str) -> Config {
    let admin = serde_json::json!({"address": {"socket_address": {"port_value": 1}}});
    Config { bootstrap: serde_json::json!({"admin": admin}), ..config(directory, script) }
}

/// What the trial of another binary does.
fn trial_does(directory: &Path, script: &str) {
    std::fs::write(directory.join("trial"), script).unwrap();
}

#[tokio::test]
async fn a_proxy_that_fails_its_trial_does_not_replace_the_one_that_runs() {
    let directory = tempfile::tempdir().unwrap();
    let first = with_admin(directory.path(), "exec sleep 600");
    let left = leave_one(first.clone()).await;
    noted(directory.path()).await;
    trial_does(directory.path(), "echo 'cannot work here' >&2; exit 3");
    let (handle, _tasks) = supervise(Config { log_level: "info".to_owned(), ..first.clone() });
    let mut state = handle.state();
    let kept = state.wait_for(|state| state.rejected_replacement.is_some()).await.unwrap().clone();
    assert_eq!((kept.pid, kept.origin, kept.restarts), (Some(left), ProxyOrigin::Adopted, 0));
    let what = kept.rejected_replacement.unwrap().what;
    assert!(what.contains("exit status 3 (cannot work here)"), "{what}");

    handle.restart(Duration::ZERO).await;
    let still = state.borrow().clone();
    assert_eq!((still.pid, still.refused_restarts, still.ordered_restarts), (Some(left), 1, 0));

    trial_does(directory.path(), "exit 0");
    let next = state.wait_for(|state| state.pid.is_some_and(|pid| pid != left)).await.unwrap();
    assert!(next.rejected_replacement.is_none());
    drop(next);
    handle.kill().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_trial_or_the_drain_of_another_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let first = with_admin(directory.path(), "exec sleep 600");
    let left = leave_one(first.clone()).await;
    noted(directory.path()).await;
    trial_does(directory.path(), "touch $directory/tries; exec sleep 600");
    let other = Config { log_level: "info".to_owned(), ..first };
    let (handle, _tasks) = supervise(other);
    while !directory.path().join("tries").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begun = std::time::Instant::now();
    handle.release().await;
    assert!(begun.elapsed() < trial::LIMIT, "it waited for the trial");
    assert_eq!(end_leftover(directory.path()).await, Some(left));
}

/// Ended, and not yet waited for by this process, whose child it is in these tests.
fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains(") Z ")
}

#[tokio::test]
async fn a_proxy_on_its_way_out_is_not_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), "trap '' TERM; sleep 600 & wait");
    let (handle, _tasks) = supervise(config.clone());
    let mut state = handle.state();
    let left = state.wait_for(|state| state.pid.is_some()).await.unwrap().pid.unwrap();
    noted(directory.path()).await;
    let stopping = handle.clone();
    let mut stop = std::pin::pin!(stopping.stop());
    // The agent dies in the midst of its stop.
    tokio::select! {
        () = &mut stop => panic!("it ends only by force"),
        draining = state.wait_for(|state| state.phase == ProxyPhase::Draining) => drop(draining),
    }
    let note = std::fs::read_to_string(directory.path().join("envoy.pid")).unwrap();
    assert!(!note.contains(&fingerprint::Fingerprint::of(&config).to_string()), "{note}");
    kill(left);
    stop.await;
}

#[tokio::test]
async fn a_restart_that_was_asked_for_is_no_death() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, _tasks) = supervise(config(directory.path(), "exec sleep 600"));
    let mut state = handle.state();
    let first = state.wait_for(|state| state.pid.is_some()).await.unwrap().pid;
    handle.restart(Duration::ZERO).await;
    let now = state.borrow().clone();
    assert_ne!(now.pid, first);
    assert_eq!((now.restarts, now.ordered_restarts, now.last_exit), (0, 1, None));
    handle.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_nobody_noted_is_never_joined_by_a_second_one() {
    let directory = tempfile::tempdir().unwrap();
    let (tasks, _ends) = Tasks::new();
    let output = output::Output::open(directory.path(), &tasks).unwrap();
    let held = output.for_process().unwrap().unwrap();
    let (handle, _tasks) = supervise(config(directory.path(), "exec sleep 600"));
    let mut state = handle.state();
    let failed = state.wait_for(|state| state.trouble.is_some()).await.unwrap().clone();
    assert!(failed.trouble.unwrap().what.contains("nobody noted"));
    assert_eq!(failed.pid, None);
    drop(held);
    state.wait_for(|state| state.pid.is_some()).await.unwrap();
    handle.kill().await;
}
