//! A machine to examine: the bed with a proxy's admin interface that the test plays itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use vm_agent::devmesh::{KUBERNETES_AUDIENCE, Options, Resource};
use vm_agent::proto::discovery::DeltaDiscoveryRequest;

use crate::bed::{AGENT, Bed, free_port, valid};
use crate::faults::Stage;

pub(crate) struct Ward {
    pub(crate) bed: Bed,
    /// How `doctor` is called: words before the program, such as a namespace of mounts.
    pub(crate) before: Vec<String>,
    /// Kept open as long as the fault lasts.
    pub(crate) held: Vec<TcpListener>,
    /// Held as long as the fault lasts.
    pub(crate) locks: Vec<std::fs::File>,
    /// What is changed once the daemon is as wanted.
    pub(crate) after: fn(&mut Self),
    /// What the daemon's status shows before it is examined.
    pub(crate) until: fn(&Value) -> bool,
    pub(crate) settings: Value,
    streams: Vec<mpsc::Sender<DeltaDiscoveryRequest>>,
}

impl Ward {
    pub(crate) async fn new(stage: Stage, mesh: fn() -> Options) -> Self {
        let bed = Bed::with(mesh()).await;
        std::fs::write(bed.path("etc/vm-agent/kube-ca.pem"), bed.mesh.root_pem()).unwrap();
        std::fs::write(bed.path("etc/machine-id"), "3d1219c7c4c5404aaa1f6d2a48adfda4\n").unwrap();
        let mut ward = Self {
            settings: settings(&bed, stage),
            bed,
            before: Vec::new(),
            held: Vec::new(),
            locks: Vec::new(),
            after: |_| {},
            until: valid,
            streams: Vec::new(),
        };
        if stage == Stage::Kubernetes {
            ward.bed.mesh.grant("vms", "client");
            ward.bed.mesh.grant_verbs("vms", "client", &["get"], Resource::WorkloadGroups.plural());
            ward.bed.put_token("kube-token", KUBERNETES_AUDIENCE, 3600);
        }
        if stage == Stage::Ready {
            ward.until =
                |status| status["ready"] == true && status["health"]["health"]["is"] == "healthy";
            ward.play_envoy();
        }
        ward.write();
        ward
    }

    /// Changes a setting.
    pub(crate) fn set(&mut self, path: &[&str], value: Value) {
        let at = path.iter().fold(&mut self.settings, |at, key| &mut at[*key]);
        *at = value;
        self.write();
    }

    pub(crate) fn write(&self) {
        std::fs::write(self.bed.path("etc/vm-agent/config.yaml"), self.settings.to_string())
            .unwrap();
    }

    /// Puts a file below the root.
    pub(crate) fn put(&self, name: &str, text: &str) {
        std::fs::write(self.bed.path(name), text).unwrap();
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let mut find = Command::new("find");
        find.arg(self.bed.root.path()).args(["-printf", "%p %s %T@\n"]);
        let output = find.output().unwrap();
        let mut all: Vec<_> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        all.sort_unstable();
        all
    }

    /// Answers as Envoy's admin interface does once all is well.
    fn play_envoy(&self) {
        let port = u16::try_from(self.settings["proxy"]["adminPort"].as_u64().unwrap()).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream);
            }
        });
    }

    /// Starts the daemon where the stage has one, and examines the machine.
    pub(crate) async fn doctor(&mut self, stage: Stage) -> (Value, i32) {
        if matches!(stage, Stage::Alive | Stage::Ready) {
            if self.streams.is_empty() {
                self.bed.start();
                if stage == Stage::Ready {
                    self.bed.until("certified", valid).await;
                    self.streams.push(self.bed.proxy("client").await);
                }
            }
            self.bed.until("as wanted", self.until).await;
            (self.after)(self);
        }
        let mut words = self.before.clone();
        words.push(AGENT.to_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("--root")
            .arg(self.bed.root.path())
            .args(["doctor", "--json"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let report = serde_json::from_slice(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (report.unwrap_or_else(|_| panic!("{error}")), output.status.code().unwrap())
    }
}

fn settings(bed: &Bed, stage: Stage) -> Value {
    let mut all = json!({
        "workload": {"name": "vm1", "namespace": "vms", "serviceAccount": "client", "group": "client", "address": "127.0.0.1", "facts": {"source": "none"}},
        "mesh": {"discoveryAddress": format!("localhost:{}", bed.mesh.address().port()), "connectTo": "127.0.0.1"},
        "credential": {"tokenFile": "istio-token"},
        "registration": {"mode": "istiod"},
        "proxy": {"binary": std::path::absolute("tests/fakes/envoy").unwrap(), "terminationDrainDuration": "100ms", "adminPort": free_port()},
        "status": {"address": "127.0.0.1", "port": free_port()},
        "dns": {"enabled": true, "listen": format!("127.0.0.1:{}", free_port()), "upstreams": ["127.0.0.1:9"]},
    });
    if stage == Stage::Kubernetes {
        let server = format!("https://localhost:{}", bed.mesh.kube_address().port());
        all["registration"] = json!({"mode": "kubernetes", "kubernetes": {"server": server, "caFile": "kube-ca.pem", "tokenFile": "kube-token"}});
    }
    if stage == Stage::Ready {
        // istiod's name is one of the mesh's.
        bed.mesh.set_names([("localhost".to_owned(), name())].into());
    }
    all
}

fn name() -> vm_agent::proto::nds::NameInfo {
    vm_agent::proto::nds::NameInfo {
        ips: vec!["127.0.0.1".to_owned()],
        registry: "External".to_owned(),
        ..Default::default()
    }
}

fn answer(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let size = stream.read(&mut request).unwrap_or(0);
    let info = String::from_utf8_lossy(&request[..size]).contains("/server_info");
    let body = if info { r#"{"version": "0/1.40.0/Clean/RELEASE/BoringSSL"}"# } else { STATS };
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).ok();
}

pub(crate) fn state(report: &Value, id: &str) -> String {
    let all = report["findings"].as_array().unwrap();
    all.iter().find(|one| one["id"] == id).unwrap()["state"].as_str().unwrap().to_owned()
}

const STATS: &str = "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n\
                     server.state: 0\nlistener_manager.workers_started: 1\n";
