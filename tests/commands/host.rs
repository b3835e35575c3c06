//! A machine whose systemd is stood in for, in a directory.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::SecretString;
use serde_json::{Value, json};
use vm_agent::config::{parse_yaml, write_yaml};
use vm_agent::devmesh::ISTIO_AUDIENCE;
use vm_agent::identity::Roots;
use vm_agent::join::{Bundle, BundleMetadata, Files};

use crate::bed::{AGENT, Bed, free_port};

pub(crate) struct Host {
    pub(crate) bed: Bed,
    /// Outside of the machine: what stands in for systemd, bundles, the directory for scratch.
    outside: tempfile::TempDir,
    admin_port: u16,
    status_port: u16,
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The events that a join has printed.
pub(crate) fn events(joined: &Output) -> Vec<Value> {
    text(&joined.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The start and the end of a phase.
pub(crate) fn join_events(events: &[Value], phase: &str) -> [Value; 2] {
    let is_edge = |one: &&Value| {
        one["phase"] == phase
            && matches!(one["state"].as_str(), Some("started" | "done" | "failed"))
    };
    let edges: Vec<Value> = events.iter().filter(is_edge).cloned().collect();
    edges.try_into().unwrap_or_else(|edges| panic!("{phase}: {edges:?} of {events:#?}"))
}

impl Host {
    /// A machine with the package installed, that has not joined.
    pub(crate) async fn new() -> Self {
        let bed = Bed::new().await;
        for directory in ["etc/vm-agent", "var/lib/vm-agent"] {
            std::fs::remove_dir_all(bed.path(directory)).unwrap();
        }
        for directory in ["run/systemd/system", "usr/lib/systemd/system"] {
            std::fs::create_dir_all(bed.path(directory)).unwrap();
        }
        // What others have keeps its directories.
        for file in ["usr/lib/systemd/system/vm-agent.service", "etc/hostname", "var/lib/other"] {
            std::fs::write(bed.path(file), "").unwrap();
        }
        let outside = tempfile::tempdir().unwrap();
        for directory in ["systemd", "scratch"] {
            std::fs::create_dir(outside.path().join(directory)).unwrap();
        }
        Self { bed, outside, admin_port: free_port(), status_port: free_port() }
    }

    /// A file of what stands in for systemd.
    pub(crate) fn systemd(&self, name: &str) -> PathBuf {
        self.outside.path().join("systemd").join(name)
    }

    /// Puts a program there.
    pub(crate) fn play(&self, name: &str, program: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.systemd(name);
        std::fs::write(&path, program).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What systemctl was asked for that changes something.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.systemd("calls")).unwrap_or_default();
        let asks = |call: &&str| call.starts_with("show") || call.starts_with("is-");
        calls.lines().filter(|call| !asks(call)).map(str::to_owned).collect()
    }

    /// A bundle, whose label makes it another source than one with another label.
    pub(crate) fn bundle(&self, label: &str) -> PathBuf {
        let mesh = &self.bed.mesh;
        let roots = Roots::from_pem(mesh.root_pem().as_bytes()).unwrap();
        let metadata = BundleMetadata {
            group: "client".to_owned(),
            namespace: "vms".to_owned(),
            ..BundleMetadata::default()
        };
        let settings = json!({
            "workload": {"name": "vm1", "namespace": "vms", "serviceAccount": "client", "group": "client",
                         "address": "127.0.0.1", "labels": {"source": label}, "facts": {"source": "none"}},
            "mesh": {"discoveryAddress": format!("localhost:{}", mesh.address().port()), "connectTo": "127.0.0.1"},
            "proxy": {"terminationDrainDuration": "100ms"},
        });
        let token = mesh.token("vms", "client", ISTIO_AUDIENCE, Duration::from_secs(3600));
        let tokens = (None, Some(SecretString::from(token)));
        let bundle = Bundle::new(metadata, settings.as_object().unwrap().clone(), roots, tokens);
        let path = self.outside.path().join(format!("{label}.yaml"));
        std::fs::write(&path, write_yaml(&bundle.to_value()).unwrap()).unwrap();
        path
    }

    /// The configuration of a machine that has joined, with these settings over the usual ones.
    pub(crate) fn configure(&self, settings: Value) {
        for directory in ["etc/vm-agent", "var/lib/vm-agent"] {
            std::fs::create_dir_all(self.bed.path(directory)).unwrap();
        }
        std::fs::write(self.bed.path("etc/vm-agent/root-cert.pem"), self.bed.mesh.root_pem())
            .unwrap();
        self.bed.write_token("istio-ca", 3600);
        self.bed.write_configuration(settings);
        let file = self.bed.path("etc/vm-agent/config.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, format!("{}{text}", Files::CONFIG_HEAD)).unwrap();
    }

    /// A command line of this machine.
    pub(crate) fn agent(&self, args: &[&str]) -> Command {
        let fakes = std::path::absolute("tests/fakes/systemd").unwrap();
        let path = format!("{}:{}", fakes.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(AGENT);
        command.arg("--root").arg(self.bed.root.path()).args(args);
        command.env("PATH", path).env("VM_AGENT", AGENT);
        command.env("FAKE_SYSTEMD", self.outside.path().join("systemd"));
        command.env("TMPDIR", self.outside.path().join("scratch")).stdin(Stdio::null());
        command
    }

    pub(crate) fn command(&self, source: &Path, more: &[&str]) -> Command {
        let mut command = self.agent(&["join"]);
        command.arg("--proxy-binary").arg(std::path::absolute("tests/fakes/envoy").unwrap());
        command.args([
            format!("--set=proxy.adminPort={}", self.admin_port),
            format!("--set=status.port={}", self.status_port),
        ]);
        command.args(["--set=status.address=127.0.0.1", "--capture=none"]);
        command.arg(source).args(more);
        command
    }

    /// Another bundle of the same mesh, with these changes of its settings.
    pub(crate) fn changed(&self, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let path = self.bundle(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut tree = parse_yaml(&text, "bundle").unwrap();
        change(&mut tree);
        std::fs::write(&path, write_yaml(&tree).unwrap()).unwrap();
        path
    }

    pub(crate) async fn join(&self, source: &Path, more: &[&str]) -> Output {
        self.run(self.command(source, more)).await
    }

    /// Runs a command while the mesh goes on.
    pub(crate) async fn run(&self, mut command: Command) -> Output {
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Waits for something that comes by itself.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..3000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        let journal = std::fs::read_to_string(self.systemd("journal")).unwrap_or_default();
        panic!("not so: {what}\n{journal}");
    }

    /// Plays Envoy for every daemon that runs here.
    pub(crate) fn play_envoy(&self) {
        self.bed.keep_proxy("client");
        let (port, socket) = (self.admin_port, self.bed.path("run/vm-agent/xds.sock"));
        tokio::spawn(async move {
            // Nobody may hold the port while a join checks it.
            while !socket.exists() {
                tokio::time::sleep(LOOK).await;
            }
            std::thread::spawn(move || {
                let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
                listener.incoming().flatten().for_each(answer);
            });
        });
    }

    /// Sends a signal to a command, and waits for its end.
    pub(crate) async fn end(&self, child: Child, signal: Signal) -> Output {
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap()
    }

    /// All files of the machine.
    pub(crate) fn files(&self) -> Vec<String> {
        found(self.bed.root.path())
    }

    /// What lies in the directory for temporary files.
    pub(crate) fn scratch(&self) -> Vec<String> {
        let directory = self.outside.path().join("scratch");
        let own = directory.display().to_string();
        found(&directory).into_iter().filter(|name| *name != own).collect()
    }
}

fn found(directory: &Path) -> Vec<String> {
    let output = Command::new("find").arg(directory).output().unwrap();
    let mut all: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    all.sort_unstable();
    all
}

impl Drop for Host {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.systemd("pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

fn answer(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let size = stream.read(&mut request).unwrap_or(0);
    let asked = String::from_utf8_lossy(&request[..size]).into_owned();
    let body = match asked.split_whitespace().nth(1).unwrap_or_default() {
        "/server_info" => r#"{"version": "0/1.40.0/Clean/RELEASE/BoringSSL"}"#,
        path if path.starts_with("/config_dump") => INBOUND,
        _ => STATS,
    };
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).ok();
}

const LOOK: Duration = Duration::from_millis(20);
const STATS: &str = "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n\
                     server.state: 0\nlistener_manager.workers_started: 1\n";
const INBOUND: &str = r#"{"configs": [{"cluster": {"name": "inbound|9080||", "metadata": {"filter_metadata": {"istio": {
    "services": [{"host": "details.internal.com", "name": "details", "namespace": "vms"}]}}}}}]}"#;
