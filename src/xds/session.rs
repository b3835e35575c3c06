//! One stream of Envoy: it is held open while the upstream side is found, lost and found again.

use std::future::ready;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::debug;

use super::exchange::{End, exchange};
use super::requests::Requests;
use super::shared::Shared;
use super::state::Phase;
use super::upstream::{DialFailure, Line, Upstream};
use super::wire::Flavour;
use crate::base::backoff::Retry;
use crate::base::trouble::chain;

/// One stream of Envoy.
pub(super) struct Session<U> {
    pub(super) shared: Arc<Shared<U>>,
    pub(super) flavour: Flavour,
    /// Its number among Envoy's streams.
    pub(super) number: u64,
    pub(super) to_envoy: mpsc::Sender<Bytes>,
    /// Fires when a newer stream has taken its place.
    pub(super) replaced: CancellationToken,
}

impl<U: Upstream> Session<U> {
    /// Serves the stream to its end and tells Envoy the status.
    pub(super) async fn run(self, mut requests: Requests, end: oneshot::Sender<Status>) {
        let status = tokio::select! {
            () = self.replaced.cancelled() => Status::aborted("a newer stream replaces this one"),
            () = self.to_envoy.closed() => Status::cancelled("Envoy has left"),
            status = self.drive(&mut requests) => status,
        };
        debug!(code = ?status.code(), reason = status.message(), "Envoy's stream ends.");
        self.shared.leave(self.number);
        // Nobody takes it when Envoy has left.
        drop(end.send(status));
    }

    /// Relays over one connection after the other until Envoy's stream has to end.
    async fn drive(&self, requests: &mut Requests) -> Status {
        loop {
            self.admission().await;
            let spare = self.shared.take_spare();
            let was_spare = spare.is_some();
            let line = match spare {
                Some(line) => line,
                None => self.dial().await,
            };
            let since = Instant::now();
            match exchange(self, line, requests).await {
                End::Envoy(status) => return status,
                End::Renewed { answered: false } if requests.can_repeat() => {}
                End::Renewed { .. } => {
                    debug!("Istiod shall look at this machine anew, in a new stream.");
                    if self.shared.has_spare() {
                        return Status::ok("");
                    }
                    return self.prepare_return().await;
                }
                End::Upstream { error, answered: true } => {
                    self.shared.lived(since.elapsed());
                    self.shared.ledger.count(|state| state.terminations += 1);
                    self.shared.failed(self.number, &error);
                    return self.prepare_return().await;
                }
                End::Upstream { error, .. } if was_spare && error.is_dead_line() => {
                    debug!(%error, "The waiting connection was dead; dialling again.");
                }
                End::Upstream { error, .. } => {
                    self.shared.ledger.count(|state| state.failures += 1);
                    self.shared.failed(self.number, &error);
                    if !requests.can_repeat() {
                        return self.prepare_return().await;
                    }
                }
            }
        }
    }

    /// Holds Envoy's stream until a connection waits for its next one.
    async fn prepare_return(&self) -> Status {
        let line = self.dial().await;
        self.shared.keep(line);
        Status::ok("")
    }

    /// Waits until istiod may be called. That may take days: there is no line until then.
    async fn admission(&self) {
        let mut admitted = pin!(self.shared.admitted());
        tokio::select! {
            biased;
            () = &mut admitted => return,
            () = ready(()) => {}
        }
        self.shared.report(self.number, |ledger| ledger.enter(Phase::Idle));
        admitted.await;
    }

    /// A new connection, as soon as it may be and can be made.
    async fn dial(&self) -> Line {
        loop {
            self.shared.due().await;
            self.admission().await;
            self.shared.report(self.number, |ledger| ledger.enter_dialling());
            match self.connect().await {
                Ok(line) => return line,
                Err(failure) => self.shared.failed(self.number, &failure.into()),
            }
        }
    }

    /// Makes a connection for Envoy's next stream while this one is in use. False when there is
    /// none.
    pub(super) async fn make_spare(&self) -> bool {
        match self.connect().await {
            Ok(line) => {
                self.shared.keep(line);
                true
            }
            Err(failure) => {
                debug!(error = chain(&failure), "No connection to spare.");
                false
            }
        }
    }

    async fn connect(&self) -> Result<Line, DialFailure> {
        let dialled = timeout(DIAL_LIMIT, self.shared.upstream.dial()).await;
        let dialled = dialled.unwrap_or_else(too_slow);
        self.shared.ledger.count(|state| match &dialled {
            Ok(line) => {
                state.connections += 1;
                state.peer = Some(line.peer.clone());
            }
            Err(_) => state.failures += 1,
        });
        dialled
    }
}

fn too_slow(_: tokio::time::error::Elapsed) -> Result<Line, DialFailure> {
    let why = format!("no connection within {DIAL_LIMIT:?}");
    let cause = io::Error::new(io::ErrorKind::TimedOut, why).into();
    Err(DialFailure { cause, retry: Retry::Soon, hint: None })
}

/// The dialler limits each of its steps; this is for all of them together.
const DIAL_LIMIT: Duration = Duration::from_secs(60);
