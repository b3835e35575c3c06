//! The stream of a Workload API (SPIFFE Workload API, 5 and 6).

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status, Streaming};

use super::Socket;
use crate::base::backoff::Retry;
use crate::proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::proto::spiffe::{X509svidRequest, X509svidResponse};

/// Why there is no stream, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadApiError {
    /// Nobody listens there.
    #[error("cannot connect to the SPIFFE Workload API at {socket}")]
    Connect {
        /// The socket.
        socket: Socket,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no HTTP/2 on it.
    #[error("no HTTP/2 connection to the SPIFFE Workload API at {socket}")]
    Http {
        /// The socket.
        socket: Socket,
        /// What the library said.
        #[source]
        source: tonic::transport::Error,
    },
    /// It did not answer.
    #[error("the SPIFFE Workload API at {socket} did not answer within {limit:?}")]
    Late {
        /// The socket.
        socket: Socket,
        /// The limit.
        limit: Duration,
    },
    /// It said no, or stopped.
    #[error("the SPIFFE Workload API at {socket} refused: {message} ({code:?})")]
    Refused {
        /// The socket.
        socket: Socket,
        /// Its gRPC status code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// It ended the stream.
    #[error("the SPIFFE Workload API at {socket} ended the stream")]
    Ended {
        /// The socket.
        socket: Socket,
    },
}

impl WorkloadApiError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            // A SPIFFE agent learns of a new entry some seconds after the server.
            Self::Refused { code: Code::PermissionDenied, .. } => Retry::Soon,
            Self::Refused { code: Code::InvalidArgument | Code::Unimplemented, .. } => Retry::Later,
            _ => Retry::Soon,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect { .. } | Self::Http { .. } | Self::Late { .. } => {
                "check identity.spiffeSocket, and that the SPIFFE agent runs"
            }
            Self::Refused { code: Code::PermissionDenied, .. } => {
                "the SPIFFE agent knows no identity for this program: register one for the user \
                 that it runs as (`spire-server entry create … -selector unix:uid:0`)"
            }
            Self::Refused { .. } | Self::Ended { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// An open stream.
pub struct Updates {
    socket: Socket,
    stream: Streaming<X509svidResponse>,
    /// Whether the first answer, which has to come at once, is still to come.
    is_new: bool,
}

impl Updates {
    /// Opens a stream of our certificates.
    ///
    /// # Errors
    /// When nobody is there, or it refuses.
    pub async fn open(socket: &Socket) -> Result<Self, WorkloadApiError> {
        let late = |_| WorkloadApiError::Late { socket: socket.clone(), limit: STEP_LIMIT };
        let connected = timeout(STEP_LIMIT, UnixStream::connect(socket.path())).await;
        let connected = connected.map_err(late)?;
        let connected = connected
            .map_err(|source| WorkloadApiError::Connect { socket: socket.clone(), source })?;
        let mut once = Some(TokioIo::new(connected));
        let connector = tower::service_fn(move |_| {
            std::future::ready(
                once.take().ok_or_else(|| io::Error::other("the connection was lost")),
            )
        });
        let http = |source| WorkloadApiError::Http { socket: socket.clone(), source };
        // The name is for the request's `:authority`; the socket's path would be refused there.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector);
        let channel = timeout(STEP_LIMIT, channel).await.map_err(late)?.map_err(http)?;
        let mut request = Request::new(X509svidRequest {});
        // Without it a Workload API refuses, so that no browser can be made to ask.
        let header = MetadataValue::from_static("true");
        request.metadata_mut().insert("workload.spiffe.io", header);
        let mut client =
            SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        let stream = timeout(STEP_LIMIT, client.fetch_x509svid(request)).await.map_err(late)?;
        let stream = stream.map_err(|status| refused(socket, &status))?.into_inner();
        Ok(Self { socket: socket.clone(), stream, is_new: true })
    }

    /// The next push. It can be dropped and called again.
    ///
    /// # Errors
    /// When the stream is over; open another one then.
    pub async fn next(&mut self) -> Result<X509svidResponse, WorkloadApiError> {
        let message = self.stream.message();
        let message = if self.is_new {
            let late =
                |_| WorkloadApiError::Late { socket: self.socket.clone(), limit: STEP_LIMIT };
            timeout(STEP_LIMIT, message).await.map_err(late)?
        } else {
            message.await
        };
        self.is_new = false;
        match message {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(WorkloadApiError::Ended { socket: self.socket.clone() }),
            Err(status) => Err(refused(&self.socket, &status)),
        }
    }
}

fn refused(socket: &Socket, status: &Status) -> WorkloadApiError {
    WorkloadApiError::Refused {
        socket: socket.clone(),
        code: status.code(),
        message: status.message().chars().take(MESSAGE_CHARS).collect(),
    }
}

/// It is a program on this machine.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Some certificates with their roots are some kilobytes.
const ANSWER_BYTES: usize = 4 << 20;
/// What an error quotes of its words.
const MESSAGE_CHARS: usize = 500;
