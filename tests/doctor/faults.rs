//! The table: what is broken, and what has to be named first.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use vm_agent::base::clock::Clock;
use vm_agent::devmesh::{
    Fault as MeshFault, ISTIO_AUDIENCE, KUBERNETES_AUDIENCE, Options, Resource, Service,
};

use crate::bed::free_port;
use crate::ward::Ward;

/// What the machine is like before the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Joined by istiod, with no daemon running.
    Dead,
    /// Joined through the Kubernetes API, with no daemon running.
    Kubernetes,
    /// The daemon runs, with a proxy that never gets ready.
    Alive,
    /// The daemon runs, and the machine is in the mesh.
    Ready,
}

pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
    pub(crate) mesh: fn() -> Options,
    pub(crate) inject: fn(&mut Ward),
    /// The check that has to be first.
    pub(crate) first: &'static str,
    /// What its cause has to say.
    pub(crate) words: &'static str,
    pub(crate) status: i32,
}

pub(crate) const MESH: fn() -> Options = Options::default;

const fn fault(
    name: &'static str,
    stage: Stage,
    first: &'static str,
    words: &'static str,
    status: i32,
    inject: fn(&mut Ward),
) -> Fault {
    Fault { name, stage, mesh: MESH, inject, first, words, status }
}

const fn timed(
    name: &'static str,
    stage: Stage,
    mesh: fn() -> Options,
    words: &'static str,
    status: i32,
) -> Fault {
    Fault { name, stage, mesh, inject: |_| {}, first: "clock", words, status }
}

use Stage::{Alive, Dead, Kubernetes, Ready};

pub(crate) const FAULTS: &[Fault] = &[
    // Configuration.
    fault("no configuration", Dead, "configuration", "No such file", 4, |ward| {
        std::fs::remove_file(ward.bed.path("etc/vm-agent/config.yaml")).unwrap();
    }),
    fault("broken YAML", Dead, "configuration", "no valid YAML", 4, |ward| {
        ward.put("etc/vm-agent/config.yaml", "workload: {namespace: 'v\n");
    }),
    fault("an unknown setting", Dead, "configuration", "wrokload", 4, |ward| {
        ward.set(&["wrokload"], json!({"name": "vm1"}));
    }),
    fault("a wrong value", Dead, "configuration", "identity.ttl", 4, |ward| {
        ward.set(&["identity"], json!({"ttl": "5 parsecs"}));
    }),
    fault("a namespace that is missing", Dead, "configuration", "workload.namespace", 4, |ward| {
        ward.settings["workload"].as_object_mut().unwrap().remove("namespace");
        ward.write();
    }),
    // The host.
    fault("a full disk", Dead, "disk", "No space left", 9, |ward| {
        mounted(ward, "size=4k");
    }),
    fault("a disk that cannot be written", Dead, "disk", "Read-only", 9, |ward| {
        mounted(ward, "ro,size=4m");
    }),
    fault("a file in place of the state directory", Dead, "disk", "Not a directory", 9, |ward| {
        std::fs::remove_dir_all(ward.bed.path("var/lib/vm-agent")).unwrap();
        ward.put("var/lib/vm-agent", "in the way");
    }),
    fault("a template that nothing fills", Dead, "address", "cloud.zone is not known", 9, |ward| {
        ward.set(&["workload", "locality"], json!("eu/{{cloud.zone}}"));
    }),
    fault("the status port is taken", Dead, "ports", "the agent's status server", 9, |ward| {
        let port = ward.settings["status"]["port"].as_u64().unwrap();
        taken(ward, port);
    }),
    fault("the admin port is taken", Dead, "ports", "Envoy's admin interface", 9, |ward| {
        let port = ward.settings["proxy"]["adminPort"].as_u64().unwrap();
        taken(ward, port);
    }),
    // The way to istiod.
    fault("istiod's name does not resolve", Dead, "dns", "does not resolve", 6, |ward| {
        ward.set(&["mesh", "connectTo"], json!("istiod.invalid"));
    }),
    fault("istiod's port is closed", Dead, "tcp", "cannot connect", 6, |ward| {
        ward.set(&["mesh", "discoveryAddress"], json!(format!("localhost:{}", free_port())));
    }),
    fault("istiod hangs", Dead, "tls", "did not answer", 6, |ward| served(ward, b"", Hangs::Yes)),
    fault("istiod's port speaks plain text", Dead, "tls", "TLS handshake", 6, |ward| {
        served(ward, b"HTTP/1.1 400 Bad Request\r\n\r\n", Hangs::No);
    }),
    fault("istiod's port hangs up", Dead, "tls", "TLS handshake", 6, |ward| {
        served(ward, b"", Hangs::No)
    }),
    fault("another mesh's root", Dead, "root", "is not signed by a root", 6, |ward| {
        let stranger = include_str!("stranger.pem");
        ward.put("etc/vm-agent/root-cert.pem", stranger);
    }),
    fault("no root file", Dead, "root", "No such file", 4, |ward| {
        std::fs::remove_file(ward.bed.path("etc/vm-agent/root-cert.pem")).unwrap();
    }),
    fault("a root file with rubbish", Dead, "root", "is no root certificate file", 4, |ward| {
        ward.put("etc/vm-agent/root-cert.pem", "rubbish");
    }),
    fault("another server name", Dead, "server-name", "istiod.elsewhere.svc", 6, |ward| {
        ward.set(&["mesh", "serverName"], json!("istiod.elsewhere.svc"));
    }),
    timed("istiod's certificate is over", Dead, || behind(800 * DAY), "expired at", 6),
    timed("istiod's certificate has not begun", Dead, || ahead(3 * DAY), "is valid only from", 6),
    timed("this machine is an hour behind", Dead, || ahead(3600), "behind: the token", 9),
    timed(
        "this machine is behind the Kubernetes API",
        Kubernetes,
        || ahead(3600),
        "behind the Kubernetes API",
        9,
    ),
    timed(
        "this machine is ahead of the Kubernetes API",
        Kubernetes,
        || behind(1800),
        "ahead of the Kubernetes API",
        9,
    ),
    // Its token is over by its clock, too.
    timed(
        "this machine is days ahead of the Kubernetes API",
        Kubernetes,
        || behind(2 * DAY),
        "ahead of the Kubernetes API",
        9,
    ),
    // Credentials.
    fault("no token", Dead, "token", "No such file", 5, |ward| {
        std::fs::remove_file(ward.bed.path("var/lib/vm-agent/istio-token")).unwrap();
    }),
    fault("an expired token", Dead, "token", "expired at", 5, |ward| {
        ward.bed.write_token(ISTIO_AUDIENCE, 0)
    }),
    fault("a token for somebody else", Dead, "token", "is for audience vault", 5, |ward| {
        ward.bed.write_token("vault", 3600);
    }),
    fault("another account's token", Dead, "account", "vms/other, not for vms/client", 5, |ward| {
        let token = ward.bed.mesh.token("vms", "other", ISTIO_AUDIENCE, Duration::from_secs(3600));
        ward.put("var/lib/vm-agent/istio-token", &token);
    }),
    fault("another namespace's token", Dead, "account", "prod/client", 5, |ward| {
        let token =
            ward.bed.mesh.token("prod", "client", ISTIO_AUDIENCE, Duration::from_secs(3600));
        ward.put("var/lib/vm-agent/istio-token", &token);
    }),
    fault("a token that is none", Dead, "token", "not a JSON Web Token", 5, |ward| {
        ward.put("var/lib/vm-agent/istio-token", "rubbish");
    }),
    fault("an empty token", Dead, "token", "it is empty", 5, |ward| {
        ward.put("var/lib/vm-agent/istio-token", "")
    }),
    fault(
        "no credential at all",
        Dead,
        "token",
        "neither a valid certificate nor a token",
        5,
        |ward| {
            ward.set(&["credential"], json!({}));
        },
    ),
    fault("a kept identity that is corrupt", Dead, "identity", "is not as written", 0, |ward| {
        ward.put("var/lib/vm-agent/identity.json", "{rubbish");
    }),
    // The Kubernetes API.
    fault(
        "the Kubernetes API is away",
        Kubernetes,
        "kubernetes",
        "cannot create selfsubjectaccessreviews",
        6,
        |ward| {
            ward.set(
                &["registration", "kubernetes", "server"],
                json!(format!("https://localhost:{}", free_port())),
            );
        },
    ),
    fault("the Kubernetes API hangs", Kubernetes, "kubernetes", "did not answer", 6, |ward| {
        ward.bed.mesh.faults().set(Service::Kube, MeshFault::Hang);
    }),
    fault("the Kubernetes API answers rubbish", Kubernetes, "kubernetes", "rubbish", 6, |ward| {
        ward.bed.mesh.faults().set(Service::Kube, MeshFault::Rubbish);
    }),
    fault(
        "another CA for the Kubernetes API",
        Kubernetes,
        "kubernetes",
        "invalid peer certificate",
        6,
        |ward| {
            ward.put("etc/vm-agent/kube-ca.pem", include_str!("stranger.pem"));
        },
    ),
    fault("no CA for the Kubernetes API", Kubernetes, "kubernetes", "kube-ca.pem", 4, |ward| {
        std::fs::remove_file(ward.bed.path("etc/vm-agent/kube-ca.pem")).unwrap();
    }),
    fault(
        "an expired token for the Kubernetes API",
        Kubernetes,
        "kubernetes",
        "kube-token expired at",
        5,
        |ward| {
            ward.bed.put_token("kube-token", KUBERNETES_AUDIENCE, 0);
        },
    ),
    fault("a deleted service account", Kubernetes, "kubernetes", "Unauthorized", 5, |ward| {
        ward.bed.mesh.delete_service_account("vms", "client");
    }),
    fault("no token for the Kubernetes API", Kubernetes, "kubernetes", "kube-token", 4, |ward| {
        std::fs::remove_file(ward.bed.path("var/lib/vm-agent/kube-token")).unwrap();
    }),
    fault("no rights", Kubernetes, "rights", "Forbidden", 7, |ward| {
        let token =
            ward.bed.mesh.token("vms", "nobody", KUBERNETES_AUDIENCE, Duration::from_secs(60));
        ward.put("var/lib/vm-agent/kube-token", &token);
    }),
    fault(
        "no WorkloadGroup",
        Kubernetes,
        "group",
        "there is no workloadgroups vms/client",
        7,
        |ward| {
            ward.bed.mesh.objects().delete(Resource::WorkloadGroups, "vms", "client").unwrap();
        },
    ),
    fault(
        "a WorkloadGroup of another account",
        Kubernetes,
        "group",
        "for service account other",
        7,
        |ward| {
            let group = json!({"spec": {"template": {"serviceAccount": "other"}}});
            ward.bed.mesh.objects().put(Resource::WorkloadGroups, "vms", "client", group);
        },
    ),
    fault(
        "another machine's WorkloadEntry",
        Kubernetes,
        "entry",
        "belongs to another machine",
        7,
        |ward| {
            let entry = json!({"metadata": {"annotations": {"vm-agent.io/machine": "other"}}, "spec": {"address": "10.0.0.9"}});
            ward.bed.mesh.objects().put(Resource::WorkloadEntries, "vms", "vm1", entry);
        },
    ),
    // The proxy.
    fault("no Envoy", Dead, "proxy", "No such file", 8, |ward| {
        ward.set(&["proxy", "binary"], json!("/nowhere/envoy"))
    }),
    fault("an Envoy that may not be executed", Dead, "proxy", "not executable", 8, |ward| {
        envoy(ward, "", 0o644)
    }),
    fault("something else than Envoy", Dead, "proxy", "not what Envoy says", 8, |ward| {
        envoy(ward, "echo hello", 0o755)
    }),
    fault("an Envoy for another machine", Dead, "proxy", "cannot be the proxy", 8, |ward| {
        envoy(ward, "echo wrong architecture >&2; exit 1", 0o755);
    }),
    fault("an Envoy that hangs", Dead, "proxy", "does not tell its version", 8, |ward| {
        envoy(ward, "exec sleep 60", 0o755)
    }),
    // The daemon.
    fault("an agent that died", Dead, "daemon", "has died", 11, |ward| {
        std::fs::create_dir_all(ward.bed.path("run/vm-agent")).unwrap();
        ward.put("run/vm-agent/lock", "");
    }),
    fault("an agent that does not answer", Dead, "daemon", "does not answer", 11, |ward| {
        std::fs::create_dir_all(ward.bed.path("run/vm-agent")).unwrap();
        let lock = std::fs::File::create(ward.bed.path("run/vm-agent/lock")).unwrap();
        lock.lock().unwrap();
        ward.locks.push(lock);
    }),
    fault("istiod refuses certificates", Alive, "certificate", "Unauthenticated", 5, |ward| {
        ward.until = |status| status["conditions"].to_string().contains("Unauthenticated");
        ward.bed.mesh.set_fault(MeshFault::Refuse);
    }),
    fault("istiod signs for somebody else", Alive, "certificate", "is for spiffe://", 5, |ward| {
        ward.until = |status| status["conditions"].to_string().contains("is for spiffe://");
        ward.bed.mesh.set_fault(MeshFault::OtherIdentity);
    }),
    fault(
        "a proxy that ends again and again",
        Alive,
        "proxy-process",
        "exit status 3",
        8,
        |ward| {
            ward.until = |status| status["conditions"].to_string().contains("\"proxy\"");
            let version =
                "[ \"$1\" = --version ] && { echo 'envoy  version: 0/1.40.0/x'; exit 0; }; exit 3";
            envoy(ward, version, 0o755);
        },
    ),
    fault(
        "istiod does not know the WorkloadGroup",
        Ready,
        "registration",
        "cannot find WorkloadGroup",
        7,
        |ward| {
            ward.until =
                |status| status["conditions"].to_string().contains("cannot find WorkloadGroup");
            ward.bed.mesh.objects().delete(Resource::WorkloadGroups, "vms", "client").unwrap();
        },
    ),
    fault("an unhealthy application", Ready, "health", "the application is unhealthy", 3, |ward| {
        ward.until = |status| status["health"]["health"]["is"] == "unhealthy";
        let probe =
            json!({"tcpSocket": {"port": free_port()}, "periodSeconds": 1, "failureThreshold": 1});
        ward.set(&["health"], json!({"probe": probe}));
    }),
    fault("nobody answers DNS queries", Ready, "names", "does not answer", 9, |ward| {
        ward.after =
            |ward| ward.set(&["dns", "listen"], json!(format!("127.0.0.1:{}", free_port())));
    }),
];

const DAY: u64 = 24 * 3600;

/// The mesh's clock, so many seconds off this machine's.
struct Off(i64);

impl Clock for Off {
    fn now(&self) -> SystemTime {
        let by = Duration::from_secs(self.0.unsigned_abs());
        if self.0 < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    }
}

fn ahead(seconds: u64) -> Options {
    Options { clock: Arc::new(Off(i64::try_from(seconds).unwrap())), ..Options::default() }
}

fn behind(seconds: u64) -> Options {
    Options { clock: Arc::new(Off(-i64::try_from(seconds).unwrap())), ..Options::default() }
}

fn taken(ward: &mut Ward, port: u64) {
    let port = u16::try_from(port).unwrap();
    ward.held.push(TcpListener::bind(("127.0.0.1", port)).unwrap());
}

/// The state directory on a file system of its own, which only the doctor sees.
fn mounted(ward: &mut Ward, options: &str) {
    let directory = ward.bed.path("var/lib/vm-agent");
    let script =
        format!("mount -t tmpfs -o {options} none {} && exec \"$0\" \"$@\"", directory.display());
    ward.before =
        ["unshare", "--map-root-user", "--mount", "sh", "-c", &script].map(str::to_owned).into();
    // The token is elsewhere then.
    let token = std::fs::read_to_string(directory.join("istio-token")).unwrap();
    ward.put("etc/vm-agent/istio-token", &token);
    let path = ward.bed.path("etc/vm-agent/istio-token");
    ward.set(&["credential", "tokenFile"], json!(path));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hangs {
    Yes,
    No,
}

/// Somebody else at istiod's port.
fn served(ward: &mut Ward, answer: &'static [u8], hangs: Hangs) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if hangs == Hangs::Yes {
                open.push(stream);
                continue;
            }
            // What is not read resets the connection.
            if !answer.is_empty() {
                drop(stream.read(&mut [0; 8192]));
            }
            drop(stream.write_all(answer));
        }
    });
    ward.set(&["mesh", "discoveryAddress"], json!(format!("localhost:{port}")));
}

fn envoy(ward: &mut Ward, script: &str, mode: u32) {
    let path = ward.bed.path("envoy");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    ward.set(&["proxy", "binary"], json!(path));
}

/// Everything that can hang does.
pub(crate) fn hang(ward: &mut Ward) {
    served(ward, b"", Hangs::Yes);
    ward.bed.mesh.faults().set(Service::Kube, MeshFault::Hang);
    envoy(ward, "exec sleep 60", 0o755);
    ward.set(&["credential"], json!({"command": ["/bin/sleep", "60"]}));
}
