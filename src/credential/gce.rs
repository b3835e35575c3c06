//! Google's metadata server: identity tokens of the machine's own service account
//! (<https://cloud.google.com/compute/docs/instances/verifying-instance-identity>).

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Token, TokenError};
use crate::base::backoff::Retry;

/// The metadata server made no token.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// It cannot be reached, or hung up.
    #[error("cannot ask the metadata server at {address}")]
    Transport {
        /// Its address.
        address: Authority,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not answer.
    #[error("the metadata server at {address} did not answer within {limit:?}")]
    Late {
        /// Its address.
        address: Authority,
        /// The limit.
        limit: Duration,
    },
    /// It said no.
    #[error("the metadata server at {address} answered {status}")]
    Refused {
        /// Its address.
        address: Authority,
        /// The HTTP status.
        status: StatusCode,
    },
    /// Who answers there is somebody else.
    #[error("what answers at {address} is not Google's metadata server")]
    Stranger {
        /// The address.
        address: Authority,
    },
    /// The answer is no token.
    #[error("the metadata server at {address} answered with something else than a token")]
    Rubbish {
        /// Its address.
        address: Authority,
        /// What is wrong with it.
        #[source]
        source: TokenError,
    },
}

impl MetadataError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Transport { .. } | Self::Late { .. } => Retry::Soon,
            Self::Refused { status, .. } if status.is_server_error() => Retry::Soon,
            Self::Refused { .. } | Self::Stranger { .. } | Self::Rubbish { .. } => Retry::Later,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Refused { status: StatusCode::NOT_FOUND, .. } => {
                "attach a service account to this instance: without one it has no identity token"
            }
            Self::Refused { .. } => return None,
            _ => {
                "credential.platform is for machines of Google Compute Engine; leave it out on others"
            }
        };
        Some(hint.to_owned())
    }
}

/// A metadata server.
pub(super) struct Gce {
    pub(super) address: Authority,
}

impl Gce {
    /// A token with this audience.
    pub(super) async fn obtain(&self, audience: &str) -> Result<Token, MetadataError> {
        let address = || self.address.clone();
        let answer = match timeout(LIMIT, self.ask(audience)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => {
                return Err(MetadataError::Transport { address: address(), source });
            }
            Err(_) => return Err(MetadataError::Late { address: address(), limit: LIMIT }),
        };
        if !answer.is_metadata {
            return Err(MetadataError::Stranger { address: address() });
        }
        if answer.status != StatusCode::OK {
            return Err(MetadataError::Refused { address: address(), status: answer.status });
        }
        let text = std::str::from_utf8(&answer.body).unwrap_or_default();
        Token::parse(text).map_err(|source| MetadataError::Rubbish { address: address(), source })
    }

    async fn ask(&self, audience: &str) -> io::Result<Answer> {
        let port = self.address.port_u16().unwrap_or(80);
        let stream = TcpStream::connect((self.address.host(), port)).await?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(io::Error::other)?;
        let request = Request::get(format!("{PATH}?audience={}&format=full", encoded(audience)))
            .header(header::HOST, self.address.as_str())
            .header(header::CONNECTION, "close")
            .header(FLAVOR, "Google")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let talk = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            let is_metadata = response.headers().get(FLAVOR).is_some_and(|who| who == "Google");
            let body = Limited::new(response.into_body(), BODY_BYTES).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            Ok(Answer { status, is_metadata, body })
        };
        // The connection has to be driven while we wait; whichever ends first, the answer counts.
        let mut talk = std::pin::pin!(talk);
        tokio::select! {
            answer = &mut talk => answer,
            ended = connection => {
                ended.map_err(io::Error::other)?;
                talk.await
            }
        }
    }
}

struct Answer {
    status: StatusCode,
    is_metadata: bool,
    body: Bytes,
}

/// A query's value (RFC 3986): all but the unreserved characters in percent form.
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

const PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/identity";
/// On both sides: who asks without it is a victim of somebody else, who answers without it is not
/// Google's.
const FLAVOR: &str = "metadata-flavor";
/// It is on the same host.
const LIMIT: Duration = Duration::from_secs(5);
/// Tokens are one or two kilobytes.
const BODY_BYTES: usize = 64 << 10;
