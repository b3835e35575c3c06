//! Talks to a cloud's metadata service: one small question at a time, straight to its address
//! (no proxy, no redirection), with a bound for what comes back.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Response;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::base::backoff::Retry;

/// Why a cloud told nothing.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// It took too long.
    #[error("the metadata service at {address} did not answer within {limit:?}")]
    Silent {
        /// Its address.
        address: SocketAddr,
        /// How long it had.
        limit: Duration,
    },
    /// Nobody is there, or the connection broke.
    #[error("cannot ask the metadata service at {address}")]
    Unreachable {
        /// Its address.
        address: SocketAddr,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It will not tell.
    #[error("the metadata service at {address} refused {path} with HTTP {code}")]
    Refused {
        /// Its address.
        address: SocketAddr,
        /// What was asked for.
        path: String,
        /// The status.
        code: u16,
    },
    /// Its answer is none that this cloud gives.
    #[error("what answers at {address} is not the metadata service of {cloud}: {path} has {what}")]
    Rubbish {
        /// Its address.
        address: SocketAddr,
        /// Whose answer was expected.
        cloud: &'static str,
        /// What was asked for.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl MetadataError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Silent { .. } | Self::Unreachable { .. } => Retry::Soon,
            // Google's and Azure's say so when they are busy.
            Self::Refused { code, .. } if *code == 429 || *code >= 500 => Retry::Soon,
            Self::Refused { .. } | Self::Rubbish { .. } => Retry::Later,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let words = match self {
            Self::Silent { .. } => {
                "see that no firewall rule keeps the agent from it, and on AWS that the instance's \
                 hop limit lets the answer through; or set workload.facts.source to none"
            }
            Self::Refused { code: 401 | 403, .. } => {
                "turn on the instance's metadata service (on AWS: HttpEndpoint), or set \
                 workload.facts.source to none"
            }
            Self::Unreachable { .. } | Self::Refused { .. } => return None,
            Self::Rubbish { .. } => "see workload.facts.source and workload.facts.address",
        };
        Some(words.to_owned())
    }
}

/// A metadata service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) address: SocketAddr,
    pub(super) cloud: &'static str,
}

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(HeaderName, HeaderValue)],
}

/// What came back.
pub(super) struct Answer {
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
}

impl Service {
    /// Asks one question; `None` where there is no such thing. Callers set the limit of time.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
    ) -> Result<Option<Answer>, MetadataError> {
        let unreachable = |source| MetadataError::Unreachable { address: self.address, source };
        let stream = TcpStream::connect(self.address).await.map_err(unreachable)?;
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_headers(HEADERS).max_buf_size(HEAD);
        let made = builder.handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = made.map_err(|e| unreachable(io::Error::other(e)))?;
        let request = self.request(question).map_err(|e| unreachable(io::Error::other(e)))?;
        let answer = async {
            let response = sender.send_request(request).await;
            let response = response.map_err(|e| unreachable(io::Error::other(e)))?;
            self.read(question, response).await
        };
        let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    }

    /// An answer that is not what it should be.
    pub(super) fn rubbish(&self, path: &str, what: &'static str) -> MetadataError {
        let (address, cloud) = (self.address, self.cloud);
        MetadataError::Rubbish { address, cloud, path: path.to_owned(), what }
    }

    fn request(&self, question: &Question<'_>) -> Result<Request<Empty<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(question.method.clone())
            .uri(question.path)
            .header(header::HOST, self.address.to_string())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONNECTION, "close");
        // hyper says nothing of the length where there is no body; some servers want it for PUT.
        if question.method == Method::PUT {
            request = request.header(header::CONTENT_LENGTH, "0");
        }
        for (name, value) in question.headers {
            request = request.header(name, value);
        }
        request.body(Empty::new())
    }

    async fn read(
        &self,
        question: &Question<'_>,
        response: Response<Incoming>,
    ) -> Result<Option<Answer>, MetadataError> {
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::NOT_FOUND => return Ok(None),
            // A redirection leads elsewhere than to the metadata service.
            code if code != StatusCode::OK => {
                let (address, path) = (self.address, question.path.to_owned());
                return Err(MetadataError::Refused { address, path, code: code.as_u16() });
            }
            _ => {}
        }
        let body = Limited::new(body, BODY).collect().await;
        let body = body.map_err(|_| self.rubbish(question.path, "a body that is too large"))?;
        Ok(Some(Answer { headers: head.headers, body: body.to_bytes() }))
    }
}

/// A text as one segment of a path (RFC 3986).
pub(super) fn segment(text: &str) -> String {
    let mut path = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:@+=,".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

const USER_AGENT: &str = concat!("vm-agent/", env!("CARGO_PKG_VERSION"));
const HEADERS: usize = 100;
const HEAD: usize = 64 * 1024;
/// Azure's description of a machine is the largest answer, with some ten kilobytes.
const BODY: usize = 256 * 1024;
