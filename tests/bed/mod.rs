//! The whole agent, as a program, against the development mesh. The test itself plays the proxy.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use vm_agent::devmesh::{Mesh, Options};
use vm_agent::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use vm_agent::proto::discovery::{DeltaDiscoveryRequest, Node};

const AGENT: &str = env!("CARGO_BIN_EXE_vm-agent");
const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// The mesh, a directory for the agent, and the agent.
pub(crate) struct Bed {
    pub(crate) mesh: Mesh,
    pub(crate) root: tempfile::TempDir,
    agent: Option<Child>,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        let bed = Self {
            mesh: Mesh::start(Options::default()).await.unwrap(),
            root: tempfile::tempdir().unwrap(),
            agent: None,
        };
        bed.mesh.add_group("vms/client");
        std::fs::create_dir_all(bed.path("etc/vm-agent")).unwrap();
        std::fs::create_dir_all(bed.path("var/lib/vm-agent")).unwrap();
        std::fs::write(bed.path("etc/vm-agent/root-cert.pem"), bed.mesh.root_pem()).unwrap();
        bed.write_token("istio-ca", 3600);
        bed
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write_token(&self, audience: &str, life: u64) {
        let token = self.mesh.token("vms", "client", audience, Duration::from_secs(life));
        std::fs::write(self.path("var/lib/vm-agent/istio-token"), token).unwrap();
    }

    /// Starts the agent with these settings over the usual ones.
    pub(crate) fn run(&mut self, settings: Value) {
        self.write_configuration(settings);
        self.start();
    }

    /// The configuration, with these settings over the usual ones.
    pub(crate) fn write_configuration(&self, settings: Value) {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = json!({
            "workload": {"name": "vm1", "namespace": "vms", "serviceAccount": "client", "group": "client", "address": "127.0.0.1", "facts": {"source": "none"}},
            "mesh": {"discoveryAddress": format!("localhost:{}", self.mesh.address().port()), "connectTo": "127.0.0.1"},
            "credential": {"tokenFile": "istio-token"},
            "identity": {"ttl": "60s"},
            "proxy": {"binary": std::path::absolute("tests/fakes/envoy").unwrap(), "terminationDrainDuration": "100ms", "adminPort": free()},
            "status": {"address": "127.0.0.1", "port": free()},
        });
        for (section, values) in settings.as_object().unwrap() {
            config[section]
                .as_object_mut()
                .map(|map| map.extend(values.as_object().unwrap().clone()))
                .unwrap_or_else(|| config[section] = values.clone());
        }
        std::fs::write(self.path("etc/vm-agent/config.yaml"), config.to_string()).unwrap();
    }

    /// Starts the agent with the configuration that is there.
    pub(crate) fn start(&mut self) {
        self.spawn(Command::new(AGENT), Stdio::null(), Stdio::null());
    }

    /// Starts the agent as a service manager does: with these variables, and with two sockets of these
    /// names that an earlier run left.
    pub(crate) fn start_as_service(
        &mut self,
        variables: &[(&str, &str)],
        [one, two]: [(&str, OwnedFd); 2],
    ) {
        let mut command = Command::new("sh");
        let become_it = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_PID=$$; exec \"$@\"";
        command.args(["-c", become_it, "sh", AGENT]).envs(variables.iter().copied());
        command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", format!("{}:{}", one.0, two.0));
        self.spawn(command, Stdio::from(one.1), Stdio::from(two.1));
    }

    fn spawn(&mut self, mut command: Command, input: Stdio, output: Stdio) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let agent = command
            .arg("--root")
            .arg(self.root.path())
            .arg("run")
            .stdin(input)
            .stdout(output)
            .stderr(log)
            .spawn();
        self.agent = Some(agent.unwrap());
    }

    /// Changes a setting in the configuration file.
    pub(crate) fn configure(&self, path: &[&str], value: Value) {
        let file = self.path("etc/vm-agent/config.yaml");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let at = path.iter().fold(&mut config, |at, key| &mut at[*key]);
        *at = value;
        std::fs::write(file, config.to_string()).unwrap();
    }

    pub(crate) fn command(&self, args: &[&str]) -> std::process::Output {
        Command::new(AGENT).arg("--root").arg(self.root.path()).args(args).output().unwrap()
    }

    /// A command that can be run while the test plays others.
    pub(crate) fn command_later(
        &self,
        args: &[&'static str],
    ) -> impl FnOnce() -> std::process::Output + Send + 'static {
        let (root, args) = (self.root.path().to_owned(), args.to_vec());
        move || Command::new(AGENT).arg("--root").arg(root).args(args).output().unwrap()
    }

    /// The agent dies as nobody can prevent.
    pub(crate) async fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        tokio::task::spawn_blocking(move || agent.wait().unwrap()).await.unwrap();
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.agent.as_ref().unwrap().id().try_into().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    pub(crate) fn status(&self) -> Option<Value> {
        let output = Command::new(AGENT)
            .arg("--root")
            .arg(self.root.path())
            .args(["status", "--json"])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Asks for the status until it is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        let mut last = None;
        while Instant::now() < end {
            last = self.status();
            if let Some(status) = last.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        panic!("not {what}: {last:#?}\n{log}");
    }

    pub(crate) async fn stop(&mut self) -> i32 {
        let mut agent = self.agent.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(agent.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        tokio::task::spawn_blocking(move || agent.wait().unwrap().code().unwrap()).await.unwrap()
    }

    /// Opens a configuration stream as the proxy does, and answers what comes.
    pub(crate) async fn proxy(&self, service_account: &str) -> mpsc::Sender<DeltaDiscoveryRequest> {
        let (requests, answers) = self.stream(service_account).await;
        tokio::spawn(answers);
        requests
    }

    /// As [`Bed::proxy`], and opens another stream whenever one has ended, for as long as the test
    /// runs.
    pub(crate) fn keep_proxy(&self, service_account: &'static str) {
        let socket = self.path("run/vm-agent/xds.sock");
        tokio::spawn(async move {
            loop {
                if let Ok(channel) = endpoint(&socket).connect().await {
                    let (_requests, answers) = stream(channel, service_account).await;
                    answers.await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    async fn stream(
        &self,
        service_account: &str,
    ) -> (mpsc::Sender<DeltaDiscoveryRequest>, impl Future<Output = ()> + Send + 'static) {
        stream(channel(&self.path("run/vm-agent/xds.sock")).await, service_account).await
    }
}

async fn stream(
    channel: tonic::transport::Channel,
    service_account: &str,
) -> (mpsc::Sender<DeltaDiscoveryRequest>, impl Future<Output = ()> + Send + 'static) {
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let (requests, stream) = mpsc::channel(8);
    requests
        .send(DeltaDiscoveryRequest {
            node: Some(node(service_account)),
            type_url: LISTENERS.to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
    let acks = requests.clone();
    let answers = async move {
        let Ok(answers) = client.delta_aggregated_resources(ReceiverStream::new(stream)).await
        else {
            return;
        };
        let mut answers = answers.into_inner();
        while let Some(Ok(answer)) = answers.next().await {
            let ack = DeltaDiscoveryRequest {
                type_url: answer.type_url,
                response_nonce: answer.nonce,
                ..Default::default()
            };
            if acks.send(ack).await.is_err() {
                return;
            }
        }
    };
    (requests, answers)
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
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            )
            .ok();
        }
    }
}

pub(crate) async fn channel(socket: &Path) -> tonic::transport::Channel {
    endpoint(socket).connect().await.unwrap()
}

fn endpoint(socket: &Path) -> tonic::transport::Endpoint {
    tonic::transport::Endpoint::try_from(format!("unix:{}", socket.display())).unwrap()
}

pub(crate) fn node(service_account: &str) -> Node {
    let text = |value: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
    };
    let fields = [
        ("NAMESPACE", "vms"),
        ("SERVICE_ACCOUNT", service_account),
        ("AUTO_REGISTER_GROUP", "client"),
        ("INSTANCE_IPS", "127.0.0.1"),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), text(value))).into();
    Node {
        id: "sidecar~127.0.0.1~vm1.vms~vms".to_owned(),
        metadata: Some(prost_types::Struct { fields }),
        ..Default::default()
    }
}

/// What the status says is wrong in a room.
pub(crate) fn trouble(status: &Value, room: &str) -> String {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["room"] == room);
    found.map(|condition| condition["what"].to_string()).unwrap_or_default()
}
