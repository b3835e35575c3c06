//! The agent and its service manager, which the test plays: what it hears, what it keeps, and what it
//! hands back.
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

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use bed::Bed;
use serde_json::json;

/// The service manager's ear.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(bed: &Bed) -> Self {
        let socket = UnixDatagram::bind(bed.path("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { socket, heard: Vec::new() }
    }

    /// Listens until it hears a message with this line.
    fn until(&mut self, line: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let size = self.socket.recv(&mut buffer).expect(line);
            let message = String::from_utf8(buffer[..size].to_vec()).unwrap();
            self.heard.push(message.clone());
            if message.lines().any(|found| found == line) {
                return message;
            }
        }
    }

    /// The names of the sockets that it was given so far.
    fn kept(&self) -> Vec<String> {
        let given = self.heard.iter().filter(|message| message.starts_with("FDSTORE=1\n"));
        let name = |message: &String| {
            let name = message.lines().find_map(|line| line.strip_prefix("FDNAME="));
            name.unwrap().to_owned()
        };
        let mut names: Vec<String> = given.map(name).collect();
        names.sort();
        names
    }
}

fn variables(bed: &Bed) -> [(&'static str, String); 2] {
    let socket = bed.path("notify").to_str().unwrap().to_owned();
    [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "600000".to_owned())]
}

fn start(bed: &mut Bed, sockets: [(&str, OwnedFd); 2]) {
    let variables = variables(bed);
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    bed.start_as_service(&variables, sockets);
}

/// A port that this program listens at.
fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn any() -> OwnedFd {
    listener().0.into()
}

fn ask(mut line: impl Read + Write) -> String {
    line.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    line.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn the_service_manager_hears_that_the_agent_is_ready_while_the_mesh_is_away() {
    let mut bed = Bed::new().await;
    bed.mesh.go_away().await.unwrap();
    bed.write_configuration(json!({"dns": {"listen": format!("127.0.0.1:{}", listener().1)}}));
    let mut manager = Manager::new(&bed);
    start(&mut bed, [("old", any()), ("older", any())]);
    let ready = manager.until("READY=1");
    assert!(!ready.contains("STATUS=Ready"), "{ready}");
    assert_eq!(manager.kept(), ["admin", "dns", "dns", "sds", "status", "xds"]);
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");
    bed.mesh.come_back().await.unwrap();
    bed.until("certified", |status| status["identity"]["valid"] == true).await;
    bed.signal(nix::sys::signal::Signal::SIGHUP);
    let reloading = manager.until("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.until("READY=1");
    assert_eq!(bed.stop().await, 0);
    manager.until("STOPPING=1");
}

#[tokio::test]
async fn whoever_came_while_no_agent_ran_is_served_by_the_next_one() {
    let mut bed = Bed::new().await;
    let (status, port) = listener();
    bed.write_configuration(json!({"status": {"address": "127.0.0.1", "port": port}}));
    std::fs::create_dir_all(bed.path("run/vm-agent")).unwrap();
    let path = bed.path("run/vm-agent/admin.sock");
    let admin = UnixListener::bind(&path).unwrap();
    let before = std::fs::metadata(&path).unwrap().ino();
    let waiting =
        (TcpStream::connect(("127.0.0.1", port)).unwrap(), UnixStream::connect(&path).unwrap());
    let mut manager = Manager::new(&bed);
    start(&mut bed, [("status", status.into()), ("admin", admin.into())]);
    let answers = tokio::task::spawn_blocking(move || [ask(waiting.0), ask(waiting.1)]);
    let [status, admin] = answers.await.unwrap();
    assert!(status.starts_with("HTTP/1.0 503"), "not in the mesh yet: {status}");
    assert!(admin.starts_with("HTTP/1.0 "), "{admin}");
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), before, "it is the same socket");
    manager.until("READY=1");
    assert!(!manager.heard.iter().any(|message| message.contains("FDSTOREREMOVE")));
    assert_eq!(bed.stop().await, 0);
}

#[tokio::test]
async fn an_order_to_quit_leaves_the_proxy_to_the_agent_that_the_service_manager_starts_next() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut bed = Bed::new().await;
    let (status, port) = listener();
    bed.write_configuration(
        json!({"status": {"address": "127.0.0.1", "port": port, "orders": "root"}}),
    );
    let mut manager = Manager::new(&bed);
    start(&mut bed, [("status", status.into()), ("old", any())]);
    manager.until("READY=1");
    let proxy = bed.until("started", |status| status["proxy"]["pid"].is_u64()).await;
    let mut line = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let order = "POST /quitquitquit HTTP/1.0\r\nHost: localhost\r\nX-Vm-Agent-Order: 1\r\n\r\n";
    line.write_all(order.as_bytes()).unwrap();
    assert_eq!(bed.ended().await, 0);
    let note = std::fs::read_to_string(bed.path("run/vm-agent/envoy.pid")).unwrap();
    assert!(note.starts_with(&format!("{} ", proxy["proxy"]["pid"])), "{note}");
    assert!(std::path::Path::new(&format!("/proc/{}", proxy["proxy"]["pid"])).exists());
}

#[tokio::test]
async fn kept_sockets_that_do_not_fit_any_more_are_forgotten_and_their_addresses_free() {
    let mut bed = Bed::new().await;
    let (status, port) = listener();
    bed.write_configuration(json!({"status": {"address": "127.0.0.2", "port": port}}));
    std::fs::create_dir_all(bed.path("run/vm-agent")).unwrap();
    let path = bed.path("run/vm-agent/xds.sock");
    let xds = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut manager = Manager::new(&bed);
    start(&mut bed, [("status", status.into()), ("xds", xds.into())]);
    manager.until("READY=1");
    for name in ["status", "xds"] {
        let forgotten = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        assert!(manager.heard.contains(&forgotten), "{:?}", manager.heard);
    }
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody holds it any more");
    TcpStream::connect(("127.0.0.2", port)).unwrap();
    UnixStream::connect(&path).unwrap();
    assert_eq!(bed.stop().await, 0);
}
