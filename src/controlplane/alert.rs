//! A server's word that it does not accept our certificate. Under TLS 1.3 it arrives after the
//! handshake, with the first bytes that are read (RFC 8446, 4.4.2.4).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The serial number of a certificate that the server has just refused. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusedCertificate {
    serial: Arc<Mutex<Option<String>>>,
}

impl RefusedCertificate {
    /// Whether this certificate was refused at the last dial. It is asked once: the dial after the
    /// next offers the certificate again, since the server may have learned its root meanwhile.
    pub(super) fn take(&self, serial: &str) -> bool {
        let mut refused = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        refused.take().is_some_and(|refused| refused == serial)
    }

    /// Takes note if an error is the server's refusal of a certificate.
    pub(super) fn note(&self, error: &io::Error, serial: &str) {
        if is_refusal(error) {
            tracing::warn!(serial, "The control plane does not accept our certificate.");
            *self.serial.lock().unwrap_or_else(PoisonError::into_inner) = Some(serial.to_owned());
        }
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

/// A connection whose errors are looked at.
pub(super) struct Heard<T> {
    pub(super) inner: T,
    pub(super) refused: RefusedCertificate,
    /// The certificate that was offered on it.
    pub(super) serial: Option<String>,
}

impl<T> Heard<T> {
    fn hear<O>(&self, outcome: Poll<io::Result<O>>) -> Poll<io::Result<O>> {
        if let (Poll::Ready(Err(error)), Some(serial)) = (&outcome, &self.serial) {
            self.refused.note(error, serial);
        }
        outcome
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.hear(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.hear(written)
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
        self.hear(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(description: AlertDescription) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(description))
    }

    #[test]
    fn a_refused_certificate_is_left_out_once_and_another_one_never() {
        let refused = RefusedCertificate::default();
        refused.note(&alert(AlertDescription::UnknownCA), "01");
        assert!(refused.take("01") && !refused.take("01"));
        refused.note(&alert(AlertDescription::BadCertificate), "01");
        assert!(!refused.take("02"), "it was renewed meanwhile");
    }

    #[test]
    fn other_errors_say_nothing_of_the_certificate() {
        let refused = RefusedCertificate::default();
        refused.note(&alert(AlertDescription::InternalError), "01");
        refused.note(&io::Error::from(io::ErrorKind::ConnectionReset), "01");
        assert!(!refused.take("01"));
    }
}
