//! The whole agent, as a program, against the development mesh. The test itself plays the proxy.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use vm_agent::devmesh::{ISTIO_AUDIENCE, KUBERNETES_AUDIENCE, Mesh, Options};
use vm_agent::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use vm_agent::proto::discovery::{DeltaDiscoveryRequest, Node};

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_vm-agent");
const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// The mesh, a directory for the agent, and the agent.
pub(crate) struct Bed {
    pub(crate) mesh: Mesh,
    pub(crate) root: tempfile::TempDir,
    agent: Option<Child>,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let bed = Self {
            mesh: Mesh::start(options).await.unwrap(),
            root: tempfile::tempdir().unwrap(),
            agent: None,
        };
        bed.mesh.add_group("vms/client");
        std::fs::create_dir_all(bed.path("etc/vm-agent")).unwrap();
        std::fs::create_dir_all(bed.path("var/lib/vm-agent")).unwrap();
        std::fs::write(bed.path("etc/vm-agent/root-cert.pem"), bed.mesh.root_pem()).unwrap();
        bed.write_token(ISTIO_AUDIENCE, 3600);
        bed
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A file of the state directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.path("var/lib/vm-agent").join(name)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn write_token(&self, audience: &str, life: u64) {
        self.put_token("istio-token", audience, life);
    }

    /// Puts a token of our account into a file of the state directory, as an operator does.
    pub(crate) fn put_token(&self, file: &str, audience: &str, life: u64) {
        let token = self.mesh.token("vms", "client", audience, Duration::from_secs(life));
        std::fs::write(self.state(file), token).unwrap();
    }

    /// Our account's access to the Kubernetes API, whose root is in a file of its own.
    pub(crate) fn kubernetes(&self) -> Value {
        let hour = Duration::from_secs(3600);
        let token = self.mesh.token("vms", "client", KUBERNETES_AUDIENCE, hour);
        std::fs::write(self.path("kube-token"), token).unwrap();
        std::fs::write(self.path("kube-ca"), self.mesh.root_pem()).unwrap();
        json!({
            "server": format!("https://localhost:{}", self.mesh.kube_address().port()),
            "caFile": self.path("kube-ca"), "tokenFile": self.path("kube-token"),
        })
    }

    /// Starts the agent with these settings over the usual ones.
    pub(crate) fn run(&mut self, settings: Value) {
        self.write_configuration(settings);
        self.start();
    }

    /// The configuration, with these settings over the usual ones.
    pub(crate) fn write_configuration(&self, settings: Value) {
        let mut config = json!({
            "workload": {"name": "vm1", "namespace": "vms", "serviceAccount": "client", "group": "client", "address": "127.0.0.1", "facts": {"source": "none"}},
            "mesh": {"discoveryAddress": format!("localhost:{}", self.mesh.address().port()), "connectTo": "127.0.0.1"},
            "credential": {"tokenFile": "istio-token"},
            "identity": {"ttl": "60s"},
            "proxy": {"binary": std::path::absolute("tests/fakes/envoy").unwrap(), "terminationDrainDuration": "100ms", "adminPort": free_port()},
            "status": {"address": "127.0.0.1", "port": free_port()},
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
        self.start_by(&["run"]);
    }

    /// Starts the agent with this command line.
    pub(crate) fn start_by(&mut self, args: &[&str]) {
        let command = self.command_line(args);
        self.spawn(command, Stdio::null(), Stdio::null());
    }

    /// Starts the agent with the configuration that is there, and with these variables.
    pub(crate) fn start_with(&mut self, variables: &[(&str, &str)]) {
        let mut command = self.command_line(&["run"]);
        command.envs(variables.iter().copied());
        self.spawn(command, Stdio::null(), Stdio::null());
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
        command.arg("--root").arg(self.root.path()).arg("run");
        self.spawn(command, Stdio::from(one.1), Stdio::from(two.1));
    }

    fn spawn(&mut self, mut command: Command, input: Stdio, output: Stdio) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let agent = command.stdin(input).stdout(output).stderr(log).spawn();
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

    fn command_line(&self, args: &[&str]) -> Command {
        let mut command = Command::new(AGENT);
        command.arg("--root").arg(self.root.path()).args(args);
        command
    }

    /// Runs a command to its end. Where the mesh has to answer it, the test needs more than one thread.
    pub(crate) fn command(&self, args: &[&str]) -> Output {
        self.command_line(args).output().unwrap()
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
        serde_json::from_slice(&self.command(&["status", "--json"]).stdout).ok()
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
        panic!("not {what}: {last:#?}\n{}", self.log());
    }

    /// Waits until the agent has ended by itself.
    pub(crate) async fn ended(&mut self) -> i32 {
        let mut agent = self.agent.take().unwrap();
        tokio::task::spawn_blocking(move || agent.wait().unwrap().code().unwrap()).await.unwrap()
    }

    pub(crate) async fn stop(&mut self) -> i32 {
        let mut agent = self.agent.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(agent.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        tokio::task::spawn_blocking(move || agent.wait().unwrap().code().unwrap()).await.unwrap()
    }

    /// Head and body of what the status server answers.
    pub(crate) async fn page(&self, path: &str, host: &str) -> (String, String) {
        let config = std::fs::read_to_string(self.path("etc/vm-agent/config.yaml")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let port = u16::try_from(config["status"]["port"].as_u64().unwrap()).unwrap();
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
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

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn valid(status: &Value) -> bool {
    status["identity"]["valid"] == true
}

pub(crate) fn registered(status: &Value) -> bool {
    status["registration"]["registered"] == true
}

/// The condition of a room in the status; null while all is well there.
pub(crate) fn condition(status: &Value, room: &str) -> Value {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["room"] == room).unwrap_or_default()
}

/// What the status says is wrong in a room.
pub(crate) fn trouble(status: &Value, room: &str) -> String {
    match condition(status, room) {
        Value::Null => String::new(),
        found => found["what"].to_string(),
    }
}
