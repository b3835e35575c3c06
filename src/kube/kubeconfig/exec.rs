//! Programs that make credentials (Kubernetes `client-go/pkg/apis/clientauthentication`).

use std::io::IsTerminal;
use std::process::Stdio;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use zeroize::Zeroizing;

use super::KubeconfigError;
use super::form::{Cluster, Exec};
use crate::kube::Auth;

/// A program, and the cluster that it may be told of.
pub(super) struct Plugin {
    exec: Exec,
    cluster: Option<Value>,
}

/// What the program prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<SecretString>,
    client_certificate_data: Option<String>,
    client_key_data: Option<SecretString>,
}

impl Plugin {
    pub(super) fn new(exec: Exec, cluster: &Cluster, ca_pem: &str) -> Self {
        let cluster = exec.provide_cluster_info.then(|| about(cluster, ca_pem));
        Self { exec, cluster }
    }

    /// Runs the program. What it says on its standard error is for the person who waits.
    pub(super) async fn run(&self) -> Result<Auth, KubeconfigError> {
        let version = self.exec.api_version.as_str();
        if !VERSIONS.contains(&version) {
            let [one, other] = VERSIONS;
            return Err(
                self.failed(format!("found apiVersion {version:?}, expected {one} or {other}"))
            );
        }
        let interactive = self.interactive()?;
        let output = match tokio::time::timeout(LIMIT, self.output(interactive)).await {
            Ok(output) => output?,
            Err(_) => return Err(self.failed(format!("it did not end within {LIMIT:?}"))),
        };
        self.read(&output)
    }

    /// Whether it may talk to the person at the terminal.
    fn interactive(&self) -> Result<bool, KubeconfigError> {
        let terminal = std::io::stdin().is_terminal();
        match self.exec.interactive_mode.as_deref() {
            Some("Never") => Ok(false),
            None | Some("" | "IfAvailable") => Ok(terminal),
            Some("Always") if terminal => Ok(true),
            Some("Always") => {
                Err(self.failed("it wants a terminal, and standard input is none".to_owned()))
            }
            Some(other) => Err(self.failed(format!(
                "found interactiveMode {other:?}, expected Never, IfAvailable or Always"
            ))),
        }
    }

    async fn output(&self, interactive: bool) -> Result<Zeroizing<Vec<u8>>, KubeconfigError> {
        let mut spec = Map::new();
        spec.insert("interactive".to_owned(), json!(interactive));
        if let Some(cluster) = &self.cluster {
            spec.insert("cluster".to_owned(), cluster.clone());
        }
        let version = &self.exec.api_version;
        let told = json!({"kind": "ExecCredential", "apiVersion": version, "spec": spec});
        let variables = self.exec.env.iter().flatten().map(|one| (&one.name, &one.value));
        #[expect(clippy::disallowed_methods, reason = "the one place that runs credential plugins")]
        let mut wanted = Command::new(&self.exec.command);
        wanted
            .args(self.exec.args.iter().flatten())
            .envs(variables)
            .env("KUBERNETES_EXEC_INFO", told.to_string())
            .stdin(if interactive { Stdio::inherit() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        // What the service manager says to us is for no other program (sd_notify(3)).
        for variable in OURS {
            wanted.env_remove(variable);
        }
        let mut child = wanted.spawn().map_err(|error| self.failed(error.to_string()))?;
        let mut output = Zeroizing::new(Vec::new());
        if let Some(stdout) = child.stdout.take() {
            let read = stdout.take(OUTPUT_BYTES).read_to_end(&mut output).await;
            read.map_err(|error| self.failed(error.to_string()))?;
        }
        let ended = child.wait().await.map_err(|error| self.failed(error.to_string()))?;
        if ended.success() {
            Ok(output)
        } else {
            Err(self.failed(format!("it ended with {ended}")))
        }
    }

    fn read(&self, output: &[u8]) -> Result<Auth, KubeconfigError> {
        // The parser's words could quote a secret.
        let answer: Answer = serde_json::from_slice(output)
            .map_err(|_| self.failed("it printed no ExecCredential in JSON".to_owned()))?;
        if answer.kind != "ExecCredential" || answer.api_version != self.exec.api_version {
            let wanted = &self.exec.api_version;
            return Err(self
                .failed(format!("it printed something else than an ExecCredential of {wanted}")));
        }
        let status = answer.status.ok_or_else(|| self.failed("it printed no status".to_owned()))?;
        match (status.token, status.client_certificate_data, status.client_key_data) {
            (_, Some(chain), Some(key)) => {
                Ok(Auth::ClientCertificate { chain_pem: chain.into_bytes(), key_pem: key })
            }
            (Some(token), None, None) => Ok(Auth::Token(token)),
            (_, Some(_), None) | (_, None, Some(_)) => {
                Err(self
                    .failed("it printed a certificate without a key, or a key alone".to_owned()))
            }
            (None, None, None) => {
                Err(self.failed("it printed neither a token nor a client certificate".to_owned()))
            }
        }
    }

    fn failed(&self, why: String) -> KubeconfigError {
        KubeconfigError::Plugin {
            command: self.exec.command.clone(),
            why,
            install_hint: self.exec.install_hint.clone(),
        }
    }
}

/// The cluster, as plugins are told of it.
fn about(cluster: &Cluster, ca_pem: &str) -> Value {
    use base64::Engine;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    let mut told = Map::new();
    told.insert("server".to_owned(), json!(cluster.server));
    told.insert("certificate-authority-data".to_owned(), json!(ca));
    if let Some(name) = &cluster.tls_server_name {
        told.insert("tls-server-name".to_owned(), json!(name));
    }
    let extensions = cluster.extensions.iter().flatten();
    if let Some(config) = extensions.into_iter().find(|one| one.name == EXTENSION) {
        told.insert("config".to_owned(), config.extension.clone());
    }
    Value::Object(told)
}

const VERSIONS: [&str; 2] =
    ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];
/// Variables by which a service manager speaks with one process.
const OURS: [&str; 6] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];
/// The one extension of a cluster that is meant for plugins.
const EXTENSION: &str = "client.authentication.k8s.io/exec";
/// A person may have to type a code into a browser meanwhile.
const LIMIT: Duration = Duration::from_secs(120);
/// A chain, a key and a token have some ten kilobytes.
const OUTPUT_BYTES: u64 = 1 << 20;
