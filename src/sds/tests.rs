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
use crate::base::uds::{self, Peers};
use crate::identity::{Anchors, Candidate, IssuedIdentity, Roots, SpiffeId};
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Status,
};
use crate::proto::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
use crate::proto::tls::Secret;
use crate::proto::tls::secret::Type;

const ID: &str = "spiffe://cluster.local/ns/vms/sa/client";

struct Bed {
    _directory: tempfile::TempDir,
    tasks: Tasks,
    identity: watch::Sender<Option<Arc<IssuedIdentity>>>,
    counters: Arc<Counters>,
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
    let config = Config { peers: Peers::new(vec![me]), counters: Arc::clone(&counters) };
    let listener = uds::bind(&path, uds::Reach::Owner).unwrap();
    tasks.critical("sds", serve(listener, config, identity.subscribe(), tasks.clone()));
    let channel = tonic::transport::Endpoint::try_from(format!("unix:{}", path.display())).unwrap();
    let client = SecretDiscoveryServiceClient::new(channel.connect().await.unwrap());
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    Bed { _directory: directory, tasks, identity, counters, client, authority }
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
    let root = bed._directory.path().join("ca.pem");
    std::fs::write(&root, bed.authority.pem()).unwrap();
    let name = format!("file-root:{}", root.display());
    let (requests, mut answers) = bed.sotw().await;
    requests.send(ask(&[&name], "")).await.unwrap();
    assert_eq!(names(&answers.next().await.unwrap().unwrap()), [name]);
    assert!(Path::new(&root).exists());
}

#[tokio::test]
async fn all_streams_end_when_the_agent_stops() {
    let mut bed = bed().await;
    let (_requests, mut answers) = bed.sotw().await;
    assert!(bed.tasks.finish(std::time::Duration::from_secs(10)).await);
    assert!(answers.next().await.is_none_or(|answer| answer.is_err()));
}
