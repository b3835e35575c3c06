use super::{Endpoint, TokenError};
use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::identity::{IssuedIdentity, Roots, SpiffeId};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

#[derive(Clone, Debug)]
pub struct Config {
    pub endpoint: Endpoint,
    /// Dial this host or IP instead of resolving the endpoint's host (istioctl's `hosts` file).
    pub connect_to: Option<String>,
    /// The name that the server's certificate must carry; default the endpoint's host (istiod.istio-system.svc for localhost).
    pub server_name: Option<String>,
    /// Re-read at every dial.
    pub root_cert: PathBuf,
    /// Re-read at every RPC.
    pub token_file: Option<PathBuf>,
    pub audience: String,
    pub cluster_id: String,
    pub id: SpiffeId,
    /// for each of: resolve, connect, handshake
    pub step_limit: Duration,
}
/// Which step failed and why: Resolve, Connect, Tls{Untrusted, WrongName, Expired…}, Timeout{step}, Roots (file), …
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("stub")]
    Stub,
}
impl DialError {
    pub fn retry(&self) -> Retry {
        todo!()
    }
    /// One sentence that says what to do.
    pub fn hint(&self) -> Option<String> {
        todo!()
    }
}
/// One live TLS connection.
pub struct Connection {
    pub channel: Channel,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// True when our certificate was offered in the handshake.
    pub with_certificate: bool,
}
/// Dials istiod. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    _c: Arc<Config>,
    _i: watch::Receiver<Option<Arc<IssuedIdentity>>>,
    _k: SharedClock,
}
impl Dialer {
    pub fn new(
        config: Config,
        identity: watch::Receiver<Option<Arc<IssuedIdentity>>>,
        clock: SharedClock,
    ) -> Self {
        Self { _c: Arc::new(config), _i: identity, _k: clock }
    }
    pub fn config(&self) -> &Config {
        &self._c
    }
    /// Trust = root file ∪ roots of the current identity.
    pub fn roots(&self) -> Result<Roots, DialError> {
        todo!()
    }
    /// resolve → connect → TLS (client certificate only when unexpired) → HTTP/2
    pub async fn dial(&self) -> Result<Connection, DialError> {
        todo!()
    }
    /// `clusterid`, and `authorization` when a usable token exists. Err only when there is neither a usable token nor `with_certificate`.
    pub fn headers(&self, _with_certificate: bool) -> Result<MetadataMap, TokenError> {
        todo!()
    }
    /// first address that the endpoint (or connect_to) resolves to
    pub async fn resolve(&self) -> Result<SocketAddr, DialError> {
        todo!()
    }
}
pub(super) fn _unused(_: IpAddr) {}
