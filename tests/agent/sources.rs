//! Certificates from other sources than istiod, roots that change, and clocks that are wrong.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use vm_agent::base::clock::{Clock, SystemClock};
use vm_agent::devmesh::{Approval, ClientIdentity, Mesh, Options, WorkloadApi};

use crate::bed::{Bed, condition, trouble, valid};

const ID: &str = "spiffe://cluster.local/ns/vms/sa/client";

/// The machine's clock, set forth.
struct Ahead(Duration);

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        SystemClock.now() + self.0
    }
}

impl Bed {
    /// A certificate that is valid from a minute ago for so many seconds from now.
    fn certificate(&self, seconds: u64) -> ClientIdentity {
        let now = SystemClock.now();
        let (start, end) = (now - Duration::from_secs(60), now + Duration::from_secs(seconds));
        self.mesh.workload_certificate(ID, start, end).unwrap()
    }

    fn hint(&self, room: &str) -> String {
        let status = self.status().unwrap_or_default();
        condition(&status, room)["hint"].to_string()
    }
}

fn serial(status: &Value) -> &Value {
    &status["identity"]["serial"]
}

#[tokio::test]
async fn files_of_somebody_else_are_followed_in_consistent_pairs() {
    let mut bed = Bed::new().await;
    let (cert, key) = (bed.path("cert.pem"), bed.path("key.pem"));
    let files = json!({"source": "files", "files": {"certFile": cert, "keyFile": key}});
    bed.run(json!({"identity": files}));
    bed.until("told", |status| trouble(status, "identity").contains("cert.pem")).await;
    let first = bed.certificate(3600);
    std::fs::write(&cert, &first.chain_pem).unwrap();
    std::fs::write(&key, first.key_pem.expose_secret()).unwrap();
    let before = bed.until("certified", is_well).await;
    assert_eq!(before["identity"]["renewal"]["source"], "files");
    assert_eq!(before["identity"]["renewal"]["phase"], "following");
    // Half of the next pair, until the agent has looked at it; then the other half.
    let second = bed.certificate(3600);
    std::fs::write(&cert, &second.chain_pem).unwrap();
    let looks = |status: &Value| status["identity"]["renewal"]["attempts"].as_u64().unwrap();
    let half = bed.until("looked at", |status| looks(status) > looks(&before)).await;
    assert_eq!((serial(&half), trouble(&half, "identity").as_str()), (serial(&before), ""));
    std::fs::write(&key, second.key_pem.expose_secret()).unwrap();
    let after = bed.until("replaced", |status| serial(status) != serial(&before)).await;
    assert_eq!((valid(&after), after["identity"]["renewal"]["issued"].as_u64()), (true, Some(2)));
    assert_eq!(bed.mesh.seen().borrow().csrs.len(), 0, "istiod is not asked");
}

#[tokio::test]
async fn a_file_that_nobody_renews_or_that_is_anothers_is_said_with_its_name() {
    let mut bed = Bed::new().await;
    let (cert, key) = (bed.path("cert.pem"), bed.path("key.pem"));
    let files = json!({"source": "files", "files": {"certFile": cert, "keyFile": key}});
    let place = |identity: &ClientIdentity| {
        std::fs::write(&key, identity.key_pem.expose_secret()).unwrap();
        std::fs::write(&cert, &identity.chain_pem).unwrap();
    };
    place(&bed.certificate(5));
    bed.run(json!({"identity": files}));
    bed.until("ending", |status| trouble(status, "identity").contains("has not been renewed"))
        .await;
    let now = SystemClock.now();
    let other = "spiffe://cluster.local/ns/vms/sa/admin";
    let end = now + Duration::from_secs(3600);
    place(&bed.mesh.workload_certificate(other, now - Duration::from_secs(9), end).unwrap());
    let told = bed.until("told", |status| trouble(status, "identity").contains("sa/admin")).await;
    assert!(trouble(&told, "identity").contains("cert.pem"));
    place(&bed.certificate(3600));
    bed.until("healed", |status| valid(status) && trouble(status, "identity").is_empty()).await;
}

#[tokio::test]
async fn a_spiffe_workload_apis_pushes_arrive_and_its_absence_is_survived() {
    let mut bed = Bed::new().await;
    let socket = bed.path("agent.sock");
    let settings =
        json!({"source": "spiffe", "spiffeSocket": format!("unix://{}", socket.display())});
    bed.run(json!({"identity": settings}));
    bed.until("alone", |status| trouble(status, "identity").contains("cannot connect")).await;
    let api = WorkloadApi::serve(&socket).unwrap();
    bed.until("nobody", |status| trouble(status, "identity").contains("no identity issued")).await;
    assert!(bed.hint("identity").contains("spire-server entry create"));
    api.push("spiffe://cluster.local/ns/vms/sa/other", &bed.certificate(60), &bed.mesh.root_pem());
    bed.until("other", |status| trouble(status, "identity").contains("but for")).await;
    api.push(ID, &bed.certificate(3600), &bed.mesh.root_pem());
    let first = bed.until("certified", valid).await;
    assert_eq!(first["identity"]["renewal"]["source"], "spiffe");
    api.push(ID, &bed.certificate(3600), &bed.mesh.root_pem());
    let second = bed.until("replaced", |status| serial(status) != serial(&first)).await;
    drop(api);
    let alone = bed.until("left", |status| !trouble(status, "identity").is_empty()).await;
    assert_eq!((serial(&alone), valid(&alone)), (serial(&second), true));
    let again = WorkloadApi::serve(&socket).unwrap();
    again.push(ID, &bed.certificate(3600), &bed.mesh.root_pem());
    bed.until("back", |status| {
        serial(status) != serial(&second) && trouble(status, "identity").is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_request_through_kubernetes_waits_for_whoever_may_approve_it() {
    let mut bed = Bed::new().await;
    let settings = json!({"source": "kubernetes", "signerName": "example.com/mesh", "ttl": "1h"});
    let registration = json!({"mode": "istiod", "kubernetes": bed.kubernetes()});
    bed.run(json!({"identity": settings, "registration": registration}));
    bed.until("forbidden", |status| trouble(status, "identity").contains("forbidden")).await;
    assert!(bed.hint("identity").contains("certificatesigningrequests"));
    bed.mesh.grant_requests("vms", "client");
    let waits = |status: &Value| trouble(status, "identity").contains("waits for its approval");
    let status = bed.until("waiting", waits).await;
    assert_eq!(status["identity"]["renewal"]["phase"], "approval");
    let mut requests = bed.mesh.requests();
    let (name, request) = requests.borrow().clone().into_iter().next().unwrap();
    assert!(bed.hint("identity").contains(&format!("kubectl certificate approve {name}")));
    assert_eq!(request["spec"]["signerName"], "example.com/mesh");
    assert_eq!(request["spec"]["expirationSeconds"], 3600);
    assert_eq!(
        request["spec"]["usages"],
        json!(["digital signature", "client auth", "server auth"])
    );
    // An API server that was away for a while has still got it, and it is not asked twice.
    bed.mesh.cut_connections();
    assert!(bed.mesh.approve_request(&name));
    let certified = bed.until("certified", valid).await;
    assert_eq!(
        certified["identity"]["renewal"]["attempts"],
        certified["identity"]["renewal"]["failures"].as_u64().unwrap() + 1
    );
    requests.wait_for(|requests| requests.is_empty()).await.unwrap();
}

#[tokio::test]
async fn a_request_whose_watches_end_at_once_is_looked_at_ever_more_slowly() {
    let options = Options { longest_watch: Duration::ZERO, ..Options::default() };
    let mut bed = Bed::with(options).await;
    bed.mesh.grant_requests("vms", "client");
    let settings = json!({"source": "kubernetes", "signerName": "example.com/mesh", "ttl": "1h"});
    let registration = json!({"mode": "istiod", "kubernetes": bed.kubernetes()});
    bed.run(json!({"identity": settings, "registration": registration}));
    let mut seen = bed.mesh.seen();
    let watches = |seen: &vm_agent::devmesh::Seen| {
        seen.calls.iter().filter(|call| call.verb == "watch").count()
    };
    seen.wait_for(|seen| watches(seen) >= 1).await.unwrap();
    let start = tokio::time::Instant::now();
    seen.wait_for(|seen| watches(seen) >= 4).await.unwrap();
    // At least half of 500, 1000 and 2000 milliseconds.
    assert!(start.elapsed() >= Duration::from_millis(1700), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_denied_request_is_said_with_the_words_of_who_denied_it() {
    let mut bed = Bed::new().await;
    bed.mesh.grant_requests("vms", "client");
    bed.mesh.set_approval(Approval::Denied("unknown machine"));
    let settings = json!({"source": "kubernetes", "signerName": "example.com/mesh", "ttl": "1h"});
    bed.run(json!({"identity": settings, "registration": {"kubernetes": bed.kubernetes()}}));
    let denied =
        |status: &Value| trouble(status, "identity").contains("was denied: unknown machine");
    bed.until("denied", denied).await;
}

#[tokio::test]
async fn a_new_root_beside_the_old_one_is_trusted_and_kept() {
    let mut bed = Bed::new().await;
    bed.run(json!({"identity": {"ttl": "6s"}}));
    let first = bed.until("certified", valid).await;
    bed.mesh.rotate_root().unwrap();
    let issuer = |status: &Value| status["identity"]["issuer"].clone();
    let second =
        bed.until("renewed", |status| valid(status) && issuer(status) != issuer(&first)).await;
    assert_eq!(second["identity"]["renewal"]["failures"], 0);
    assert_eq!(bed.stop().await, 0);
    bed.mesh.retire_old_roots().unwrap();
    // Off until the certificate is over: what is left of the new root is the copy on disk.
    let end = second["identity"]["not_after"].as_str().unwrap();
    let end = vm_agent::base::clock::parse_rfc3339(end).unwrap();
    while SystemClock.now() <= end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bed.run(json!({"identity": {"ttl": "6s"}}));
    let third = bed.until("certified again", valid).await;
    assert_eq!(third["identity"]["renewal"]["failures"], 0);
}

#[tokio::test]
async fn a_root_that_changed_while_the_machine_was_off_is_fetched_through_kubernetes() {
    let mut bed = Bed::new().await;
    bed.mesh.rotate_root().unwrap();
    let registration = json!({"kubernetes": bed.kubernetes()});
    bed.mesh.retire_old_roots().unwrap();
    let root = bed.path("etc/vm-agent/root-cert.pem");
    let old = std::fs::read_to_string(&root).unwrap();
    bed.run(json!({"registration": registration}));
    bed.until("told", |status| trouble(status, "roots").contains("forbidden")).await;
    assert!(bed.hint("roots").contains("configmaps"));
    assert_eq!(bed.stop().await, 0);
    bed.mesh.grant_verbs("vms", "client", &["get"], "configmaps");
    bed.run(json!({"registration": registration}));
    let status = bed.until("certified", valid).await;
    assert!(status["identity"]["renewal"]["roots_replaced_at"].is_string());
    assert_eq!(trouble(&status, "roots"), "");
    let new = std::fs::read_to_string(&root).unwrap();
    assert_ne!(new, old);
    let mode = std::os::unix::fs::PermissionsExt::mode(&root.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o644);
}

#[tokio::test]
async fn a_strangers_control_plane_is_not_believed_because_it_answers() {
    let mut bed = Bed::new().await;
    bed.mesh.grant_verbs("vms", "client", &["get"], "configmaps");
    let registration = json!({"kubernetes": bed.kubernetes()});
    let stranger = Mesh::start(Options::default()).await.unwrap();
    let address = format!("localhost:{}", stranger.address().port());
    bed.run(json!({"registration": registration, "mesh": {"discoveryAddress": address, "connectTo": "127.0.0.1"}}));
    bed.until("told", |status| {
        trouble(status, "roots").contains("the mesh does not know either")
            && trouble(status, "identity").contains("is not signed by a root")
    })
    .await;
    assert_eq!(stranger.seen().borrow().csrs.len(), 0);
}

#[tokio::test]
async fn a_certificate_that_istiod_does_not_accept_any_more_gives_way_to_the_token() {
    let mut bed = Bed::new().await;
    // It is valid for long, and due for long not: nothing but the refusal can end it.
    bed.run(json!({"identity": {"ttl": "1h"}}));
    let first = bed.until("certified", valid).await;
    assert_eq!(bed.stop().await, 0);
    bed.mesh.rotate_root().unwrap();
    bed.mesh.retire_old_roots().unwrap();
    let root = bed.path("etc/vm-agent/root-cert.pem");
    std::fs::write(root, bed.mesh.root_pem()).unwrap();
    bed.run(json!({"identity": {"ttl": "1h"}}));
    bed.until("up", valid).await;
    let _proxy = bed.proxy("client").await;
    let second = bed.until("certified anew", |status| serial(status) != serial(&first)).await;
    assert!(valid(&second));
    let seen = bed.mesh.seen().borrow().clone();
    assert_eq!((seen.by_token, seen.by_certificate), (2, 0));
}

#[tokio::test]
async fn a_clock_that_is_behind_is_measured_and_said() {
    let clock = Arc::new(Ahead(Duration::from_secs(90)));
    let mut bed = Bed::with(Options { clock, ..Options::default() }).await;
    bed.mesh.grant("vms", "client");
    let registration = json!({"mode": "kubernetes", "kubernetes": bed.kubernetes()});
    bed.run(json!({"registration": registration}));
    let status = bed
        .until("measured", |status| valid(status) && trouble(status, "clock").contains("behind"))
        .await;
    let skew = status["clock"]["skew_ms"].as_i64().unwrap();
    assert!((-95_000..=-88_000).contains(&skew), "{skew}");
    assert!(bed.hint("clock").contains("timedatectl set-ntp true"));
}

#[tokio::test]
async fn a_certificate_that_is_valid_in_a_moment_is_held_until_then() {
    let clock = Arc::new(Ahead(Duration::from_secs(124)));
    let mut bed = Bed::with(Options { clock, ..Options::default() }).await;
    bed.run(json!({}));
    let held =
        bed.until("held", |status| status["identity"]["renewal"]["phase"] == "holding").await;
    assert!(!valid(&held) && trouble(&held, "identity").contains("valid only from"));
    assert_eq!(held["clock"]["measured_by"], "certificate-start");
    bed.until("valid", is_well).await;
    let seen = bed.mesh.seen();
    assert_eq!(seen.borrow().csrs.len(), 1, "it is not asked again");
}

/// A valid certificate, and nothing is wrong with it any more.
fn is_well(status: &Value) -> bool {
    valid(status) && trouble(status, "identity").is_empty()
}
