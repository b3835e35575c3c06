//! Connections to istiod, and how a stream on one is opened.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::uri::PathAndQuery;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::{Request, Status, Streaming};

use super::codec::Opaque;
use super::intercept::Flavour;
use super::state::State;
use super::{Config, Inputs};
use crate::base::backoff::{Backoff, Retry};
use crate::base::clock::SharedClock;
use crate::base::trouble::Trouble;
use crate::controlplane::{Connection, DialError, Dialer, TokenError};
use crate::proto::nds::NameTable;

/// What all streams share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) inputs: Inputs,
    pub(super) state: State,
    pub(super) names: watch::Sender<Option<Arc<NameTable>>>,
    dialer: Dialer,
    backoff: Mutex<Backoff>,
    /// Dialled while the proxy's last stream was held; its next one gets it.
    spare: Mutex<Option<Connection>>,
    /// The stream that lives; a new one ends it.
    current: Mutex<CancellationToken>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("no connection to istiod")]
    Dial(#[from] DialError),
    #[error("cannot authenticate to istiod")]
    Token(#[from] TokenError),
    #[error("istiod ended the configuration stream: {message} ({code:?})")]
    Ended { code: tonic::Code, message: String },
    #[error("istiod did not answer the first configuration request within {limit:?}")]
    Silent { limit: Duration },
}

impl Shared {
    pub(super) fn new(config: Config, dialer: Dialer, inputs: Inputs, clock: SharedClock) -> Self {
        Self {
            config,
            inputs,
            state: State::new(clock),
            names: watch::Sender::new(None),
            dialer,
            backoff: Mutex::new(Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)),
            spare: Mutex::new(None),
            current: Mutex::new(CancellationToken::new()),
        }
    }

    /// Makes the caller the only stream; the token ends when another one comes.
    pub(super) fn take_over(&self) -> CancellationToken {
        let token = CancellationToken::new();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, token.clone()).cancel();
        token
    }

    /// A connection, however long it takes.
    pub(super) async fn connect(&self) -> Connection {
        let mut admission = self.inputs.admission.clone();
        // The agent keeps the other end as long as it runs.
        drop(admission.wait_for(|admitted| *admitted).await);
        loop {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(spare) = spare {
                return spare;
            }
            self.state.connecting();
            match self.dialer.dial().await {
                Ok(connection) => return connection,
                Err(error) => self.pause_after(&StreamError::Dial(error), false).await,
            }
        }
    }

    pub(super) fn keep(&self, connection: Connection) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }

    /// istiod answered: the next failure starts with a short pause again.
    pub(super) fn answered(&self, peer: String) {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner).reset();
        self.state.connected(peer);
    }

    /// Reports a failure and waits as long as it deserves.
    pub(super) async fn pause_after(&self, error: &StreamError, established: bool) {
        let delay = {
            let mut backoff = self.backoff.lock().unwrap_or_else(PoisonError::into_inner);
            backoff.delay_for(error.retry())
        };
        self.state.lost(established, |now| error.trouble(now));
        let reason = crate::base::trouble::chain(error);
        // istiod ends streams every half hour to spread its load: that is no reason for alarm.
        if established {
            tracing::info!(reason, retry_in = ?delay, "The stream to istiod ended.");
        } else {
            tracing::warn!(reason, retry_in = ?delay, "istiod gives no configuration.");
        }
        tokio::time::sleep(delay).await;
    }

    /// Opens a stream. The future ends when istiod sends its first headers, which it does with its
    /// first answer: requests have to flow meanwhile.
    pub(super) fn open(
        &self,
        connection: &Connection,
        flavour: Flavour,
        requests: mpsc::Receiver<Bytes>,
    ) -> Result<impl Future<Output = Result<Streaming<Bytes>, Status>> + Send + 'static, StreamError>
    {
        let mut request = Request::new(ReceiverStream::new(requests));
        *request.metadata_mut() = self.dialer.headers(connection.with_certificate)?;
        let mut client = Grpc::new(connection.channel.clone())
            .max_decoding_message_size(RESPONSE_BYTES)
            .max_encoding_message_size(RESPONSE_BYTES);
        Ok(async move {
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::from_static(flavour.path());
            Ok(client.streaming(request, path, Opaque).await?.into_inner())
        })
    }
}

impl StreamError {
    pub(super) fn ended(status: &Status) -> Self {
        let message = status.message().chars().take(MESSAGE_CHARS).collect();
        Self::Ended { code: status.code(), message }
    }

    /// Whether it can pass by itself.
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::Dial(error) => error.retry(),
            Self::Token(_) => Retry::Later,
            Self::Silent { .. } => Retry::Soon,
            Self::Ended { code, .. } => match code {
                tonic::Code::FailedPrecondition
                | tonic::Code::InvalidArgument
                | tonic::Code::PermissionDenied
                | tonic::Code::Unauthenticated
                | tonic::Code::NotFound => Retry::Later,
                _ => Retry::Soon,
            },
        }
    }

    fn trouble(&self, now: SystemTime) -> Trouble {
        Trouble::new(self, self.hint(), self.retry(), now)
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Dial(error) => return error.hint(),
            Self::Token(error) => return error.hint(),
            Self::Silent { .. } => "look at istiod's log; it may be overloaded",
            Self::Ended { code, message } => match code {
                tonic::Code::FailedPrecondition if message.contains("WorkloadGroup") => {
                    "create the WorkloadGroup (`kubectl get workloadgroup -n NAMESPACE`), or set \
                     workload.group and workload.namespace to one that exists"
                }
                tonic::Code::PermissionDenied => {
                    "the identity must have the namespace and service account of the workload: \
                     check workload.namespace and workload.serviceAccount"
                }
                tonic::Code::Unauthenticated => {
                    "istiod does not accept our certificate or token: check mesh.clusterId, and \
                     join again with a new token"
                }
                _ => return None,
            },
        };
        Some(hint.to_owned())
    }
}

/// The first pause after a failure, and the longest one for failures that pass by themselves:
/// recovery within seconds of istiod's return.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// A full push of a very large mesh, in one message.
const RESPONSE_BYTES: usize = 512 << 20;
/// What an error quotes of the server's words.
const MESSAGE_CHARS: usize = 500;
