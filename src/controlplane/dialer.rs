//! One connection to istiod at a time: resolve, connect, TLS, HTTP/2, each with a limit and an
//! error of its own. A lost connection is not repaired here: whoever holds it dials again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use secrecy::ExposeSecret;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;

use super::alert::Heard;
use super::error::{DialError, Step, tls_failure};
use super::{Endpoint, Trust, read_roots};
use crate::base::clock::SharedClock;
use crate::credential::{Bearer, Ladder, LadderError};
use crate::identity::{IssuedIdentity, Roots};

/// Where istiod is, and what we show it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its address as the mesh names it.
    pub endpoint: Endpoint,
    /// Dial this host or IP instead of resolving the endpoint's host (istioctl's `hosts` file).
    pub connect_to: Option<String>,
    /// The name that its certificate must carry; by default the endpoint's host.
    pub server_name: Option<String>,
    /// PEM roots that its certificate must lead to. Read again at every dial.
    pub root_cert: PathBuf,
    /// Our cluster, sent as the header `clusterid`.
    pub cluster_id: String,
    /// The limit of each step of a dial.
    pub step_limit: Duration,
}

/// A live connection.
pub struct Connection {
    /// HTTP/2 over TLS. When the connection is lost its calls fail; dial again then.
    pub channel: Channel,
    /// Our end: the source address of the route to istiod.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Whether our certificate was offered in the handshake.
    pub with_certificate: bool,
}

/// What a call is sent with.
pub struct Headers {
    /// Our cluster and the token.
    pub metadata: MetadataMap,
    /// The token that is among them.
    pub bearer: Option<Bearer>,
}

/// Dials istiod. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    config: Arc<Config>,
    ladder: Ladder,
    identity: watch::Receiver<Option<Arc<IssuedIdentity>>>,
    clock: SharedClock,
    trust: Trust,
}

impl Dialer {
    /// A dialer that offers whatever certificate `identity` holds at the time, and the best token
    /// of the ladder.
    #[must_use]
    pub fn new(
        config: Config,
        ladder: Ladder,
        identity: watch::Receiver<Option<Arc<IssuedIdentity>>>,
        clock: SharedClock,
    ) -> Self {
        Self { config: Arc::new(config), ladder, identity, clock, trust: Trust::default() }
    }

    /// Trusts more than the root file, and has newer roots fetched where a dial meets unknown ones.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// The same dialer for another server of the control plane.
    #[must_use]
    pub fn towards(&self, config: &Config) -> Self {
        Self { config: Arc::new(config.clone()), ..self.clone() }
    }

    /// What is trusted beside the root file.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The roots trusted now: those of the root file, those that came with our certificate, and
    /// those that were learned otherwise.
    ///
    /// # Errors
    /// When the root file cannot be used, and no other roots are known.
    pub fn roots(&self) -> Result<Roots, DialError> {
        let file = read_roots(&self.config.root_cert);
        let own = self.identity.borrow().as_ref().map(|identity| identity.roots().clone());
        let others = self.trust.learned_roots().into_iter().chain(own);
        match file {
            Ok(file) => Ok(others.fold(file, |roots, more| roots.union(&more))),
            Err(error) => others.reduce(|one, other| one.union(&other)).ok_or_else(|| error.into()),
        }
    }

    /// The first address that istiod's host resolves to.
    ///
    /// # Errors
    /// When the name does not resolve in time.
    pub async fn resolve(&self) -> Result<SocketAddr, DialError> {
        let addresses = self.addresses().await?;
        addresses.first().copied().ok_or_else(|| self.unresolved(None))
    }

    /// The first two steps of a dial, with nothing said yet.
    ///
    /// # Errors
    /// When the name does not resolve, or nobody accepts connections there.
    pub async fn reach(&self) -> Result<SocketAddr, DialError> {
        self.connect().await.map(|(_, peer)| peer)
    }

    /// Connects. Our certificate is offered only when it is valid by the clock: istiod fails the
    /// handshake of an expired one even when a good token follows. One that istiod has just refused
    /// is left out, so that the token gets its chance. Where istiod's root is unknown and
    /// newer ones can be fetched, it is dialled again with them.
    ///
    /// # Errors
    /// With the step that failed.
    pub async fn dial(&self) -> Result<Connection, DialError> {
        match self.dial_once().await {
            Err(DialError::Untrusted { .. } | DialError::RootFile(_))
                if self.trust.refreshed().await =>
            {
                self.dial_once().await
            }
            outcome => outcome,
        }
    }

    async fn dial_once(&self) -> Result<Connection, DialError> {
        let roots = self.roots()?;
        let (tcp, peer) = self.connect().await?;
        let local = tcp.local_addr().map_err(|source| self.unreachable(peer, source))?;
        let current = self.identity.borrow().clone();
        let current = current.filter(|identity| identity.is_valid_at(self.clock.now()));
        let current = current.filter(|identity| !self.trust.refused.is(identity.serial()));
        let with_certificate = current.is_some();
        let inner = self.handshake(tcp, &roots, current.as_deref()).await?;
        let offered = current.map(|identity| identity.serial().to_owned());
        let refused = self.trust.refused.clone();
        let channel = self.http2(Heard { inner, refused, offered }).await?;
        Ok(Connection { channel, local, peer, with_certificate })
    }

    /// The headers of a call: our cluster, and the token where one is usable.
    ///
    /// A usable token is sent beside a certificate too: some CAs accept nothing else. With a
    /// certificate nobody is asked for a new one.
    ///
    /// # Errors
    /// When there is no usable token and no certificate was offered either.
    pub async fn headers(&self, with_certificate: bool) -> Result<Headers, LadderError> {
        let mut metadata = MetadataMap::new();
        if let Ok(cluster) = MetadataValue::try_from(self.config.cluster_id.as_str()) {
            metadata.insert("clusterid", cluster);
        }
        let bearer =
            if with_certificate { self.ladder.at_hand() } else { Some(self.ladder.token().await?) };
        if let Some(Bearer { rung, token }) = &bearer {
            let text = format!("Bearer {}", token.secret().expose_secret());
            let text = MetadataValue::try_from(text);
            let mut text = text.map_err(|_| LadderError::Characters { rung: *rung })?;
            text.set_sensitive(true);
            metadata.insert("authorization", text);
        }
        Ok(Headers { metadata, bearer })
    }

    /// istiod did not accept what it was sent.
    pub fn refuse(&self, bearer: &Bearer, message: &str) {
        self.ladder.refuse(bearer, message);
    }

    /// istiod accepted it.
    pub fn accept(&self, bearer: &Bearer) {
        self.ladder.accept(bearer);
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let Endpoint { host, port } = &self.config.endpoint;
        let host = self.config.connect_to.as_ref().unwrap_or(host);
        let lookup = tokio::net::lookup_host((host.as_str(), *port));
        match timeout(self.config.step_limit, lookup).await {
            Ok(Ok(found)) => Ok(found.take(ADDRESSES).collect()),
            Ok(Err(source)) => Err(self.unresolved(Some(source))),
            Err(_) => Err(self.late(Step::Resolve)),
        }
    }

    async fn connect(&self) -> Result<(TcpStream, SocketAddr), DialError> {
        let mut last = self.unresolved(None);
        for peer in self.addresses().await? {
            match timeout(self.config.step_limit, TcpStream::connect(peer)).await {
                Ok(Ok(tcp)) => {
                    // Without it small frames wait for the peer's acknowledgement.
                    tcp.set_nodelay(true).map_err(|source| self.unreachable(peer, source))?;
                    return Ok((tcp, peer));
                }
                Ok(Err(source)) => last = self.unreachable(peer, source),
                Err(_) => last = self.late(Step::Connect),
            }
        }
        Err(last)
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        roots: &Roots,
        identity: Option<&IssuedIdentity>,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let name = self.server_name();
        let server = ServerName::try_from(name.clone())
            .map_err(|_| DialError::ServerName { found: name.clone() })?;
        let config = tls_config(roots, identity)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        match timeout(self.config.step_limit, connector.connect(server, tcp)).await {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err(error)) => {
                if let Some(identity) = identity {
                    self.trust.refused.note(&error, identity.serial());
                }
                Err(tls_failure(error, &self.config, &name, roots))
            }
            Err(_) => Err(self.late(Step::Tls)),
        }
    }

    async fn http2(&self, tls: Heard<TlsStream<TcpStream>>) -> Result<Channel, DialError> {
        let authority = format!("https://{}", self.config.endpoint);
        let failed = |source| DialError::Http { endpoint: self.config.endpoint.clone(), source };
        let endpoint = tonic::transport::Endpoint::from_shared(authority)
            .map_err(failed)?
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_LIMIT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let once = Arc::new(Mutex::new(Some(TokioIo::new(tls))));
        let connector = tower::service_fn(move |_| {
            let stream = once.lock().ok().and_then(|mut slot| slot.take());
            // The channel asks a second time when the connection was lost.
            std::future::ready(
                stream.ok_or_else(|| std::io::Error::other("the connection was lost")),
            )
        });
        let connected = timeout(self.config.step_limit, endpoint.connect_with_connector(connector));
        connected.await.map_err(|_| self.late(Step::Http))?.map_err(failed)
    }

    /// The name that its certificate must carry. Istio's rule for a control plane behind a local
    /// port forward (`pilot/pkg/grpc/tls.go`).
    #[must_use]
    pub fn server_name(&self) -> String {
        let host = &self.config.endpoint.host;
        let default = if host == "localhost" { "istiod.istio-system.svc" } else { host };
        self.config.server_name.clone().unwrap_or_else(|| default.to_owned())
    }

    fn unresolved(&self, source: Option<std::io::Error>) -> DialError {
        let host = self.config.connect_to.clone();
        let host = host.unwrap_or_else(|| self.config.endpoint.host.clone());
        let source = source.unwrap_or_else(|| std::io::Error::other("it has no address"));
        DialError::Resolve { host, source }
    }

    fn unreachable(&self, peer: SocketAddr, source: std::io::Error) -> DialError {
        DialError::Connect { endpoint: self.config.endpoint.clone(), peer, source }
    }

    fn late(&self, step: Step) -> DialError {
        let endpoint = self.config.endpoint.clone();
        DialError::Late { endpoint, step, limit: self.config.step_limit }
    }
}

fn tls_config(
    roots: &Roots,
    identity: Option<&IssuedIdentity>,
) -> Result<rustls::ClientConfig, DialError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(DialError::TlsSetup)?
        .with_root_certificates(roots.store());
    let mut config = match identity {
        Some(identity) => {
            let only = rustls::sign::SingleCertAndKey::from(identity.certified_key());
            config.with_client_cert_resolver(Arc::new(only))
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would speak for the certificate of the first handshake.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A name with more addresses than this is not tried to the end.
const ADDRESSES: usize = 8;
/// Istio's defaults: `GRPC_KEEPALIVE_INTERVAL`, `GRPC_KEEPALIVE_TIMEOUT`, `pilot/pkg/grpc/grpc.go`.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);
const WINDOW: u32 = 1 << 20;
