//! The line to the control plane as the relay sees it, and what can go wrong on it.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tonic::Code;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::base::backoff::Retry;
use crate::controlplane::Dialer;

/// Where connections to the control plane come from.
pub trait Upstream: Send + Sync + 'static {
    /// A new connection.
    fn dial(&self) -> impl Future<Output = Result<Line, DialFailure>> + Send;

    /// What authenticates a new stream on this connection.
    ///
    /// # Errors
    /// When there is nothing to authenticate with.
    fn headers(&self, line: &Line)
    -> impl Future<Output = Result<MetadataMap, DialFailure>> + Send;
}

/// One connection to the control plane.
#[derive(Clone, Debug)]
pub struct Line {
    /// What carries the stream.
    pub channel: Channel,
    /// The address on the other end, for people.
    pub peer: String,
    /// True when our certificate was offered in the handshake.
    pub with_certificate: bool,
}

/// Why there is no connection, or nothing to authenticate with on it.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a stream to the control plane")]
pub struct DialFailure {
    /// What went wrong.
    #[source]
    pub cause: Box<dyn Error + Send + Sync>,
    /// Whether it passes by itself.
    pub retry: Retry,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Upstream for Dialer {
    async fn dial(&self) -> Result<Line, DialFailure> {
        match Self::dial(self).await {
            Ok(connection) => Ok(Line {
                channel: connection.channel,
                peer: connection.peer.to_string(),
                with_certificate: connection.with_certificate,
            }),
            Err(error) => {
                let (retry, hint) = (error.retry(), error.hint());
                Err(DialFailure { cause: error.into(), retry, hint })
            }
        }
    }

    async fn headers(&self, line: &Line) -> Result<MetadataMap, DialFailure> {
        match Self::headers(self, line.with_certificate).await {
            Ok(headers) => Ok(headers.metadata),
            Err(error) => {
                let (retry, hint) = (error.retry(), error.hint());
                Err(DialFailure { cause: error.into(), retry, hint })
            }
        }
    }
}

/// Why a try to relay a stream ended on the upstream side.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("istiod ended the stream: {message} ({code:?})")]
    Ended { code: Code, message: String },
    #[error(transparent)]
    Dial(#[from] DialFailure),
    #[error("istiod refused the stream: {message} ({code:?})")]
    Refused { code: Code, message: String },
    #[error("istiod does not answer: no response within {limit:?} of the first request")]
    Silent { limit: Duration },
}

impl StreamError {
    /// True when a connection that had been waiting may simply have been dead.
    pub(super) fn is_dead_line(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code != Code::ResourceExhausted)
            && self.retry() == Retry::Soon
    }

    /// Whether waiting alone can help.
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::Dial(failure) => failure.retry,
            Self::Refused { code, .. } => match code {
                Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::NotFound
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented => Retry::Later,
                _ => Retry::Soon,
            },
            Self::Ended { .. } | Self::Silent { .. } => Retry::Soon,
        }
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Dial(failure) => return failure.hint.clone(),
            Self::Ended { .. } => return None,
            Self::Refused { code, message } => refusal_hint(*code, message)?,
            Self::Silent { .. } => {
                "Look whether istiod is overloaded and whether something between here and istiod \
                 holds back HTTP/2 streams."
            }
        };
        Some(hint.to_owned())
    }
}

fn refusal_hint(code: Code, message: &str) -> Option<&'static str> {
    match code {
        // The text only makes the hint better; nothing depends on it.
        Code::FailedPrecondition if message.contains("WorkloadGroup") => Some(
            "Create the WorkloadGroup in the workload's namespace, or correct workload.group and \
             workload.namespace.",
        ),
        Code::FailedPrecondition => Some(
            "Look at istiod's log for why it cannot register this workload, and whether \
             auto-registration is on.",
        ),
        Code::InvalidArgument => {
            Some("istiod does not understand what Envoy told of itself; look at istiod's log.")
        }
        Code::PermissionDenied => Some(
            "workload.namespace and workload.serviceAccount must be those for which the token or \
             certificate was issued.",
        ),
        Code::Unauthenticated => Some(TOKEN_HINT),
        Code::Unimplemented | Code::NotFound => {
            Some("The answer is not istiod's: look at mesh.discoveryAddress and mesh.connectTo.")
        }
        _ => None,
    }
}

const TOKEN_HINT: &str = "istiod accepts neither our certificate nor our token: look at the \
                          credential in `vm-agent status`, and at mesh.clusterId.";
