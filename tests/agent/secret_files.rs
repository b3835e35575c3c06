//! Files that the proxy asks for under names from the network: what it gets of them, and that the
//! agent goes on meanwhile.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use vm_agent::proto::discovery::DiscoveryRequest;
use vm_agent::proto::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;

use crate::bed::{Bed, channel, trouble, valid};

/// The proxy's user of the test, who may read nothing that is closed.
const PROXY: &str = "65534";

impl Bed {
    /// What one request for this name brings: the content of the secret, or nothing.
    async fn fetch(&self, name: &str) -> Vec<u8> {
        let channel = channel(&self.path("run/vm-agent/sds.sock")).await;
        let request =
            DiscoveryRequest { resource_names: vec![name.to_owned()], ..Default::default() };
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let fetched = timeout(Duration::from_secs(30), client.fetch_secrets(request)).await;
        let fetched = fetched.expect("an answer").unwrap();
        fetched.into_inner().resources.into_iter().flat_map(|resource| resource.value).collect()
    }

    /// A directory that the configuration allows, open to everybody.
    fn certs(&self) -> std::path::PathBuf {
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let certs = self.path("certs");
        std::fs::create_dir_all(&certs).unwrap();
        open(self.root.path());
        open(&certs);
        certs
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_gets_no_file_but_certificates_that_its_own_user_may_read() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut bed = Bed::new().await;
    let certs = bed.certs();
    let token = std::fs::read_to_string(bed.state("istio-token")).unwrap();
    let closed = certs.join("closed.pem");
    std::fs::write(&closed, bed.mesh.root_pem()).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o600)).unwrap();
    let open = certs.join("open.pem");
    std::fs::write(&open, format!("{token}\n{}", bed.mesh.root_pem())).unwrap();
    std::fs::write(certs.join("token"), &token).unwrap();
    symlink(bed.state("identity.json"), certs.join("state")).unwrap();
    symlink("/etc/shadow", certs.join("shadow")).unwrap();
    nix::unistd::mkfifo(&certs.join("pipe"), nix::sys::stat::Mode::from_bits_retain(0o666))
        .unwrap();
    bed.run(json!({"proxy": {"user": PROXY, "secretDirectories": [certs]}}));
    bed.until("certified", valid).await;
    let good = bed.fetch(&format!("file-root:{}", open.display())).await;
    assert!(contains(&good, "BEGIN CERTIFICATE") && !contains(&good, token.trim()));
    let state = |file: &str| bed.state(file).display().to_string();
    let named = |file: &str| certs.join(file).display().to_string();
    let paths = [
        state("istio-token"),
        state("identity.json"),
        bed.path("etc/vm-agent/root-cert.pem").display().to_string(),
        bed.path("run/vm-agent/envoy.out").display().to_string(),
        "/etc/shadow".to_owned(),
        "/etc/passwd".to_owned(),
        "/proc/self/environ".to_owned(),
        "/dev/zero".to_owned(),
        named("closed.pem"),
        named("token"),
        named("state"),
        named("shadow"),
        named("pipe"),
        named("../var/lib/vm-agent/istio-token"),
        certs.display().to_string(),
    ];
    for path in paths {
        for name in [format!("file-root:{path}"), format!("file-cert:{path}~{path}")] {
            let got = bed.fetch(&name).await;
            assert!(got.is_empty(), "{name}: {}", String::from_utf8_lossy(&got));
        }
        let (head, _) = bed.page("/healthz/ready", "127.0.0.1").await;
        assert!(head.starts_with("HTTP/1.1"), "{path}");
    }
    assert!(!bed.fetch("default").await.is_empty(), "our own certificate is still served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_pipe_that_the_mesh_names_holds_up_nothing_and_is_reported() {
    let mut bed = Bed::new().await;
    let certs = bed.certs();
    let pipe = certs.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_retain(0o666)).unwrap();
    bed.run(json!({"proxy": {"secretDirectories": [certs]}}));
    bed.until("certified", valid).await;
    let names = [format!("file-root:{}", pipe.display()), "default".to_owned()];
    let (requests, stream) = tokio::sync::mpsc::channel(8);
    let channel = channel(&bed.path("run/vm-agent/sds.sock")).await;
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let answers = client.stream_secrets(ReceiverStream::new(stream)).await.unwrap();
    let mut answers = answers.into_inner();
    let request = DiscoveryRequest { resource_names: names.to_vec(), ..Default::default() };
    requests.send(request).await.unwrap();
    let mut next = async || {
        let next = timeout(Duration::from_secs(30), answers.next()).await;
        next.expect("an answer").unwrap().unwrap().version_info
    };
    let first = next().await;
    bed.until("reported", |status| trouble(status, "secrets").contains("found a named pipe")).await;
    assert_eq!(bed.command(&["cert", "rotate"]).status.code(), Some(0));
    assert_ne!(next().await, first, "a renewed certificate is pushed");
    drop(requests);
    bed.until("forgotten", |status| trouble(status, "secrets").is_empty()).await;
}
