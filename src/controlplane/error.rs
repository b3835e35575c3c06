//! Why istiod could not be reached: the step, the cause, and what to do.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls::CertificateError;
use rustls_pki_types::UnixTime;

use super::{Config, Endpoint, RootFileError};
use crate::base::backoff::Retry;
use crate::base::clock::{from_unix_seconds, rfc3339};
use crate::identity::Roots;

/// A step of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Name to address.
    Resolve,
    /// The TCP connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The HTTP/2 connection.
    Http,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name lookup",
            Self::Connect => "TCP connection",
            Self::Tls => "TLS handshake",
            Self::Http => "HTTP/2 connection",
        })
    }
}

/// A dial that failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The root file cannot be used.
    #[error(transparent)]
    RootFile(#[from] RootFileError),
    /// The host has no address.
    #[error("the control plane's name {host} does not resolve")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Nobody accepts connections there.
    #[error("cannot connect to the control plane {endpoint} at {peer}")]
    Connect {
        /// As configured.
        endpoint: Endpoint,
        /// As resolved.
        peer: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A step took too long.
    #[error("the control plane {endpoint} did not answer within {limit:?} ({step})")]
    Late {
        /// As configured.
        endpoint: Endpoint,
        /// The step.
        step: Step,
        /// Its limit.
        limit: Duration,
    },
    /// The name to verify is no name.
    #[error("{found:?} is no server name")]
    ServerName {
        /// The text.
        found: String,
    },
    /// Its certificate leads to none of our roots.
    #[error("the certificate of {endpoint} is not signed by a root of {} (which trusts {trusted})", root_cert.display())]
    Untrusted {
        /// As configured.
        endpoint: Endpoint,
        /// Our root file.
        root_cert: PathBuf,
        /// The subjects of our roots.
        trusted: String,
    },
    /// Its certificate is for another name.
    #[error("the certificate of {endpoint} is not for {expected} but for {found}")]
    OtherName {
        /// As configured.
        endpoint: Endpoint,
        /// The name that it must carry.
        expected: String,
        /// The names that it carries.
        found: String,
    },
    /// Its certificate is not valid by our clock.
    #[error("the certificate of {endpoint} {validity}; this machine's clock says {now}")]
    Clock {
        /// As configured.
        endpoint: Endpoint,
        /// From or until when it is valid.
        validity: String,
        /// RFC 3339.
        now: String,
    },
    /// The handshake failed otherwise.
    #[error("the TLS handshake with {endpoint} failed")]
    Tls {
        /// As configured.
        endpoint: Endpoint,
        /// What the TLS library said.
        #[source]
        source: io::Error,
    },
    /// The HTTP/2 connection could not be made.
    #[error("no HTTP/2 connection to {endpoint}")]
    Http {
        /// As configured.
        endpoint: Endpoint,
        /// What the library said.
        #[source]
        source: tonic::transport::Error,
    },
    /// TLS could not be set up on our side.
    #[error("cannot set up TLS")]
    TlsSetup(#[source] rustls::Error),
}

impl DialError {
    /// Whether it can pass by itself. A name may resolve and a root file may be replaced at any
    /// time, so nothing here is hopeless; but only some of it heals without a person.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Late { .. }
            | Self::Clock { .. }
            | Self::Tls { .. }
            | Self::Http { .. } => Retry::Soon,
            Self::RootFile(_) | Self::Untrusted { .. } | Self::OtherName { .. } => Retry::Later,
            Self::ServerName { .. } | Self::TlsSetup(_) => Retry::Never,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Resolve { host, .. } => format!(
                "set mesh.connectTo to the address of the control plane's gateway, or make {host} resolvable"
            ),
            Self::Connect { .. } | Self::Late { .. } => {
                "check that istiod runs and that its port can be reached from here".to_owned()
            }
            Self::RootFile(_) | Self::Untrusted { .. } => {
                "fetch the mesh's root: `kubectl get configmap istio-ca-root-cert -n NAMESPACE \
                 -o jsonpath='{.data.root-cert\\.pem}'`, then join again with it"
                    .to_owned()
            }
            Self::OtherName { .. } => {
                "set mesh.serverName to one of the names that it carries, if that server is istiod"
                    .to_owned()
            }
            Self::Clock { .. } => {
                "set this machine's clock (`timedatectl set-ntp true`); if it is right, istiod's own \
                 certificate is over"
                    .to_owned()
            }
            Self::Tls { .. } | Self::Http { .. } => {
                "check that this is istiod's TLS port (usually 15012)".to_owned()
            }
            Self::ServerName { .. } | Self::TlsSetup(_) => return None,
        };
        Some(hint)
    }
}

/// Sorts what a failed handshake says.
pub(super) fn tls_failure(
    error: io::Error,
    config: &Config,
    expected: &str,
    roots: &Roots,
) -> DialError {
    let endpoint = config.endpoint.clone();
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => DialError::Untrusted {
            endpoint,
            root_cert: config.root_cert.clone(),
            trusted: roots.subjects().join("; "),
        },
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidForName)) => {
            DialError::OtherName {
                endpoint,
                expected: expected.to_owned(),
                found: "another name".to_owned(),
            }
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        })) => DialError::OtherName {
            endpoint,
            expected: expected.to_owned(),
            found: presented
                .iter()
                .take(SHOWN_NAMES)
                .map(|name| bare_name(name))
                .collect::<Vec<_>>()
                .join(", "),
        },
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time,
            not_before,
        })) => DialError::Clock {
            endpoint,
            validity: format!("is valid only from {}", at(*not_before)),
            now: at(*time),
        },
        Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            time,
            not_after,
        })) => DialError::Clock {
            endpoint,
            validity: format!("expired at {}", at(*not_after)),
            now: at(*time),
        },
        _ => DialError::Tls { endpoint, source: error },
    }
}

/// A name as rustls shows it, `DnsName("istiod.istio-system.svc")`, without what is around it.
fn bare_name(shown: &str) -> &str {
    shown.split('"').nth(1).unwrap_or(shown)
}

fn at(time: UnixTime) -> String {
    rfc3339(from_unix_seconds(time.as_secs()))
}

/// Names of a server certificate that an error quotes.
const SHOWN_NAMES: usize = 10;
