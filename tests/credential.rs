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

mod bed;

use std::time::{Duration, SystemTime};

use bed::{Bed, condition, free_port, valid};
use serde_json::{Value, json};
use vm_agent::base::clock::parse_rfc3339;
use vm_agent::devmesh::{Fault, ISTIO_AUDIENCE, KUBERNETES_AUDIENCE, Mesh, Options, Service};

impl Bed {
    /// No token yet, and a mesh whose tokens may live as shortly as a test likes.
    async fn without_token() -> Self {
        let least_token_life = Duration::from_secs(1);
        let bed = Self::with(Options { least_token_life, ..Options::default() }).await;
        bed.mesh.grant("vms", "client");
        std::fs::remove_file(bed.state("istio-token")).unwrap();
        bed
    }

    /// Starts the agent with these credentials, and with the Kubernetes API in reach.
    fn run_with(&mut self, credential: Value) {
        // Only what a test asks for.
        let mut credentials = json!({"tokenFile": null});
        credentials.as_object_mut().unwrap().extend(credential.as_object().unwrap().clone());
        let mut kubernetes = self.kubernetes();
        kubernetes["tokenFile"] = json!("kube-token");
        self.run(json!({
            "credential": credentials,
            "registration": {"kubernetes": kubernetes},
            "identity": {"ttl": "3s"},
        }));
    }

    /// Stops the agent until this moment, RFC 3339, is past.
    async fn off_past(&mut self, moment: &Value) {
        assert_eq!(self.stop().await, 0);
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

fn rung(status: &Value, name: &str) -> Value {
    let rungs = status["credential"]["rungs"].as_array().cloned().unwrap_or_default();
    rungs.into_iter().find(|rung| rung["name"] == name).unwrap_or_default()
}

fn has(value: &Value, words: &str) -> bool {
    value.as_str().is_some_and(|text| text.contains(words))
}

#[tokio::test]
async fn a_machine_that_was_off_past_its_certificate_comes_back_with_a_kept_token() {
    let mut bed = Bed::without_token().await;
    bed.put_token("kube-token", KUBERNETES_AUDIENCE, 3600);
    bed.run_with(json!({}));
    let status = bed.until("certified", valid).await;
    assert_eq!(rung(&status, "certificate")["in_use"], true);
    assert_eq!(rung(&status, "kubernetes")["state"], "usable");
    assert_eq!(status["credential"]["kubernetes_api"]["state"], "usable");
    let requests = bed.token_requests();
    bed.off_past(&status["identity"]["not_after"]).await;
    // The API server is not even needed.
    bed.mesh.faults().set(Service::Kube, Fault::Refuse);
    let by_token = bed.mesh.seen().borrow().by_token;
    bed.run_with(json!({}));
    bed.until("certified again", valid).await;
    let mut seen = bed.mesh.seen();
    seen.wait_for(|seen| seen.by_token == by_token + 1).await.unwrap();
    assert_eq!((bed.token_requests(), seen.borrow().refused), (requests, 0));
}

#[tokio::test]
async fn a_machine_that_was_off_past_its_token_too_has_a_new_one_made() {
    let mut bed = Bed::without_token().await;
    bed.put_token("kube-token", KUBERNETES_AUDIENCE, 3600);
    bed.run_with(json!({"tokenLife": "3s"}));
    let status = bed.until("certified", valid).await;
    let end = rung(&status, "kubernetes")["expires_at"].clone();
    bed.off_past(&end).await;
    let requests = bed.token_requests();
    bed.run_with(json!({"tokenLife": "3s"}));
    bed.until("certified again", valid).await;
    assert!(bed.token_requests() > requests);
    assert_eq!(bed.mesh.seen().borrow().refused, 0, "what has expired is not sent");
}

#[tokio::test]
async fn a_machine_that_was_off_past_everything_says_what_to_do_and_recovers_with_it() {
    let mut bed = Bed::without_token().await;
    bed.put_token("kube-token", KUBERNETES_AUDIENCE, 0);
    bed.put_token("istio-token", ISTIO_AUDIENCE, 0);
    bed.run_with(json!({"tokenFile": "istio-token"}));
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
    bed.put_token("kube-token", KUBERNETES_AUDIENCE, 3600);
    let status = bed.until("certified", valid).await;
    assert_eq!(rung(&status, "kubernetes")["state"], "usable");
    assert_eq!(bed.mesh.seen().borrow().refused, 0);
}

#[tokio::test]
async fn the_credential_for_the_api_is_replaced_in_its_place_before_it_ends() {
    let mut bed = Bed::without_token().await;
    bed.put_token("kube-token", KUBERNETES_AUDIENCE, 6);
    let before = std::fs::read(bed.state("kube-token")).unwrap();
    bed.run_with(json!({}));
    let renewed =
        |status: &Value| status["credential"]["kubernetes_api"]["expires_in"].as_i64() > Some(300);
    bed.until("renewed", renewed).await;
    assert_ne!(std::fs::read(bed.state("kube-token")).unwrap(), before);
    bed.until("certified", valid).await;
    assert!(!bed.log().contains("eyJ"), "no token is in the log");
}

#[tokio::test]
async fn while_the_api_is_away_a_token_file_carries_and_the_rung_says_why_it_does_not() {
    let mut bed = Bed::without_token().await;
    bed.put_token("kube-token", KUBERNETES_AUDIENCE, 3600);
    bed.put_token("istio-token", ISTIO_AUDIENCE, 3600);
    bed.mesh.faults().set(Service::Kube, Fault::Status(tonic::Code::Unavailable, "no etcd"));
    bed.run_with(json!({"tokenFile": "istio-token"}));
    let said =
        |status: &Value| valid(status) && has(&rung(status, "kubernetes")["last_error"], "no etcd");
    let status = bed.until("certified and said", said).await;
    assert_eq!(rung(&status, "kubernetes")["state"], "failing");
    assert_eq!(condition(&status, "credential"), Value::Null, "the file is good for an hour");
    let (_, page) = bed.page("/stats/prometheus", "localhost").await;
    for line in [
        "istio_agent_credential_failures_total{rung=\"token-file\"} 0",
        "istio_agent_credential_expiry_seconds{rung=\"token-file\"} 3",
        "istio_agent_credential_expiry_seconds{rung=\"certificate\"}",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
    assert!(!page.contains("istio_agent_credential_failures_total{rung=\"kubernetes\"} 0"));
    let screen = String::from_utf8(bed.command(&["status"]).stdout).unwrap();
    assert!(screen.contains("credential     certificate for "), "{screen}");
    assert!(screen.contains(", token-file for 59m"), "{screen}");
    bed.mesh.faults().clear();
    bed.until("mended", |status| rung(status, "kubernetes")["state"] == "usable").await;
}

#[tokio::test]
async fn a_token_that_istiod_refuses_is_named_and_the_next_rung_is_taken() {
    let mut bed = Bed::without_token().await;
    let stranger = Mesh::start(Options::default()).await.unwrap();
    let token = stranger.token("vms", "client", ISTIO_AUDIENCE, Duration::from_secs(3600));
    std::fs::write(bed.state("istio-token"), token).unwrap();
    let command =
        json!([std::path::absolute("tests/fakes/credential").unwrap(), bed.state("printed")]);
    bed.run_with(json!({"tokenFile": "istio-token", "command": command}));
    let refused = |status: &Value| {
        has(&condition(status, "identity")["what"], "with the token of credential.tokenFile")
    };
    let status = bed.until("refused", refused).await;
    assert_eq!(rung(&status, "token-file")["state"], "failing");
    assert!(has(&rung(&status, "command")["last_error"], "ended with exit status: 1: cat:"));
    bed.put_token("printed", ISTIO_AUDIENCE, 3600);
    let status = bed.until("certified", valid).await;
    assert_eq!(rung(&status, "command")["state"], "usable");
    assert!(has(&rung(&status, "token-file")["last_error"], "did not accept its token"));
}

#[tokio::test]
async fn a_token_that_istiod_refused_only_for_a_while_is_a_good_one_again() {
    let mut bed = Bed::without_token().await;
    bed.put_token("istio-token", ISTIO_AUDIENCE, 3600);
    // As while istiod cannot ask the API server.
    let fault = Fault::Status(tonic::Code::Unauthenticated, "authentication failure");
    bed.mesh.faults().set(Service::Ca, fault);
    bed.run_with(json!({"tokenFile": "istio-token"}));
    bed.until("refused", |status| rung(status, "token-file")["state"] == "failing").await;
    bed.mesh.faults().clear();
    bed.until("certified", valid).await;
    bed.until("usable", |status| rung(status, "token-file")["state"] == "usable").await;
}

#[tokio::test]
async fn only_the_certificate_being_left_is_said_while_it_is_still_good() {
    let mut bed = Bed::without_token().await;
    bed.put_token("istio-token", ISTIO_AUDIENCE, 3600);
    bed.run_with(json!({"tokenFile": "istio-token"}));
    let status = bed.until("certified", valid).await;
    // There is no credential for the Kubernetes API.
    assert!(has(&rung(&status, "kubernetes")["last_error"], "kube-token"), "{status}");
    assert_eq!(condition(&status, "credential"), Value::Null);
    bed.put_token("istio-token", ISTIO_AUDIENCE, 0);
    let warned = |status: &Value| !condition(status, "credential").is_null();
    let status = bed.until("warned", warned).await;
    assert!(has(&condition(&status, "credential")["what"], "only the certificate, valid until 20"));
    assert!(valid(&status));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_with_nothing_but_a_credential_for_the_api_gets_its_token_there() {
    let mut bed = Bed::without_token().await;
    bed.put_token("kube-token", KUBERNETES_AUDIENCE, 3600);
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
        format!("status.port={}", free_port()),
    ];
    let proxy = "--proxy-binary=tests/fakes/envoy";
    let mut join = vec!["join", "--foreground", "--address=127.0.0.1", proxy];
    join.extend(settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
    bed.mesh.faults().set(Service::Kube, Fault::Refuse);
    let refused = bed.command(&join);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{words}");
    assert!(words.contains("credential.kubernetes (since"), "{words}");
    assert!(!bed.state("istio-token.json").exists(), "nothing is left of a join that failed");
    bed.mesh.faults().clear();
    bed.start_by(&join);
    bed.until("certified", valid).await;
    let words = bed.log();
    assert!(words.contains("credential     from kubernetes, valid for 23h 59m"), "{words}");
    assert_eq!(bed.stop().await, 0);
}
