//! A server's word that it does not accept our certificate. Under TLS 1.3 it arrives after the
//! handshake, with the first bytes that are read (RFC 8446, 4.4.2.4); and it is lost where we still
//! write while the server hangs up.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The serial number of a certificate that istiod has just refused. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RefusedCertificate {
    last: Arc<Mutex<Option<(String, Instant)>>>,
    news: Arc<Notify>,
}

impl RefusedCertificate {
    /// Waits until a certificate is refused.
    pub async fn next(&self) {
        self.news.notified().await;
    }

    /// Whether this certificate was refused a moment ago. Later it is offered again, since the
    /// server may have learned its root meanwhile, and there may be nothing else to offer.
    pub(super) fn is(&self, serial: &str) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_some_and(|(refused, at)| refused == serial && at.elapsed() < LEFT_OUT)
    }

    /// Takes note if an error of the handshake is the server's refusal of a certificate.
    pub(super) fn note(&self, error: &io::Error, serial: &str) {
        if is_refusal(error) {
            self.set(serial);
        }
    }

    fn set(&self, serial: &str) {
        tracing::warn!(serial, "The control plane does not accept our certificate.");
        let refused = Some((serial.to_owned(), Instant::now()));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        self.news.notify_one();
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied
        ))
    )
}

/// A connection on which the server's first words are listened for.
pub(super) struct Heard<T> {
    pub(super) inner: T,
    pub(super) refused: RefusedCertificate,
    /// The certificate that was offered, until the server has said anything else.
    pub(super) offered: Option<String>,
}

impl<T> Heard<T> {
    /// A server that accepts speaks first (HTTP/2's SETTINGS). One that hangs up before has refused,
    /// even where its alert was lost; if it merely went away, the token is tried once for nothing.
    fn hung_up(&mut self) {
        if let Some(serial) = self.offered.take() {
            self.refused.set(&serial);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        match &read {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => self.offered = None,
            Poll::Ready(_) => self.hung_up(),
            Poll::Pending => {}
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        if let Poll::Ready(Err(_)) = &written {
            self.hung_up();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        if let Poll::Ready(Err(_)) = &written {
            self.hung_up();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Long enough for a new certificate by the token.
const LEFT_OUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn alert(description: AlertDescription) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(description))
    }

    fn heard<T>(inner: T, refused: &RefusedCertificate) -> Heard<T> {
        Heard { inner, refused: refused.clone(), offered: Some("01".to_owned()) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_certificate_is_left_out_for_a_while_and_another_one_never() {
        let refused = RefusedCertificate::default();
        refused.note(&alert(AlertDescription::InternalError), "01");
        assert!(!refused.is("01"), "that says nothing of the certificate");
        refused.note(&alert(AlertDescription::UnknownCA), "01");
        assert!(refused.is("01") && !refused.is("02"));
        refused.next().await;
        tokio::time::advance(LEFT_OUT).await;
        assert!(!refused.is("01"));
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_before_its_first_word_has_refused() {
        let refused = RefusedCertificate::default();
        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        let mut ours = heard(ours, &refused);
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(refused.is("01"));
        let refused = RefusedCertificate::default();
        let mut broken = heard(tokio::io::duplex(64).0, &refused);
        assert!(broken.write(b"hello").await.is_err() && refused.is("01"));
    }

    #[tokio::test]
    async fn a_server_that_goes_away_later_has_not() {
        let refused = RefusedCertificate::default();
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut ours = heard(ours, &refused);
        theirs.write_all(b"hi").await.unwrap();
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 2);
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(!refused.is("01"));
    }
}
