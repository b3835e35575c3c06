//! TLS as istiod serves it: a client certificate is optional, but a wrong one fails the handshake.
//! It serves routers and knows nothing of what they answer.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::GeneralName;

use super::pki::{Authorities, Authority};
use super::{MeshError, State, lock, pki};
use crate::base::clock::{SharedClock, unix_seconds};
use crate::base::tasks::Tasks;
use crate::identity::SpiffeId;

/// A server's TLS settings, which a rotation of roots replaces.
pub(super) type Settings = Mutex<Arc<ServerConfig>>;

/// Who is on the other end, as its verified client certificate says. Empty without one.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) id: Option<SpiffeId>,
    /// Lower-case hex.
    pub(super) serial: String,
    /// The subject's common name: a Kubernetes user.
    pub(super) user: Option<String>,
    /// The subject's organisations: a Kubernetes user's groups.
    pub(super) groups: Vec<String>,
}

/// What a server's certificate and settings are made from.
pub(super) struct Identity<'a> {
    pub(super) names: &'a [&'a str],
    pub(super) protocols: &'a [&'a str],
}

/// The settings of a server under the authorities of now.
pub(super) fn settings(
    (authorities, serving): (&Authorities, &Authority),
    identity: Identity<'_>,
    clock: &SharedClock,
) -> Result<Arc<ServerConfig>, MeshError> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in &authorities.trusted {
        roots.add(authority.root_der())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    let (chain, key) = serving.server(identity.names, clock.now())?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let time = Arc::new(Time(Arc::clone(clock)));
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = identity.protocols.iter().map(|&name| name.into()).collect();
    Ok(Arc::new(config))
}

/// A listening server.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) settings: Arc<Settings>,
    pub(super) router: Router,
}

/// Serves until its task is dropped. Each handshake is on its own, so that a slow one holds up
/// nobody.
pub(super) async fn serve(door: Door, state: Arc<State>, tasks: Tasks) {
    loop {
        let Ok((tcp, _)) = door.listener.accept().await else {
            // Out of file descriptors: some connection will end.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Small answers must not wait for acknowledgements of earlier ones.
        drop(tcp.set_nodelay(true));
        let acceptor = TlsAcceptor::from(Arc::clone(&lock(&door.settings)));
        let (state, router, cut) =
            (Arc::clone(&state), door.router.clone(), lock(&state.cut).clone());
        tasks.spawn("devmesh-connection", async move {
            tokio::select! {
                () = converse(tcp, acceptor, router, &state) => {}
                () = cut.cancelled() => {}
            }
        });
    }
}

async fn converse(tcp: TcpStream, acceptor: TlsAcceptor, router: Router, state: &State) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await else {
        return state.see(|seen| seen.failed_handshakes += 1);
    };
    state.see(|seen| seen.connections += 1);
    let service = TowerToHyperService::new(router.layer(Extension(peer(&stream))));
    let server = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error = %error, "A connection to the development mesh broke.");
    }
}

fn peer(stream: &TlsStream<TcpStream>) -> Peer {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain.first().and_then(|der| read(der)).unwrap_or_default()
}

fn read(der: &[u8]) -> Option<Peer> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let id = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => SpiffeId::parse(uri).ok(),
            _ => None,
        })
    });
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().ok().map(str::to_owned)
    };
    Some(Peer {
        id,
        serial: pki::serial_of(der)?,
        user: subject.iter_common_name().find_map(text),
        groups: subject.iter_organization().filter_map(text).collect(),
    })
}

/// The mesh's clock, for rustls.
struct Time(SharedClock);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl rustls::time_provider::TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds(self.0.now()))))
    }
}

/// A client that does not even say hello is not waited for longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
