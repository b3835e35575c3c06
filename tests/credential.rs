//! The ladder of credentials in the whole agent, against the development mesh: what comes back
//! alone, and what says what to do.
#![cfg(feature = "devmesh")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use vm_agent::base::clock::parse_rfc3339;
use vm_agent::devmesh::{Fault, ISTIO_AUDIENCE, KUBERNETES_AUDIENCE, Mesh, Options, Service};

const AGENT: &str = env!("CARGO_BIN_EXE_vm-agent");

struct Bed {
    mesh: Mesh,
    root: tempfile::TempDir,
    status_port: u16,
    agent: Option<Child>,
}

impl Bed {
    async fn new() -> Self {
        let least_token_life = Duration::from_secs(1);
        let bed = Self {
            mesh: Mesh::start(Options { least_token_life, ..Options::default() }).await.unwrap(),
            root: tempfile::tempdir().unwrap(),
            status_port: free_port(),
            agent: None,
        };
        bed.mesh.add_group("vms/client");
        bed.mesh.grant("vms", "client");
        std::fs::create_dir_all(bed.path("etc/vm-agent")).unwrap();
        std::fs::create_dir_all(bed.path("var/lib/vm-agent")).unwrap();
        std::fs::write(bed.path("etc/vm-agent/root-cert.pem"), bed.mesh.root_pem()).unwrap();
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.path("var/lib/vm-agent").join(name)
    }

    /// Puts a token of our account into a file of the state directory, as an operator does.
    fn put(&self, file: &str, audience: &str, life: u64) {
        let token = self.mesh.token("vms", "client", audience, Duration::from_secs(life));
        std::fs::write(self.state(file), token).unwrap();
    }

    /// Starts the agent with these credentials, and with the Kubernetes API in reach.
    fn run(&mut self, credential: Value) {
        let server = format!("https://localhost:{}", self.mesh.kube_address().port());
        let root_cert = self.path("etc/vm-agent/root-cert.pem");
        let config = json!({
            "workload": {"name": "vm1", "namespace": "vms", "serviceAccount": "client", "group": "client", "address": "127.0.0.1"},
            "mesh": {"discoveryAddress": format!("localhost:{}", self.mesh.address().port()), "connectTo": "127.0.0.1"},
            "credential": credential,
            "registration": {"kubernetes": {"server": server, "caFile": root_cert, "tokenFile": "kube-token"}},
            "identity": {"ttl": "3s"},
            "proxy": {"binary": std::path::absolute("tests/fakes/envoy").unwrap(), "terminationDrainDuration": "100ms", "adminPort": free_port()},
            "status": {"address": "127.0.0.1", "port": self.status_port},
        });
        std::fs::write(self.path("etc/vm-agent/config.yaml"), config.to_string()).unwrap();
        let log =
            std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let agent = Command::new(AGENT)
            .arg("--root")
            .arg(self.root.path())
            .arg("run")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.agent = Some(agent.unwrap());
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let output =
            Command::new(AGENT).arg("--root").arg(self.root.path()).args(arguments).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    /// Asks for the status until it is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        let mut last = None;
        while Instant::now() < end {
            last = serde_json::from_str(&self.ask(&["status", "--json"])).ok();
            if let Some(status) = last.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not {what}: {last:#?}\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    async fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(agent.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let code = tokio::task::spawn_blocking(move || agent.wait().unwrap().code());
        assert_eq!(code.await.unwrap(), Some(0));
    }

    /// Stops the agent until this moment, RFC 3339, is past.
    async fn off_past(&mut self, moment: &Value) {
        self.stop().await;
        let end = parse_rfc3339(moment.as_str().unwrap()).unwrap();
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(left + Duration::from_secs(1)).await;
    }

    fn token_requests(&self) -> usize {
        let seen = self.mesh.seen();
        let seen = seen.borrow();
        seen.calls.iter().filter(|call| call.path.ends_with("/token")).count()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.kill().ok();
            agent.wait().ok();
        }
        if let Ok(note) = std::fs::read_to_string(self.path("run/vm-agent/envoy.pid"))
            && let Some(pid) = note.split_whitespace().next().and_then(|pid| pid.parse().ok())
        {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn valid(status: &Value) -> bool {
    status["identity"]["valid"] == true
}

fn rung(status: &Value, name: &str) -> Value {
    let rungs = status["credential"]["rungs"].as_array().cloned().unwrap_or_default();
    rungs.into_iter().find(|rung| rung["name"] == name).unwrap_or_default()
}

fn condition(status: &Value, room: &str) -> Value {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["room"] == room).unwrap_or_default()
}

fn has(value: &Value, words: &str) -> bool {
    value.as_str().is_some_and(|text| text.contains(words))
}

#[tokio::test]
async fn a_machine_that_was_off_past_its_certificate_comes_back_with_a_kept_token() {
    let mut bed = Bed::new().await;
    bed.put("kube-token", KUBERNETES_AUDIENCE, 3600);
    bed.run(json!({}));
    let status = bed.until("certified", valid).await;
    assert_eq!(rung(&status, "certificate")["in_use"], true);
    assert_eq!(rung(&status, "kubernetes")["state"], "usable");
    assert_eq!(status["credential"]["kubernetes_api"]["state"], "usable");
    let requests = bed.token_requests();
    bed.off_past(&status["identity"]["not_after"]).await;
    // The API server is not even needed.
    bed.mesh.faults().set(Service::Kube, Fault::Refuse);
    let by_token = bed.mesh.seen().borrow().by_token;
    bed.run(json!({}));
    bed.until("certified again", valid).await;
    let mut seen = bed.mesh.seen();
    seen.wait_for(|seen| seen.by_token == by_token + 1).await.unwrap();
    assert_eq!((bed.token_requests(), seen.borrow().refused), (requests, 0));
}

#[tokio::test]
async fn a_machine_that_was_off_past_its_token_too_has_a_new_one_made() {
    let mut bed = Bed::new().await;
    bed.put("kube-token", KUBERNETES_AUDIENCE, 3600);
    bed.run(json!({"tokenLife": "3s"}));
    let status = bed.until("certified", valid).await;
    let end = rung(&status, "kubernetes")["expires_at"].clone();
    bed.off_past(&end).await;
    let requests = bed.token_requests();
    bed.run(json!({"tokenLife": "3s"}));
    bed.until("certified again", valid).await;
    assert!(bed.token_requests() > requests);
    assert_eq!(bed.mesh.seen().borrow().refused, 0, "what has expired is not sent");
}

#[tokio::test]
async fn a_machine_that_was_off_past_everything_says_what_to_do_and_recovers_with_it() {
    let mut bed = Bed::new().await;
    bed.put("kube-token", KUBERNETES_AUDIENCE, 0);
    bed.put("istio-token", ISTIO_AUDIENCE, 0);
    bed.run(json!({"tokenFile": "istio-token"}));
    let stuck = |status: &Value| has(&condition(status, "identity")["what"], "no token is usable");
    let status = bed.until("stuck", stuck).await;
    let trouble = condition(&status, "identity");
    for words in ["credential.tokenFile (since 20", "credential.kubernetes (since 20", "expired at"]
    {
        assert!(has(&trouble["what"], words), "{trouble}");
    }
    for words in
        ["kubectl create token client -n vms --audience istio-ca", "vm-agent bundle create"]
    {
        assert!(has(&trouble["hint"], words), "{trouble}");
    }
    assert_eq!(trouble["retry"], "later");
    assert_eq!(rung(&status, "token-file")["state"], "spent");
    assert_eq!(rung(&status, "kubernetes")["state"], "spent");
    assert_eq!(bed.token_requests(), 0, "an expired token is not sent");
    bed.put("kube-token", KUBERNETES_AUDIENCE, 3600);
    let status = bed.until("certified", valid).await;
    assert_eq!(rung(&status, "kubernetes")["state"], "usable");
    assert_eq!(bed.mesh.seen().borrow().refused, 0);
}

#[tokio::test]
async fn the_credential_for_the_api_is_replaced_in_its_place_before_it_ends() {
    let mut bed = Bed::new().await;
    bed.put("kube-token", KUBERNETES_AUDIENCE, 6);
    let before = std::fs::read(bed.state("kube-token")).unwrap();
    bed.run(json!({}));
    let renewed =
        |status: &Value| status["credential"]["kubernetes_api"]["expires_in"].as_i64() > Some(300);
    bed.until("renewed", renewed).await;
    assert_ne!(std::fs::read(bed.state("kube-token")).unwrap(), before);
    bed.until("certified", valid).await;
    assert!(!bed.log().contains("eyJ"), "no token is in the log");
}

#[tokio::test]
async fn while_the_api_is_away_a_token_file_carries_and_the_rung_says_why_it_does_not() {
    let mut bed = Bed::new().await;
    bed.put("kube-token", KUBERNETES_AUDIENCE, 3600);
    bed.put("istio-token", ISTIO_AUDIENCE, 3600);
    bed.mesh.faults().set(Service::Kube, Fault::Status(tonic::Code::Unavailable, "no etcd"));
    bed.run(json!({"tokenFile": "istio-token"}));
    let said =
        |status: &Value| valid(status) && has(&rung(status, "kubernetes")["last_error"], "no etcd");
    let status = bed.until("certified and said", said).await;
    assert_eq!(rung(&status, "kubernetes")["state"], "failing");
    assert_eq!(condition(&status, "credential"), Value::Null, "the file is good for an hour");
    let page = metrics(bed.status_port);
    for line in [
        "istio_agent_credential_failures_total{rung=\"token-file\"} 0",
        "istio_agent_credential_expiry_seconds{rung=\"token-file\"} 3",
        "istio_agent_credential_expiry_seconds{rung=\"certificate\"}",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
    assert!(!page.contains("istio_agent_credential_failures_total{rung=\"kubernetes\"} 0"));
    let screen = bed.ask(&["status"]);
    assert!(screen.contains("credential     certificate for "), "{screen}");
    assert!(screen.contains(", token-file for 59m"), "{screen}");
    bed.mesh.faults().clear();
    bed.until("mended", |status| rung(status, "kubernetes")["state"] == "usable").await;
}

#[tokio::test]
async fn a_token_that_istiod_refuses_is_named_and_the_next_rung_is_taken() {
    let mut bed = Bed::new().await;
    let stranger = Mesh::start(Options::default()).await.unwrap();
    let token = stranger.token("vms", "client", ISTIO_AUDIENCE, Duration::from_secs(3600));
    std::fs::write(bed.state("istio-token"), token).unwrap();
    let command =
        json!([std::path::absolute("tests/fakes/credential").unwrap(), bed.state("printed")]);
    bed.run(json!({"tokenFile": "istio-token", "command": command}));
    let refused = |status: &Value| {
        has(&condition(status, "identity")["what"], "with the token of credential.tokenFile")
    };
    let status = bed.until("refused", refused).await;
    assert_eq!(rung(&status, "token-file")["state"], "failing");
    assert!(has(&rung(&status, "command")["last_error"], "ended with exit status: 1: cat:"));
    bed.put("printed", ISTIO_AUDIENCE, 3600);
    let status = bed.until("certified", valid).await;
    assert_eq!(rung(&status, "command")["state"], "usable");
    assert!(has(&rung(&status, "token-file")["last_error"], "did not accept its token"));
}

#[tokio::test]
async fn a_token_that_istiod_refused_only_for_a_while_is_a_good_one_again() {
    let mut bed = Bed::new().await;
    bed.put("istio-token", ISTIO_AUDIENCE, 3600);
    // As while istiod cannot ask the API server.
    let fault = Fault::Status(tonic::Code::Unauthenticated, "authentication failure");
    bed.mesh.faults().set(Service::Ca, fault);
    bed.run(json!({"tokenFile": "istio-token"}));
    bed.until("refused", |status| rung(status, "token-file")["state"] == "failing").await;
    bed.mesh.faults().clear();
    bed.until("certified", valid).await;
    bed.until("usable", |status| rung(status, "token-file")["state"] == "usable").await;
}

#[tokio::test]
async fn only_the_certificate_being_left_is_said_while_it_is_still_good() {
    let mut bed = Bed::new().await;
    bed.put("istio-token", ISTIO_AUDIENCE, 3600);
    bed.run(json!({"tokenFile": "istio-token"}));
    let status = bed.until("certified", valid).await;
    // There is no credential for the Kubernetes API.
    assert!(has(&rung(&status, "kubernetes")["last_error"], "kube-token"), "{status}");
    assert_eq!(condition(&status, "credential"), Value::Null);
    bed.put("istio-token", ISTIO_AUDIENCE, 0);
    let warned = |status: &Value| !condition(status, "credential").is_null();
    let status = bed.until("warned", warned).await;
    assert!(has(&condition(&status, "credential")["what"], "only the certificate, valid until 20"));
    assert!(valid(&status));
}

#[tokio::test]
async fn a_join_with_nothing_but_a_credential_for_the_api_gets_its_token_there() {
    let mut bed = Bed::new().await;
    bed.put("kube-token", KUBERNETES_AUDIENCE, 3600);
    let server = format!("https://localhost:{}", bed.mesh.kube_address().port());
    let settings = [
        "workload.namespace=vms".to_owned(),
        "workload.serviceAccount=client".to_owned(),
        "workload.group=client".to_owned(),
        format!("mesh.discoveryAddress=localhost:{}", bed.mesh.address().port()),
        "mesh.connectTo=127.0.0.1".to_owned(),
        "registration.kubernetes.tokenFile=kube-token".to_owned(),
        format!("registration.kubernetes.server={server}"),
        format!(
            "registration.kubernetes.caFile={}",
            bed.path("etc/vm-agent/root-cert.pem").display()
        ),
        format!("proxy.adminPort={}", free_port()),
        format!("status.port={}", bed.status_port),
    ];
    let join = |bed: &Bed| {
        let mut join = Command::new(AGENT);
        join.arg("--root").arg(bed.root.path()).args(["join", "--foreground"]);
        join.arg("--address=127.0.0.1").arg("--proxy-binary=tests/fakes/envoy");
        for setting in &settings {
            join.arg("--set").arg(setting);
        }
        join.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        join
    };
    bed.mesh.faults().set(Service::Kube, Fault::Refuse);
    let mut refused = join(&bed);
    // The mesh lives on this thread.
    let refused = tokio::task::spawn_blocking(move || refused.output().unwrap()).await.unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{words}");
    assert!(words.contains("credential.kubernetes (since"), "{words}");
    assert!(!bed.state("istio-token.json").exists(), "nothing is left of a join that failed");
    bed.mesh.faults().clear();
    let log = std::fs::File::create(bed.path("log")).unwrap();
    bed.agent = Some(join(&bed).stderr(log).spawn().unwrap());
    bed.until("certified", valid).await;
    let words = bed.log();
    assert!(words.contains("credential     from kubernetes, valid for 23h 59m"), "{words}");
    bed.stop().await;
}

/// The metrics page.
fn metrics(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = "GET /stats/prometheus HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}
