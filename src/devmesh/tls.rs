//! TLS as istiod serves it: a client certificate is optional, but a wrong one fails the handshake.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::MeshError;
use super::pki::Authority;
use crate::base::tasks::Tasks;

/// A connection, and the identity of its client certificate.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
}

/// The SPIFFE ID of a client certificate.
#[derive(Clone, Debug)]
pub(super) struct ClientId(pub(super) Option<String>);

pub(super) fn server(authority: &Authority) -> Result<TlsAcceptor, MeshError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.root_der())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| MeshError::Tls(rustls::Error::General(error.to_string())))?;
    let (certificate, key) = authority.server()?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connections whose handshake has succeeded; each handshake on its own, so that a slow one holds
/// up nobody.
pub(super) fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    tasks: &Tasks,
) -> ReceiverStream<std::io::Result<Connection>> {
    let (connections, accepted) = mpsc::channel(16);
    let group = tasks.clone();
    tasks.spawn("accept", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, connections) = (acceptor.clone(), connections.clone());
            group.spawn("handshake", async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    drop(connections.send(Ok(Connection { stream })).await);
                }
            });
        }
    });
    ReceiverStream::new(accepted)
}

impl Connected for Connection {
    type ConnectInfo = ClientId;

    fn connect_info(&self) -> ClientId {
        let certificates = self.stream.get_ref().1.peer_certificates();
        ClientId(certificates.and_then(|chain| spiffe_id(chain.first()?)))
    }
}

fn spiffe_id(der: &[u8]) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
