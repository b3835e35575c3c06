use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::base::clock;
use crate::base::tasks::Tasks;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn parse(probe: Value) -> Result<Config, Vec<String>> {
    let map = probe.as_object().unwrap().clone();
    let texts = |errors: Vec<ProbeError>| errors.iter().map(ToString::to_string).collect();
    Config::from_json(&map, HERE).map_err(texts)
}

#[test]
fn a_probe_is_read_as_istio_reads_it() {
    let config = parse(json!({"httpGet": {"port": 8080}})).unwrap();
    let usual =
        HttpProbe { tls: false, host: None, port: 8080, path: "/".to_owned(), headers: vec![] };
    assert_eq!(config, Config { probe: Probe::Http(usual), ..Config::of_proxy(HERE) });
    let config = parse(json!({
        "http_get": {"port": 1, "path": "ready?x=1", "scheme": "HTTPS", "host": "a.example",
            "httpHeaders": [{"name": "X-A", "value": "b"}]},
        "periodSeconds": 5, "failure_threshold": 3, "initialDelaySeconds": 0, "timeoutSeconds": 2,
    }));
    let config = config.unwrap();
    assert_eq!(
        (config.period.as_secs(), config.failure_threshold, config.timeout.as_secs()),
        (5, 3, 2)
    );
    let Probe::Http(probe) = config.probe else { panic!("{config:?}") };
    assert!(probe.tls && probe.path == "/ready?x=1" && probe.headers.len() == 1);
    let Probe::Grpc { service, .. } =
        parse(json!({"grpc": {"port": 9, "service": "s"}})).unwrap().probe
    else {
        panic!()
    };
    assert_eq!(service, "s");
    assert!(parse(json!({"tcpSocket": {"port": 22}, "exec": null})).is_ok());
}

#[test]
fn everything_that_is_wrong_is_named_at_once() {
    let errors = parse(
        json!({"httpGet": {"port": 0, "scheme": "ftp", "pth": "/"}, "periodSeconds": "soon"}),
    );
    let errors = errors.unwrap_err().join("\n");
    for words in [
        "httpGet.port: found 0",
        "httpGet.scheme",
        "httpGet.pth: there is no such field",
        "periodSeconds",
    ] {
        assert!(errors.contains(words), "{words} in {errors}");
    }
    for (probe, words) in [
        (json!({}), "found none"),
        (json!({"exec": {"command": ["true"]}, "tcpSocket": {"port": 1}}), "found several"),
        (json!({"tcpSocket": {}}), "tcpSocket.port: missing"),
        (
            json!({"exec": {"command": ["/no/such/program"]}}),
            "there is no program /no/such/program",
        ),
        (json!({"exec": {"command": []}}), "exec.command"),
        (json!({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b"}]}}), "httpGet.httpHeaders"),
    ] {
        let errors = parse(probe).unwrap_err().join("\n");
        assert!(errors.contains(words), "{words} in {errors}");
    }
}

/// A server that says the same to everybody; gives its port and what was asked.
async fn server(
    tasks: &Tasks,
    says: &'static str,
) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, asked) = tokio::sync::mpsc::unbounded_channel();
    tasks.spawn("server", async move {
        loop {
            let (mut stream, from) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let size = stream.read(&mut request).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..size]).into_owned();
            tell.send(format!("{}\n{text}", from.ip())).ok();
            stream.write_all(says.as_bytes()).await.ok();
        }
    });
    (port, asked)
}

async fn http(port: u16) -> Result<(), String> {
    let probe = parse(
        json!({"httpGet": {"port": port, "path": "/ready", "httpHeaders": [{"name": "Host", "value": "app"}]}}),
    );
    check(&Config { timeout: Duration::from_secs(20), ..probe.unwrap() }).await
}

#[tokio::test]
async fn a_page_is_good_from_200_to_399_and_is_asked_for_past_the_redirect_rules() {
    let tasks = Tasks::new().0;
    let (port, mut asked) = server(&tasks, "HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(http(port).await, Ok(()));
    let request = asked.recv().await.unwrap();
    assert!(request.starts_with("127.0.0.6\nGET /ready HTTP/1.1"), "{request}");
    assert!(request.contains("host: app\r\n") && request.contains("user-agent: vm-agent-probe/"));
    let (port, _) = server(
        &tasks,
        "HTTP/1.1 302 Found\r\nLocation: http://else.example/\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(http(port).await, Ok(()));
    let (port, _) =
        server(&tasks, "HTTP/1.1 503 No\r\nContent-Length: 10\r\n\r\nout of\r\n\x01!").await;
    assert_eq!(http(port).await, Err("HTTP 503: out of !".to_owned()));
    let (port, _) =
        server(&tasks, "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n").await;
    assert!(http(port).await.unwrap_err().contains("redirections"));
}

#[tokio::test]
async fn rubbish_and_nobody_are_failures_with_words() {
    let tasks = Tasks::new().0;
    let (port, _) = server(&tasks, "SSH-2.0-OpenSSH\r\n").await;
    assert!(http(port).await.is_err());
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert!(http(nobody).await.unwrap_err().contains("refused"));
    let tcp = |port| Config {
        probe: Probe::Tcp { host: Some("localhost".to_owned()), port },
        ..Config::of_proxy(HERE)
    };
    assert!(check(&tcp(nobody)).await.is_err());
    let (port, _) = server(&tasks, "").await;
    assert_eq!(check(&tcp(port)).await, Ok(()));
}

#[tokio::test]
async fn a_page_over_tls_is_good_whoever_signed_its_certificate() {
    let tasks = Tasks::new().0;
    let own = rcgen::generate_simple_self_signed(vec!["app.example".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config =
        config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn("server", async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        stream.shutdown().await.ok();
    });
    let probe = parse(json!({"httpGet": {"port": port, "scheme": "HTTPS"}})).unwrap();
    assert_eq!(check(&Config { timeout: Duration::from_secs(20), ..probe }).await, Ok(()));
}

#[tokio::test]
async fn a_command_is_judged_by_its_end_and_quoted() {
    let run = |script: &str| {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        Config {
            probe: Probe::Exec { command },
            timeout: Duration::from_secs(20),
            ..Config::of_proxy(HERE)
        }
    };
    assert_eq!(check(&run("test -z \"$HOME\"")).await, Ok(()), "a clean environment");
    let error = check(&run("echo no database >&2; exit 3")).await.unwrap_err();
    assert!(error.contains("exit status: 3") && error.contains("no database"), "{error}");
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", note.display());
    let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let config = Config {
        probe: Probe::Exec { command },
        timeout: Duration::from_secs(1000),
        ..Config::of_proxy(HERE)
    };
    let started = async {
        while !note.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = check(&config) => panic!("it hangs"),
        () = started => {}
    }
    let grandchild = std::fs::read_to_string(&note).unwrap().trim().to_owned();
    let state = || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
    // Gone, or dead and not yet taken by its new parent.
    while !(state().is_empty() || state().contains(") Z ")) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn only_a_service_that_serves_is_healthy() {
    assert_eq!(grpc_answer(&[8, 1]), Ok(()));
    assert!(grpc_answer(&[8, 2]).unwrap_err().contains("NOT_SERVING"));
    assert!(grpc_answer(&[]).unwrap_err().contains("UNKNOWN"));
    assert!(grpc_answer(&[0xff]).is_err());
}

struct World {
    proxy: watch::Sender<bool>,
    state: watch::Receiver<State>,
    listening: Arc<AtomicBool>,
    checks: u64,
}

/// An application that is a command: well as long as `listening`.
async fn world(success_threshold: u32, failure_threshold: u32) -> World {
    let (proxy, up) = watch::channel(false);
    let (report, state) = watch::channel(State::default());
    let listening = Arc::new(AtomicBool::new(true));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tasks = Tasks::new().0;
    let well = Arc::clone(&listening);
    tasks.spawn("application", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let status = if well.load(Ordering::Relaxed) { "200 OK" } else { "503 No" };
            stream.read_buf(&mut Vec::with_capacity(4096)).await.ok();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    let probe = parse(json!({"httpGet": {"port": port}})).unwrap().probe;
    let config = Config {
        probe,
        period: Duration::from_millis(100),
        timeout: Duration::from_secs(20),
        success_threshold,
        failure_threshold,
        ..Config::of_proxy(HERE)
    };
    let inputs = Inputs { proxy: up, target: tokio::sync::watch::channel(HERE).1 };
    let stop = CancellationToken::new();
    tasks.spawn("health", watch(config, inputs, report, clock::system(), stop));
    World { proxy, state, listening, checks: 0 }
}

impl World {
    async fn becomes(&mut self, wanted: impl Fn(&Health) -> bool) {
        let state = self.state.wait_for(|state| wanted(&state.health)).await.unwrap();
        self.checks = state.checks;
    }
}

#[tokio::test]
async fn without_a_proxy_nothing_is_said_and_with_it_the_first_check_counts() {
    let mut world = world(3, 3).await;
    assert_eq!(world.state.borrow().health, Health::Unknown);
    world.proxy.send_replace(true);
    world.becomes(|health| *health == Health::Healthy).await;
    assert_eq!(world.checks, 1);
    world.proxy.send_replace(false);
    world
        .becomes(
            |health| matches!(health, Health::Unhealthy { message } if message.contains("proxy")),
        )
        .await;
}

#[tokio::test]
async fn checks_in_a_row_make_the_difference() {
    let mut world = world(2, 3).await;
    world.proxy.send_replace(true);
    world.becomes(|health| *health == Health::Healthy).await;
    world.listening.store(false, Ordering::Relaxed);
    let before = world.checks;
    world
        .becomes(|health| matches!(health, Health::Unhealthy { message } if message == "HTTP 503"))
        .await;
    assert!(world.checks >= before + 3, "{} after {before}", world.checks);
    world.listening.store(true, Ordering::Relaxed);
    let before = world.checks;
    world.becomes(|health| *health == Health::Healthy).await;
    assert!(world.checks >= before + 2);
}

#[tokio::test]
async fn a_proxy_that_goes_is_seen_while_a_check_waits() {
    let (proxy, up) = watch::channel(true);
    let (report, mut state) = watch::channel(State::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Config {
        probe: parse(json!({"httpGet": {"port": port}})).unwrap().probe,
        period: Duration::from_millis(100),
        timeout: Duration::from_secs(60),
        ..Config::of_proxy(HERE)
    };
    let inputs = Inputs { proxy: up, target: watch::channel(HERE).1 };
    let tasks = Tasks::new().0;
    tasks.spawn("health", watch(config, inputs, report, clock::system(), CancellationToken::new()));
    let (mut first, _) = listener.accept().await.unwrap();
    first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    state.wait_for(|state| state.health == Health::Healthy).await.unwrap();
    let (_held, _) = listener.accept().await.unwrap();
    proxy.send_replace(false);
    let state = state.wait_for(|state| state.health != Health::Healthy).await.unwrap();
    assert!(matches!(&state.health, Health::Unhealthy { message } if message.contains("proxy")));
    assert_eq!(state.checks, 1, "the check that hangs is not waited for");
}

proptest! {
    #[test]
    fn any_json_is_a_probe_or_has_errors(text in "\\PC{0,200}") {
        let probe = json!({"httpGet": {"path": text.clone(), "port": 80, "host": text}});
        prop_assert!(parse(probe).is_ok_and(|c| c.probe != Probe::Proxy) || !text.is_empty());
        prop_assert!(quoted(text.as_bytes()).chars().count() <= 200);
    }
}
