use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, SanType};
use secrecy::SecretString;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::*;
use crate::base::clock;
use crate::base::tasks::Tasks;
use crate::base::trouble::Trouble;
use crate::base::uds::{self, Peers};
use crate::base::user_file::Opener;
use crate::identity::{Anchors, Candidate, IssuedIdentity, Roots, SpiffeId};
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Status,
};
use crate::proto::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
use crate::proto::tls::Secret;
use crate::proto::tls::secret::Type;

const ID: &str = "spiffe://cluster.local/ns/vms/sa/client";

struct Bed {
    directory: tempfile::TempDir,
    tasks: Tasks,
    identity: watch::Sender<Option<Arc<IssuedIdentity>>>,
    counters: Arc<Counters>,
    trouble: watch::Receiver<Option<Trouble>>,
    client: SecretDiscoveryServiceClient<Channel>,
    authority: CertifiedIssuer<'static, rcgen::KeyPair>,
}

async fn bed() -> Bed {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sds.sock");
    let (tasks, _ends) = Tasks::new();
    let identity = watch::Sender::new(None);
    let counters = Arc::new(Counters::default());
    let me = nix::unistd::getuid().as_raw();
    let files = FilesConfig {
        opener: Opener::Own,
        user: None,
        allowed: vec![directory.path().to_owned()],
        refused: vec![directory.path().join("state")],
        every: std::time::Duration::from_millis(20),
    };
    let files = Files::new(files, clock::system());
    let trouble = files.trouble();
    tasks.spawn("secret-files", files.clone().run(tasks.stop_signal()));
    let config = Config { peers: Peers::new(vec![me]), counters: Arc::clone(&counters), files };
    let listener = uds::bind(&path, uds::Reach::Owner).unwrap();
    tasks.critical("sds", serve(listener, config, identity.subscribe(), tasks.clone()));
    let channel = tonic::transport::Endpoint::try_from(format!("unix:{}", path.display())).unwrap();
    let client = SecretDiscoveryServiceClient::new(channel.connect().await.unwrap());
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    Bed { directory, tasks, identity, counters, trouble, client, authority }
}

impl Bed {
    fn issue(&self) -> Arc<IssuedIdentity> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
        let candidate = Candidate {
            chain_pem: params.signed_by(&key, &self.authority).unwrap().pem(),
            key_pem: SecretString::from(key.serialize_pem()),
            anchors: Anchors::Trusted,
        };
        let roots = Roots::from_pem(self.authority.pem().as_bytes()).unwrap();
        let id = SpiffeId::parse(ID).unwrap();
        let now = clock::Clock::now(&clock::SystemClock);
        let identity = Arc::new(IssuedIdentity::verify(candidate, &id, &roots, now).unwrap());
        self.identity.send_replace(Some(Arc::clone(&identity)));
        identity
    }

    async fn sotw(
        &mut self,
    ) -> (mpsc::Sender<DiscoveryRequest>, tonic::Streaming<DiscoveryResponse>) {
        let (requests, stream) = mpsc::channel(8);
        let answers = self.client.stream_secrets(ReceiverStream::new(stream)).await.unwrap();
        (requests, answers.into_inner())
    }
}

impl Bed {
    /// A certificate with its key, PEM.
    fn pair(&self) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        (params.signed_by(&key, &self.authority).unwrap().pem(), key.serialize_pem())
    }

    fn put(&self, name: &str, content: &str) {
        let path = self.directory.path().join(name);
        crate::base::fsio::replace(&path, content.as_bytes(), 0o600).unwrap();
    }

    fn name(&self, kind: &str, files: &[&str]) -> String {
        let paths = files.iter().map(|file| self.directory.path().join(file).display().to_string());
        format!("{kind}:{}", paths.collect::<Vec<_>>().join("~"))
    }

    async fn told(&mut self, words: &str) {
        let is_told = |trouble: &Option<Trouble>| {
            trouble.as_ref().map_or(words.is_empty(), |one| {
                !words.is_empty() && one.to_string().contains(words)
            })
        };
        self.trouble.wait_for(is_told).await.unwrap();
    }
}

fn certificate(response: &DiscoveryResponse) -> (String, String) {
    let secret = Secret::decode(response.resources[0].value.as_slice()).unwrap();
    let Some(Type::TlsCertificate(pair)) = secret.r#type else { panic!("{:?}", secret.name) };
    let text = |source: Option<crate::proto::tls::DataSource>| match source.unwrap().specifier {
        Some(crate::proto::tls::data_source::Specifier::InlineBytes(bytes)) => {
            String::from_utf8(bytes.to_vec()).unwrap()
        }
        _ => String::new(),
    };
    (text(pair.certificate_chain), text(pair.private_key))
}

fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    let name = |any: &prost_types::Any| Secret::decode(any.value.as_slice()).unwrap().name;
    response.resources.iter().map(name).collect()
}

#[tokio::test]
async fn a_request_waits_for_the_first_identity_and_each_renewal_is_pushed() {
    let mut bed = bed().await;
    let (requests, mut answers) = bed.sotw().await;
    requests.send(ask(&["default", "ROOTCA"], "")).await.unwrap();
    let identity = bed.issue();
    let first = answers.next().await.unwrap().unwrap();
    assert_eq!(names(&first), ["ROOTCA", "default"]);
    let secret = Secret::decode(first.resources[1].value.as_slice()).unwrap();
    let Some(Type::TlsCertificate(certificate)) = secret.r#type else {
        panic!("{:?}", secret.name)
    };
    let chain = certificate.certificate_chain.unwrap().encode_to_vec();
    let pem = identity.chain_pem().as_bytes();
    assert!(chain.windows(pem.len()).any(|window| window == pem));
    requests.send(ask(&["default", "ROOTCA"], &first.nonce)).await.unwrap();
    bed.issue();
    let second = answers.next().await.unwrap().unwrap();
    assert_eq!(names(&second), ["default"], "the roots have not changed");
    assert_ne!(second.version_info, first.version_info);
    assert_eq!(bed.counters.snapshot(), Counts { streams: 1, pushes: 3, rejected: 0 });
}

#[tokio::test]
async fn a_refused_secret_is_counted_and_not_sent_again() {
    let mut bed = bed().await;
    let (requests, mut answers) = bed.sotw().await;
    bed.issue();
    requests.send(ask(&["default"], "")).await.unwrap();
    let first = answers.next().await.unwrap().unwrap();
    let mut refusal = ask(&["default"], &first.nonce);
    refusal.error_detail = Some(Status { code: 13, message: "no".into() });
    requests.send(refusal).await.unwrap();
    requests.send(ask(&["default", "ROOTCA"], "")).await.unwrap();
    assert_eq!(names(&answers.next().await.unwrap().unwrap()), ["ROOTCA"]);
    assert_eq!(bed.counters.snapshot().rejected, 1);
}

#[tokio::test]
async fn delta_sends_what_is_known_and_says_what_is_not() {
    let mut bed = bed().await;
    bed.issue();
    let (requests, stream) = mpsc::channel(8);
    let answers = bed.client.delta_secrets(ReceiverStream::new(stream)).await.unwrap();
    let mut answers: tonic::Streaming<DeltaDiscoveryResponse> = answers.into_inner();
    let subscribe = ["default", "nobody"].map(str::to_owned).to_vec();
    let request =
        DeltaDiscoveryRequest { resource_names_subscribe: subscribe, ..Default::default() };
    requests.send(request).await.unwrap();
    let first = answers.next().await.unwrap().unwrap();
    assert_eq!(first.resources[0].name, "default");
    assert_eq!(first.removed_resources, ["nobody"]);
    bed.issue();
    let second = answers.next().await.unwrap().unwrap();
    assert_ne!(second.resources[0].version, first.resources[0].version);
}

#[tokio::test]
async fn an_unknown_name_ends_a_state_of_the_world_stream_with_its_name() {
    let mut bed = bed().await;
    let (requests, mut answers) = bed.sotw().await;
    requests.send(ask(&["nobody"], "")).await.unwrap();
    let error = answers.next().await.unwrap().unwrap_err();
    assert!(error.message().contains("nobody"), "{error}");
}

#[tokio::test]
async fn file_secrets_are_served_without_an_identity() {
    let mut bed = bed().await;
    let root = bed.directory.path().join("ca.pem");
    std::fs::write(&root, bed.authority.pem()).unwrap();
    let name = format!("file-root:{}", root.display());
    let (requests, mut answers) = bed.sotw().await;
    requests.send(ask(&[&name], "")).await.unwrap();
    assert_eq!(names(&answers.next().await.unwrap().unwrap()), [name]);
    assert!(Path::new(&root).exists());
}

#[tokio::test]
async fn a_file_pair_that_is_replaced_file_by_file_is_pushed_once_it_is_a_pair() {
    let mut bed = bed().await;
    let (first, second) = (bed.pair(), bed.pair());
    bed.put("c", &first.0);
    bed.put("k", &first.1);
    let name = bed.name("file-cert", &["c", "k"]);
    let (requests, mut answers) = bed.sotw().await;
    requests.send(ask(&[&name], "")).await.unwrap();
    let before = answers.next().await.unwrap().unwrap();
    assert_eq!(certificate(&before), first);
    bed.put("c", &second.0);
    bed.told("the certificate is for another key").await;
    bed.told("/c\" and key \"").await;
    // Who subscribes now gets the old pair.
    let (others, mut given) = bed.sotw().await;
    others.send(ask(&[&name], "")).await.unwrap();
    assert_eq!(certificate(&given.next().await.unwrap().unwrap()), first);
    bed.put("k", &second.1);
    let after = answers.next().await.unwrap().unwrap();
    assert_eq!(certificate(&after), second, "nothing was pushed in between");
    assert_ne!(after.version_info, before.version_info);
    bed.told("").await;
    // The other way round.
    bed.put("k", &first.1);
    bed.told("another key").await;
    bed.put("c", &first.0);
    assert_eq!(certificate(&answers.next().await.unwrap().unwrap()), first);
}

#[tokio::test]
async fn a_file_that_may_not_be_served_or_hangs_is_said_and_holds_up_no_other_secret() {
    let mut bed = bed().await;
    bed.put("root.pem", &bed.authority.pem());
    bed.put("token", "eyJhbGciOiJSUzI1NiJ9.e30.c2ln");
    let state = bed.directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    bed.put("state/root.pem", &bed.authority.pem());
    crate::base::fsio::make_pipe(&bed.directory.path().join("pipe")).unwrap();
    std::os::unix::fs::symlink(state.join("root.pem"), bed.directory.path().join("link")).unwrap();
    let cases = [
        (bed.name("file-root", &["token"]), "has no X.509 certificate"),
        (bed.name("file-root", &["pipe"]), "found a named pipe"),
        (bed.name("file-root", &["none"]), "No such file"),
        (bed.name("file-root", &["state/root.pem"]), "proxy.secretDirectories"),
        (bed.name("file-root", &["link"]), "proxy.secretDirectories"),
        ("file-root:/etc/passwd".to_owned(), "proxy.secretDirectories"),
        ("file-cert:/etc/passwd~/etc/shadow".to_owned(), "proxy.secretDirectories"),
        ("file-root:/dev/zero".to_owned(), "proxy.secretDirectories"),
        ("file-root:\u{1b}[31m\n".to_owned(), "\\u{1b}[31m\\n"),
    ];
    for (name, words) in cases {
        let good = bed.name("file-root", &["root.pem"]);
        let (requests, mut answers) = bed.sotw().await;
        requests.send(ask(&["default", &name, &good], "")).await.unwrap();
        bed.told(words).await;
        let mut got = std::collections::BTreeSet::new();
        bed.issue();
        while got.len() < 2 {
            got.extend(names(&answers.next().await.unwrap().unwrap()));
        }
        assert!(!got.contains(&name), "{name}");
        drop((requests, answers));
        bed.told("").await;
        let fetched = bed.client.fetch_secrets(ask(&[&name, &good], "")).await.unwrap();
        assert_eq!(names(fetched.get_ref()), [good], "{name}");
        bed.told("").await;
    }
}

#[tokio::test]
async fn all_streams_end_when_the_agent_stops() {
    let mut bed = bed().await;
    let (_requests, mut answers) = bed.sotw().await;
    assert!(bed.tasks.finish(std::time::Duration::from_secs(10)).await);
    assert!(answers.next().await.is_none_or(|answer| answer.is_err()));
}
