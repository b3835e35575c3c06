//! Joining with a bundle, the whole program against a development mesh: what is placed, what is
//! kept, what is refused before anything changes.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use secrecy::SecretString;
use serde_json::{Value, json};
use vm_agent::base::clock::Clock;
use vm_agent::config::write_yaml;
use vm_agent::devmesh::{ISTIO_AUDIENCE, KUBERNETES_AUDIENCE, Mesh, Options};
use vm_agent::identity::Roots;
use vm_agent::join::{Bundle, BundleMetadata, KubernetesAccess};

const AGENT: &str = env!("CARGO_BIN_EXE_vm-agent");
const AGAIN: &str = "vm-agent bundle create client -n vms --gateway 127.0.0.1 -o bundle.yaml";
const HOUR: u64 = 3600;

/// The machine's clock, a minute behind at first: what is made later is newer by whole seconds.
#[derive(Default)]
struct Behind(AtomicU64);

impl Clock for Behind {
    fn now(&self) -> SystemTime {
        let ahead = Duration::from_secs(self.0.load(Ordering::Relaxed));
        SystemTime::now() - Duration::from_secs(60) + ahead
    }
}

struct Bed {
    clock: Arc<Behind>,
    mesh: Mesh,
    root: tempfile::TempDir,
    agent: Option<Child>,
}

/// How long the tokens of a bundle live, in seconds.
struct Lives {
    kubernetes: u64,
    istio: u64,
}

const FRESH: Lives = Lives { kubernetes: HOUR, istio: HOUR };

impl Bed {
    async fn new() -> Self {
        let clock = Arc::new(Behind::default());
        let options = Options { clock: Arc::clone(&clock) as _, ..Options::default() };
        let mesh = Mesh::start(options).await.unwrap();
        mesh.add_group("vms/client");
        mesh.grant("vms", "client");
        Self { clock, mesh, root: tempfile::tempdir().unwrap(), agent: None }
    }

    /// Time passes for the mesh.
    fn later(&self) {
        self.clock.0.fetch_add(10, Ordering::Relaxed);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("vm").join(name)
    }

    fn token(&self, audience: &str, life: u64) -> String {
        self.mesh.token("vms", "client", audience, Duration::from_secs(life))
    }

    fn bundle(&self, lives: &Lives) -> Bundle {
        let roots = || Roots::from_pem(self.mesh.root_pem().as_bytes()).unwrap();
        let metadata = BundleMetadata {
            group: "client".to_owned(),
            namespace: "vms".to_owned(),
            renew_with: AGAIN.to_owned(),
            ..BundleMetadata::default()
        };
        let settings = json!({
            "workload": {"namespace": "vms", "serviceAccount": "client", "group": "client", "address": "127.0.0.1",
                         "labels": {"app": "client"}},
            "mesh": {"discoveryAddress": format!("localhost:{}", self.mesh.address().port()), "connectTo": "127.0.0.1"},
            "registration": {"mode": "kubernetes", "kubernetes": {
                "server": format!("https://localhost:{}", self.mesh.kube_address().port())}},
        });
        let token = SecretString::from(self.token(KUBERNETES_AUDIENCE, lives.kubernetes));
        let istio = SecretString::from(self.token(ISTIO_AUDIENCE, lives.istio));
        let api = KubernetesAccess { roots: roots(), token };
        let settings = settings.as_object().unwrap().clone();
        Bundle::new(metadata, settings, roots(), (Some(api), Some(istio)))
    }

    fn write(&self, bundle: &Bundle) -> PathBuf {
        let path = self.root.path().join("bundle.yaml");
        std::fs::write(&path, write_yaml(&bundle.to_value()).unwrap()).unwrap();
        path
    }

    fn command(&self, source: &Path, more: &[&str]) -> Command {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(AGENT);
        command
            .arg("--root")
            .arg(self.root.path().join("vm"))
            .args(["join", "--foreground", "--proxy-binary"])
            .arg(std::path::absolute("tests/fakes/envoy").unwrap())
            .arg(source)
            .args([
                format!("--set=status.port={}", free()),
                format!("--set=proxy.adminPort={}", free()),
            ])
            .arg("--set=status.address=127.0.0.1")
            .args(more);
        command
    }

    /// Joins where it must fail.
    fn refused(&self, source: &Path, more: &[&str]) -> (i32, String) {
        let Output { status, stderr, .. } = self.command(source, more).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    }

    /// Joins until the WorkloadEntry stands, and stops.
    async fn join(&mut self, source: &Path, more: &[&str]) -> Value {
        let log = std::fs::File::create(self.root.path().join("log")).unwrap();
        let agent = self.command(source, more).stdin(Stdio::null()).stderr(log).spawn();
        self.agent = Some(agent.unwrap());
        let registered = self.until_registered().await;
        let mut agent = self.agent.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(agent.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ended = tokio::task::spawn_blocking(move || agent.wait().unwrap()).await.unwrap();
        assert_eq!(ended.code(), Some(0));
        registered
    }

    async fn until_registered(&mut self) -> Value {
        for _ in 0..1200 {
            let status = Command::new(AGENT)
                .arg("--root")
                .arg(self.root.path().join("vm"))
                .args(["status", "--json"])
                .output()
                .unwrap();
            let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            if status["registration"]["registered"] == true && status["identity"]["valid"] == true {
                return status;
            }
            if self.agent.as_mut().unwrap().try_wait().unwrap().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{}", std::fs::read_to_string(self.root.path().join("log")).unwrap());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.kill().ok();
            agent.wait().ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_places_all_that_a_machine_needs_and_joining_again_changes_nothing() {
    let mut bed = Bed::new().await;
    let file = bed.write(&bed.bundle(&FRESH));
    bed.join(&file, &["--name", "vm1"]).await;
    assert_eq!(bed.mesh.entry("vms/vm1").unwrap()["spec"]["labels"], json!({"app": "client"}));
    let mode = |name: &str| bed.path(name).metadata().unwrap().permissions().mode() & 0o777;
    for name in ["var/lib/vm-agent/kube-token", "var/lib/vm-agent/istio-token"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    let read = |name: &str| std::fs::read_to_string(bed.path(name)).unwrap();
    assert_eq!(read("etc/vm-agent/kube-ca.pem"), read("etc/vm-agent/root-cert.pem"));
    let config = read("etc/vm-agent/config.yaml");
    assert!(!config.contains(&read("var/lib/vm-agent/kube-token")), "it holds no secret");
    // The name need not be said again.
    bed.join(&file, &[]).await;
    let entries = bed.mesh.objects().list(vm_agent::devmesh::Resource::WorkloadEntries, None);
    assert_eq!(entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_agent_renewed_stays_until_a_bundle_is_newer() {
    let mut bed = Bed::new().await;
    let file = bed.write(&bed.bundle(&FRESH));
    bed.join(&file, &["--name", "vm1"]).await;
    let place = bed.path("var/lib/vm-agent/kube-token");
    let kept = || std::fs::read_to_string(&place).unwrap();
    let old = bed.write(&bed.bundle(&Lives { kubernetes: 0, istio: HOUR }));
    bed.later();
    let renewed = bed.token(KUBERNETES_AUDIENCE, HOUR);
    std::fs::write(&place, &renewed).unwrap();
    // Even after the bundle itself has expired.
    bed.join(&old, &[]).await;
    assert_eq!(kept(), renewed);
    bed.later();
    let fresh = bed.write(&bed.bundle(&FRESH));
    bed.join(&fresh, &[]).await;
    assert_ne!(kept(), renewed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_bundle_says_since_when_and_how_to_make_a_fresh_one() {
    let bed = Bed::new().await;
    for lives in [Lives { kubernetes: 0, istio: HOUR }, Lives { kubernetes: 0, istio: 0 }] {
        let file = bed.write(&bed.bundle(&lives));
        let (code, told) = bed.refused(&file, &[]);
        assert_eq!(code, 5, "{told}");
        assert!(told.contains("the bundle expired at 20") && told.contains(AGAIN), "{told}");
        assert!(!bed.root.path().join("vm/etc").exists());
    }
    let file = bed.write(&bed.bundle(&FRESH));
    bed.mesh.delete_service_account("vms", "client");
    let (code, told) = bed.refused(&file, &[]);
    assert!(code == 5 && told.contains("Unauthorized") && told.contains(AGAIN), "{code} {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_credential_may_not_do_is_said_before_anything_changes() {
    let mut bed = Bed::new().await;
    bed.mesh = Mesh::start(Options::default()).await.unwrap();
    bed.mesh.grant_verbs("vms", "client", &["get", "list", "patch"], "workloadentries");
    let file = bed.write(&bed.bundle(&FRESH));
    let (code, told) = bed.refused(&file, &[]);
    assert_eq!(code, 7, "{told}");
    assert!(
        told.contains("does not let service account vms/client create, delete workloadentries"),
        "{told}"
    );
    assert!(!bed.root.path().join("vm/etc").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_the_bundle_is_not_for_is_refused_and_a_prefix_makes_one() {
    let mut bed = Bed::new().await;
    let mut bundle = bed.bundle(&FRESH);
    bundle.metadata.name_prefix = "edge-".to_owned();
    let file = bed.write(&bundle);
    let (code, told) = bed.refused(&file, &["--name", "vm1"]);
    assert!(code == 4 && told.contains("begin with \"edge-\""), "{code} {told}");
    let status = bed.join(&file, &[]).await;
    assert!(status["registration"]["name"].as_str().unwrap().starts_with("edge-"), "{status}");
    bundle.metadata.name_prefix.clear();
    bundle.settings["workload"]["name"] = json!("only");
    let file = bed.write(&bundle);
    let (code, told) = bed.refused(&file, &["--name", "vm1"]);
    assert!(code == 4 && told.contains("for \"only\" alone"), "{code} {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_shown_without_its_secrets_and_comes_on_standard_input_too() {
    let bed = Bed::new().await;
    let file = bed.write(&bed.bundle(&FRESH));
    let inspect = |more: &[&str]| {
        let stdin = std::fs::File::open(&file).unwrap();
        Command::new(AGENT).args(["bundle", "inspect"]).args(more).stdin(stdin).output().unwrap()
    };
    let shown = inspect(&["-", "--json"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((shown.status.code(), &value["expired"]), (Some(0), &json!(false)));
    let istio = &value["tokens"]["istio"];
    assert_eq!(istio["account"], "vms/client");
    assert_eq!(istio["audiences"], json!([ISTIO_AUDIENCE]));
    assert_eq!(value["roots"]["mesh"][0]["sha256"].as_str().unwrap().len(), 64);
    let people = String::from_utf8(inspect(&[file.to_str().unwrap()]).stdout).unwrap();
    assert!(people.contains("vms/client") && people.contains("SHA-256"), "{people}");
    for text in [text, people] {
        assert!(!text.contains("eyJ"), "a token begins so: {text}");
    }
    let old = bed.write(&bed.bundle(&Lives { kubernetes: 0, istio: HOUR }));
    let over = inspect(&[old.to_str().unwrap()]);
    assert_eq!(over.status.code(), Some(5));
    assert!(String::from_utf8(over.stdout).unwrap().contains("(over)"));
    assert!(String::from_utf8(over.stderr).unwrap().contains(AGAIN));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bundle_says_does_not_command_the_terminal_of_who_looks_at_it() {
    let bed = Bed::new().await;
    let mut bundle = bed.bundle(&FRESH);
    bundle.settings["workload"]["name"] = json!("vm1\u{1b}[2J");
    let file = bed.write(&bundle);
    let shown = Command::new(AGENT).args(["bundle", "inspect"]).arg(file).output().unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("vm1") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn what_no_bundle_can_be_made_of_is_said_before_the_cluster_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let none = directory.path().join("none/bundle.yaml");
    let cases: [(i32, &str, &[&str]); 4] = [
        (9, "there is no such directory", &["-o", none.to_str().unwrap()]),
        (9, "is no regular file", &["-o", directory.path().to_str().unwrap()]),
        (9, "is no regular file", &["-o", link.to_str().unwrap()]),
        (2, "less than 10m", &["--ttl", "9m"]),
    ];
    for (code, words, args) in cases {
        let mut create = Command::new(AGENT);
        create.args(["bundle", "create", "client", "--kubeconfig", "/nonexistent"]).args(args);
        let made = create.output().unwrap();
        let told = String::from_utf8(made.stderr).unwrap();
        assert!(made.status.code() == Some(code) && told.contains(words), "{args:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_bundle_is_said_with_its_line() {
    let bed = Bed::new().await;
    let mut tree = bed.bundle(&FRESH).to_value();
    tree["settings"]["workload"]["wieght"] = json!(1);
    let file = bed.root.path().join("bundle.yaml");
    let yaml = write_yaml(&tree).unwrap();
    std::fs::write(&file, &yaml).unwrap();
    let line = yaml.lines().position(|line| line.contains("wieght")).unwrap() + 1;
    let (code, told) = bed.refused(&file, &[]);
    let words = format!("bundle.yaml:{line}: workload.wieght: there is no such setting");
    assert!(code == 4 && told.contains(&words), "{code} {told}");
    std::fs::write(&file, "a: 1\n").unwrap();
    let (code, told) = bed.refused(&file, &[]);
    assert!(code == 4 && told.contains("no join bundle"), "{code} {told}");
}
