//! The mesh as its clients see it: over TLS, with the generated clients.

mod kube;
mod picture;
mod restart;
mod watch;
mod xds;

use std::collections::BTreeMap;
use std::time::SystemTime;

use hyper_util::rt::TokioIo;
use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::state::ISTIOD;
use super::*;
use crate::base::clock::{self, Clock};
use crate::identity::{KeyAlgorithm, SpiffeId};
use crate::proto::istio_ca::IstioCertificateRequest;
use crate::proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;

const ID: &str = "spiffe://cluster.local/ns/vms/sa/client";
const HOUR: Duration = Duration::from_secs(3600);

async fn mesh() -> Mesh {
    Mesh::start(Options::default()).await.unwrap()
}

fn now() -> SystemTime {
    clock::SystemClock.now()
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn tls(roots: &str, client: Option<&ClientIdentity>) -> rustls::ClientConfig {
    let mut store = rustls::RootCertStore::empty();
    for root in certificates(roots) {
        store.add(root).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store);
    match client {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = identity.key_pem.expose_secret();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(certificates(&identity.chain_pem), key).unwrap()
        }
    }
}

/// A channel to istiod that trusts these roots.
async fn dial(
    address: SocketAddr,
    roots: &str,
    client: Option<&ClientIdentity>,
) -> Result<Channel, tonic::transport::Error> {
    let mut config = tls(roots, client);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::try_from(ISTIOD).unwrap();
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://istiod").connect_with_connector(connect).await
}

async fn channel(mesh: &Mesh, client: Option<&ClientIdentity>) -> Channel {
    dial(mesh.address(), &mesh.root_pem(), client).await.unwrap()
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.metadata_mut().insert("clusterid", "Kubernetes".parse().unwrap());
    request
}

fn token(mesh: &Mesh) -> String {
    mesh.token("vms", "client", ISTIO_AUDIENCE, HOUR)
}

/// A signing request, and its key.
fn csr(asked_for: &str) -> (String, SecretString) {
    let key = crate::identity::KeyPair::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let csr = key.csr_pem(&SpiffeId::parse(asked_for).unwrap()).unwrap();
    (csr, key.private_key_pem().clone())
}

/// Asks for a certificate for an hour: the answer's elements and the key.
async fn certify(channel: Channel, token: &str) -> Result<(Vec<String>, ClientIdentity), Status> {
    let (csr, key_pem) = csr("spiffe://cluster.local/ns/other/sa/liar");
    let request = IstioCertificateRequest { csr, validity_duration: 3600, metadata: None };
    let mut client = IstioCertificateServiceClient::new(channel);
    let answer = client.create_certificate(with_token(request, token)).await?.into_inner();
    let chain = answer.cert_chain;
    let chain_pem = chain[..chain.len() - 1].concat();
    Ok((chain, ClientIdentity { chain_pem, key_pem }))
}

/// The URIs, the start and the end of the first certificate.
fn look(pem: &str) -> (Vec<String>, SystemTime, SystemTime) {
    let der = certificates(pem).remove(0);
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let validity = certificate.validity();
    let (start, end) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    (uris.collect(), start.into(), end.into())
}

#[tokio::test]
async fn a_token_gets_a_certificate_and_the_certificate_gets_the_next_one() {
    let mesh = mesh().await;
    let (chain, first) = certify(channel(&mesh, None).await, &token(&mesh)).await.unwrap();
    assert_eq!(chain.len(), 2, "leaf and root");
    let (uris, start, end) = look(&chain[0]);
    assert_eq!(uris, [ID], "the caller's identity, not the request's");
    assert!(start <= now() - Duration::from_secs(100), "dated back");
    assert!(end <= now() + HOUR && end > now());
    let (_, second) = certify(channel(&mesh, Some(&first)).await, "no token").await.unwrap();
    assert_eq!(look(&second.chain_pem).0, [ID]);
    let seen = mesh.seen().borrow().clone();
    assert_eq!((seen.by_token, seen.by_certificate, seen.refused), (1, 1, 0));
    let serial = seen.csrs[0].serial.clone().unwrap();
    assert_eq!(seen.csrs[1].proof, Proof::Certificate { serial });
}

#[tokio::test]
async fn a_token_that_is_foreign_expired_or_of_a_deleted_account_is_refused() {
    let (mesh, other) = (mesh().await, mesh().await);
    let gone = mesh.token("vms", "gone", ISTIO_AUDIENCE, HOUR);
    mesh.delete_service_account("vms", "gone");
    for token in [
        mesh.token("vms", "client", KUBERNETES_AUDIENCE, HOUR),
        mesh.token("vms", "client", ISTIO_AUDIENCE, Duration::ZERO),
        token(&other),
        mesh.admin_token().to_owned(),
        gone,
        "x".to_owned(),
    ] {
        let refused = certify(channel(&mesh, None).await, &token).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    assert_eq!(mesh.seen().borrow().refused, 6);
}

#[tokio::test]
async fn a_caller_from_an_unknown_cluster_is_refused() {
    let mesh = mesh().await;
    let mut request = with_token(IstioCertificateRequest::default(), &token(&mesh));
    request.metadata_mut().insert("clusterid", "elsewhere".parse().unwrap());
    let mut client = IstioCertificateServiceClient::new(channel(&mesh, None).await);
    let refused = client.create_certificate(request).await.unwrap_err();
    assert!(refused.message().contains("elsewhere"), "{refused}");
}

#[tokio::test]
async fn an_expired_or_unknown_client_certificate_fails_the_handshake() {
    let (mesh, other) = (mesh().await, mesh().await);
    let expired = mesh.workload_certificate(ID, now() - 2 * HOUR, now() - HOUR).unwrap();
    let foreign = other.workload_certificate(ID, now() - HOUR, now() + HOUR).unwrap();
    let good = mesh.workload_certificate(ID, now() - HOUR, now() + HOUR).unwrap();
    for identity in [&expired, &foreign] {
        // The server's verdict arrives with the first answer, so dialling may still succeed.
        let dialled = dial(mesh.address(), &mesh.root_pem(), Some(identity)).await;
        let refused = match dialled {
            Err(_) => true,
            Ok(channel) => certify(channel, &token(&mesh)).await.is_err(),
        };
        assert!(refused, "though the token is good");
    }
    mesh.seen().wait_for(|seen| seen.failed_handshakes == 2).await.unwrap();
    certify(channel(&mesh, Some(&good)).await, "").await.unwrap();
}

#[tokio::test]
async fn a_lifetime_above_the_longest_is_refused_and_none_gets_the_default() {
    let mesh = mesh().await;
    let mut client = IstioCertificateServiceClient::new(channel(&mesh, None).await);
    let mut ask = async |validity_duration| {
        let request = IstioCertificateRequest { csr: csr(ID).0, validity_duration, metadata: None };
        client.create_certificate(with_token(request, &token(&mesh))).await
    };
    let refused = ask(91 * 24 * 3600).await.unwrap_err();
    assert!(refused.message().contains("greater than the max allowed TTL"), "{refused}");
    let answer = ask(0).await.unwrap().into_inner();
    assert!(look(&answer.cert_chain[0]).2 > now() + 23 * HOUR);
}

#[tokio::test]
async fn an_unsigned_request_is_refused() {
    let mesh = mesh().await;
    let mut client = IstioCertificateServiceClient::new(channel(&mesh, None).await);
    let request = IstioCertificateRequest { csr: "x".to_owned(), ..Default::default() };
    let refused = client.create_certificate(with_token(request, &token(&mesh))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(mesh.seen().borrow().csrs[0].serial, None);
}

#[tokio::test]
async fn each_fault_of_the_authority_does_what_its_name_says() {
    let mesh = mesh().await;
    let mut answers = BTreeMap::new();
    for (name, fault) in [
        ("expired", Fault::ExpiredCertificate),
        ("later", Fault::NotYetValid),
        ("other", Fault::OtherIdentity),
        ("rubbish", Fault::Rubbish),
        ("root", Fault::UntrustedRoot),
        ("key", Fault::WrongKey),
        ("slow", Fault::Latency(Duration::from_millis(1))),
    ] {
        mesh.faults().set(Service::Ca, fault);
        answers.insert(name, certify(channel(&mesh, None).await, &token(&mesh)).await.unwrap());
    }
    let leaf = |name: &str| answers[name].0[0].clone();
    assert!(look(&leaf("expired")).2 < now());
    assert!(look(&leaf("later")).1 > now());
    assert_eq!(look(&leaf("other")).0, [format!("{ID}-other")]);
    assert!(!leaf("rubbish").contains("BEGIN CERTIFICATE"));
    assert_ne!(answers["root"].0[1], mesh.root_pem());
    assert_eq!(answers["slow"].0[1], mesh.root_pem());
    let public = |pem: &str| {
        let der = certificates(pem).remove(0);
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        certificate.public_key().subject_public_key.data.to_vec()
    };
    let own = |name: &str| {
        let key = KeyPair::from_pem(answers[name].1.key_pem.expose_secret()).unwrap();
        key.public_key_raw().to_vec()
    };
    assert_ne!(public(&leaf("key")), own("key"));
    assert_eq!(public(&leaf("slow")), own("slow"));
}

#[tokio::test]
async fn a_refusal_has_the_wanted_code_and_ends_with_the_fault() {
    let mesh = mesh().await;
    mesh.faults().set(Service::Ca, Fault::Status(Code::ResourceExhausted, "slow down"));
    let refused = certify(channel(&mesh, None).await, &token(&mesh)).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "slow down"));
    mesh.set_fault(Fault::Refuse);
    let refused = certify(channel(&mesh, None).await, &token(&mesh)).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    mesh.faults().clear();
    certify(channel(&mesh, None).await, &token(&mesh)).await.unwrap();
}

#[tokio::test]
async fn an_intermediate_is_part_of_the_chain_and_of_the_handshake() {
    let options = Options { intermediate: true, ..Options::default() };
    let mesh = Mesh::start(options).await.unwrap();
    let (chain, identity) = certify(channel(&mesh, None).await, &token(&mesh)).await.unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    assert_eq!(certificates(&identity.chain_pem).len(), 2);
    assert_eq!(chain[2], mesh.root_pem());
    certify(channel(&mesh, Some(&identity)).await, "").await.unwrap();
}

#[tokio::test]
async fn a_new_root_stands_beside_the_old_one_until_that_is_retired() {
    let mesh = mesh().await;
    let old = mesh.root_pem();
    let (_, first) = certify(channel(&mesh, None).await, &token(&mesh)).await.unwrap();
    mesh.rotate_root().unwrap();
    // The servers are still of the old root; certificates are of the new one, and name both.
    let before = dial(mesh.address(), &old, Some(&first)).await.unwrap();
    let (chain, second) = certify(before, "").await.unwrap();
    assert_eq!(certificates(&chain[1]).len(), 2, "in one element");
    assert!(chain[1].contains(&old));
    mesh.retire_old_roots().unwrap();
    assert!(dial(mesh.address(), &old, None).await.is_err(), "the old root is gone");
    let after = dial(mesh.address(), &chain[1], Some(&second)).await.unwrap();
    assert_eq!(certify(after, "").await.unwrap().0[1], mesh.root_pem());
}

#[tokio::test]
async fn it_goes_away_and_comes_back_at_the_same_ports_with_the_same_root() {
    let mesh = mesh().await;
    let (address, root) = (mesh.address(), mesh.root_pem());
    let kept = channel(&mesh, None).await;
    certify(kept.clone(), &token(&mesh)).await.unwrap();
    mesh.go_away().await.unwrap();
    assert!(certify(kept, &token(&mesh)).await.is_err(), "the connection is broken");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    assert!(TcpStream::connect(mesh.kube_address()).await.is_err(), "nobody listens");
    mesh.come_back().await.unwrap();
    certify(dial(address, &root, None).await.unwrap(), &token(&mesh)).await.unwrap();
}

#[tokio::test]
async fn a_call_that_hangs_does_not_keep_the_mesh_from_going_away() {
    let mesh = mesh().await;
    mesh.set_fault(Fault::Hang);
    let (channel, token) = (channel(&mesh, None).await, token(&mesh));
    let mut call = std::pin::pin!(certify(channel, &token));
    // Polled until it is sent; it is not answered.
    let connections = async { mesh.seen().wait_for(|seen| seen.connections == 1).await.unwrap() };
    tokio::select! {
        _ = &mut call => panic!("answered"),
        _ = connections => {}
    }
    mesh.go_away().await.unwrap();
    assert!(call.await.is_err());
}

#[tokio::test]
async fn cut_connections_break_and_new_ones_are_taken() {
    let mesh = mesh().await;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(&mesh.root_pem(), None))
        .build()
        .unwrap();
    let version = format!("https://localhost:{}/version", mesh.kube_address().port());
    mesh.faults().set(Service::Kube, Fault::Hang);
    let mut hanging = std::pin::pin!(client.get(&version).send());
    let connected = async { mesh.seen().wait_for(|seen| seen.connections == 1).await.unwrap() };
    tokio::select! {
        _ = &mut hanging => panic!("answered"),
        _ = connected => {}
    }
    mesh.cut_connections();
    assert!(hanging.await.is_err());
    mesh.faults().clear();
    assert!(client.get(&version).send().await.unwrap().status().is_success());
}

#[tokio::test]
async fn only_loopback_and_private_addresses_are_listened_on() {
    let options = Options { listen: ([0, 0, 0, 0], 0).into(), ..Options::default() };
    let refused = Mesh::start(options).await.err().unwrap();
    assert!(refused.to_string().contains("neither a loopback nor a private address"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_what_never_happens_ends_and_says_what_was_seen() {
    let mesh = mesh().await;
    mesh.faults().set(Service::Ca, Fault::Refuse);
    let unseen = mesh.seen().wait_for(|seen| seen.streams > 0).await.unwrap_err();
    assert!(unseen.to_string().contains("streams: 0"), "{unseen}");
}

#[tokio::test]
async fn a_join_directory_reads_as_istioctls() {
    let mesh = mesh().await;
    let mut spec = mesh.join_spec("vms", "client", "client");
    spec.ports.insert("http".to_owned(), 9080);
    spec.labels.insert("quote".to_owned(), "it's".to_owned());
    let directory = tempfile::tempdir().unwrap();
    write_join_directory(directory.path(), &spec).unwrap();
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let env = read("cluster.env");
    for line in [
        "ISTIO_INBOUND_PORTS=9080",
        "ISTIO_SERVICE=client.vms",
        "ISTIO_SERVICE_CIDR='*'",
        "ISTIO_META_NETWORK=''",
        "ISTIO_META_AUTO_REGISTER_GROUP=client",
        "SERVICE_ACCOUNT=client",
    ] {
        assert!(env.lines().any(|found| found == line), "{line} in {env}");
    }
    assert!(env.contains(r#""quote":"it'"'"'s""#), "{env}");
    assert!(env.lines().is_sorted(), "{env}");
    let config: Value = serde_saphyr::from_str(&read("mesh.yaml")).unwrap();
    let config = &config["defaultConfig"];
    let discovery = format!("istiod.istio-system.svc:{}", mesh.address().port());
    assert_eq!(config["discoveryAddress"], discovery);
    assert_eq!(config["proxyMetadata"]["ISTIO_META_DNS_CAPTURE"], "true");
    assert_eq!(read("hosts"), "127.0.0.1 istiod.istio-system.svc\n");
    assert_eq!(read("root-cert.pem"), mesh.root_pem());
    certify(channel(&mesh, None).await, &read("istio-token")).await.unwrap();
}
