//! Callers of the status port who mean harm: orders, floods, and what the proxy passes on.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::bed::Bed;

/// Any address of the machine, and the one that Envoy's inbound passthrough comes from.
const ANY: &str = "127.0.0.1:0";
const PASSED_ON: &str = "127.0.0.6:0";
/// What an order of ours has.
const MEANT: &str = "X-Vm-Agent-Order: 1\r\n";

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn address(bed: &Bed) -> SocketAddr {
    let config = std::fs::read_to_string(bed.path("etc/vm-agent/config.yaml")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    format!("127.0.0.1:{}", config["status"]["port"]).parse().unwrap()
}

async fn connect(bed: &Bed, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    socket.connect(address(bed)).await.unwrap()
}

/// The status line, and what follows.
async fn ask(bed: &Bed, from: &str, line: &str, fields: &str) -> (String, String) {
    let mut stream = connect(bed, from).await;
    let request =
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (status, rest) = answer.split_once("\r\n").unwrap();
    (status.to_owned(), rest.to_owned())
}

fn is_refused((status, rest): &(String, String)) -> bool {
    status.contains(" 403 ") && !rest.contains("spiffe")
}

#[tokio::test]
async fn nobody_gives_orders_at_the_status_port_unless_they_are_asked_for() {
    let mut bed = Bed::new().await;
    bed.run(json!({}));
    bed.until("running", |_| true).await;
    for path in ["/quitquitquit", "/drain"] {
        let told = ask(&bed, ANY, &format!("POST {path}"), MEANT).await;
        assert!(is_refused(&told), "{path}: {told:?}");
    }
    assert!(bed.status().is_some(), "it runs on");
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn orders_are_taken_from_root_only_and_never_from_a_browser_or_by_way_of_the_proxy() {
    let mut bed = Bed::new().await;
    bed.run(json!({"status": {"orders": "root"}}));
    bed.until("running", |_| true).await;
    let with = |field: &str| format!("{MEANT}{field}\r\n");
    for (from, fields) in [
        (PASSED_ON, MEANT.to_owned()),
        (ANY, String::new()),
        (ANY, with("Origin: http://localhost:15020")),
        (ANY, with("Sec-Fetch-Site: same-origin")),
    ] {
        for path in ["/quitquitquit", "/drain"] {
            let told = ask(&bed, from, &format!("POST {path}"), &fields).await;
            assert!(is_refused(&told), "{path} from {from} with {fields}: {told:?}");
        }
    }
    if is_root() {
        let url = format!("http://{}/quitquitquit", address(&bed));
        let curl = ["--reuid", "65534", "--clear-groups", "curl", "-s", "-X", "POST", "-H"];
        let made = std::process::Command::new("setpriv")
            .args(curl)
            .args(["X-Vm-Agent-Order: 1", "-w", "%{http_code}", &url])
            .output()
            .unwrap();
        assert!(made.stdout.ends_with(b"403"), "{made:?}");
        let (status, _) = ask(&bed, ANY, "POST /quitquitquit", MEANT).await;
        assert!(status.contains(" 200 "), "{status}");
        bed.ended().await;
    } else {
        assert!(is_refused(&ask(&bed, ANY, "POST /quitquitquit", MEANT).await));
        assert_eq!(bed.stop().await, 0);
    }
}

#[tokio::test]
async fn what_the_proxy_passes_on_is_not_this_machine() {
    let mut bed = Bed::new().await;
    bed.mesh.go_away().await.unwrap();
    bed.run(json!({"status": {"metricsAccess": "loopback"}}));
    bed.until("in trouble", |status| status["conditions"] != json!([])).await;
    for path in ["/", "/v1/status", "/metrics", "/stats/prometheus"] {
        let told = ask(&bed, PASSED_ON, &format!("GET {path}"), "").await;
        assert!(is_refused(&told), "{path}: {told:?}");
        let (status, _) = ask(&bed, ANY, &format!("GET {path}"), "").await;
        assert!(status.contains(" 200 "), "{path}: {status}");
    }
    let body = |(_, rest): (String, String)| rest.split_once("\r\n\r\n").unwrap().1.to_owned();
    let (status, _) = ask(&bed, PASSED_ON, "GET /healthz/ready", "").await;
    assert!(status.contains(" 503 "), "{status}");
    let strange = body(ask(&bed, PASSED_ON, "GET /healthz/ready", "").await);
    let own = body(ask(&bed, ANY, "GET /healthz/ready", "").await);
    assert_eq!(strange.lines().count(), 1, "the phase and no more: {strange}");
    assert!(own.lines().count() > 1, "with what is wrong: {own}");
    assert_eq!(bed.stop().await, 0);
}

/// Opens connections that have sent the beginning of a long head.
async fn flood(bed: &Bed, count: usize) -> Vec<TcpStream> {
    let begun = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(300 << 10));
    let mut streams = Vec::new();
    for _ in 0..count {
        let stream = connect(bed, ANY).await;
        // As much as the kernel and the agent take.
        stream.writable().await.ok();
        let mut rest = begun.as_bytes();
        while let Ok(size) = stream.try_write(rest) {
            rest = &rest[size..];
            tokio::task::yield_now().await;
            if rest.is_empty() {
                break;
            }
        }
        streams.push(stream);
    }
    streams
}

fn memory(bed: &Bed) -> u64 {
    let pid = bed.status().unwrap()["pid"].as_u64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_flood_of_half_sent_requests_costs_little_memory_and_others_are_answered() {
    let mut bed = Bed::new().await;
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    bed.run(json!({}));
    bed.until("certified", crate::bed::valid).await;
    let before = memory(&bed);
    let flood = flood(&bed, 1000).await;
    let (status, _) = ask(&bed, ANY, "GET /v1/status", "").await;
    assert!(status.contains(" 200 "), "{status}");
    let grown = memory(&bed).saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} kB more for {} connections", flood.len());
    assert_eq!(bed.stop().await, 0);
    assert!(!bed.log().contains("did not finish in time"), "{}", bed.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_have_the_proxys_binary_tell_its_version_as_the_proxys_user() {
    use std::os::unix::fs::PermissionsExt;
    if !is_root() {
        return;
    }
    let bed = Bed::new().await;
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(bed.root.path(), 0o755);
    let (told, binary) = (bed.path("told"), bed.path("envoy"));
    std::fs::create_dir(&told).unwrap();
    open(&told, 0o777);
    let script = format!(
        "#!/bin/sh\nid -u > {}/user\necho 'envoy  version: x/1.40.0/Clean/RELEASE/y'\n",
        told.display()
    );
    std::fs::write(&binary, script).unwrap();
    open(&binary, 0o755);
    bed.write_configuration(json!({"proxy": {"binary": binary, "user": "4242"}}));
    let report: Value = serde_json::from_slice(&bed.command(&["doctor", "--json"]).stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let proxy = findings.iter().find(|finding| finding["id"] == "proxy").unwrap();
    assert!(proxy.to_string().contains("is Envoy 1.40.0"), "{proxy}");
    assert_eq!(std::fs::read_to_string(told.join("user")).unwrap(), "4242\n");
}
