//! The life of one of the proxy's streams: messages both ways, neither ever blocking the other.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::intercept::{self, Flavour, Kind};
use super::scan;
use super::upstream::{Shared, StreamError};
use crate::controlplane::Connection;

/// One stream of the proxy.
pub(super) struct Exchange {
    pub(super) shared: Arc<Shared>,
    pub(super) flavour: Flavour,
    pub(super) requests: Streaming<Bytes>,
    pub(super) responses: mpsc::Sender<Result<Bytes, Status>>,
    /// Requests before istiod's first answer, to be sent again on another connection.
    pub(super) early: Vec<Bytes>,
}

/// How a stream to istiod ended.
enum End {
    /// The proxy went away.
    Proxy,
    /// istiod did, before or after its first answer.
    Istiod { error: StreamError, established: bool },
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<Bytes>, Status>> + Send>>;

/// The stream to istiod, which does not exist before its first answer.
enum Upstream {
    Opening(Opening),
    Open(Streaming<Bytes>),
}

impl Exchange {
    /// Relays until the proxy goes away or another stream of it takes over.
    pub(super) async fn run(mut self) {
        let replaced = self.shared.take_over();
        let responses = self.responses.clone();
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            () = self.relay() => {}
            () = responses.closed() => shared.state.idle(),
            () = replaced.cancelled() => {
                drop(responses.try_send(Err(Status::aborted("another stream took over"))));
            }
        }
    }

    async fn relay(&mut self) {
        loop {
            let connection = self.shared.connect().await;
            match self.converse(connection).await {
                End::Proxy => return self.shared.state.idle(),
                End::Istiod { error, established } => {
                    self.shared.pause_after(&error, established).await;
                    if established {
                        return self.hand_over().await;
                    }
                }
            }
        }
    }

    /// Ends the proxy's stream, once a connection stands for its next one.
    async fn hand_over(&mut self) {
        let connection = self.shared.connect().await;
        self.shared.keep(connection);
        let status = Status::unavailable("istiod's stream ended; subscribe again");
        drop(self.responses.send(Err(status)).await);
    }

    async fn converse(&mut self, connection: Connection) -> End {
        let (to_istiod, requests) = mpsc::channel(QUEUE);
        let opening = match self.shared.open(&connection, self.flavour, requests) {
            Ok(opening) => opening,
            Err(error) => return End::Istiod { error, established: false },
        };
        let mut talk = Talk {
            peer: connection.peer.to_string(),
            upstream: Upstream::Opening(Box::pin(opening)),
            to_istiod,
            outgoing: self.early.iter().cloned().collect(),
            incoming: None,
            established: false,
            listeners_asked: false,
            deadline: None,
        };
        talk.run(self).await
    }
}

/// The conversation on one connection.
struct Talk {
    peer: String,
    upstream: Upstream,
    to_istiod: mpsc::Sender<Bytes>,
    /// Requests that wait for a place in the queue to istiod.
    outgoing: VecDeque<Bytes>,
    /// A response that waits until the proxy reads.
    incoming: Option<Bytes>,
    established: bool,
    listeners_asked: bool,
    deadline: Option<Instant>,
}

impl Talk {
    async fn run(&mut self, exchange: &mut Exchange) -> End {
        let mut health = exchange.shared.inputs.health.clone();
        let (to_istiod, responses) = (self.to_istiod.clone(), exchange.responses.clone());
        self.replay(exchange);
        loop {
            let deadline = self.deadline.filter(|_| !self.established);
            tokio::select! {
                request = exchange.requests.next(), if self.outgoing.is_empty() => match request {
                    Some(Ok(request)) => self.from_proxy(exchange, request),
                    _ => return End::Proxy,
                },
                place = to_istiod.reserve(), if !self.outgoing.is_empty() => {
                    if let (Ok(place), Some(next)) = (place, self.outgoing.pop_front()) {
                        place.send(next);
                    } else {
                        // istiod's side is gone; its status arrives on the other arm.
                        self.outgoing.clear();
                    }
                },
                message = next_message(&mut self.upstream), if self.incoming.is_none() => {
                    if let Err(error) = self.from_istiod(exchange, message) {
                        return End::Istiod { error, established: self.established };
                    }
                },
                place = responses.reserve(), if self.incoming.is_some() => {
                    let Ok(place) = place else { return End::Proxy };
                    if let Some(response) = self.incoming.take() {
                        place.send(Ok(response));
                    }
                },
                Ok(()) = health.changed(), if self.listeners_asked => self.tell_health(exchange),
                () = until(deadline) => {
                    let error = StreamError::Silent { limit: FIRST_ANSWER };
                    return End::Istiod { error, established: false };
                },
            }
        }
    }

    /// What the proxy asked before goes out again, and so do our own requests after it.
    fn replay(&mut self, exchange: &Exchange) {
        if !exchange.early.is_empty() {
            self.deadline = Some(Instant::now() + FIRST_ANSWER);
        }
        let asks = |request: &Bytes| {
            scan::request(exchange.flavour, request).type_url == intercept::LISTENERS
        };
        if exchange.early.iter().any(asks) {
            self.add_ours(exchange);
        }
    }

    fn from_proxy(&mut self, exchange: &mut Exchange, request: Bytes) {
        let outline = scan::request(exchange.flavour, &request);
        exchange.shared.state.request(&outline);
        if let Some(words) = outline.refusal {
            let words: String = words.chars().take(WORDS).collect();
            tracing::warn!(type_url = outline.type_url, words, "The proxy refused configuration.");
        }
        let asks_listeners = outline.type_url == intercept::LISTENERS;
        if !self.established && exchange.early.len() < EARLY {
            exchange.early.push(request.clone());
        }
        self.deadline.get_or_insert_with(|| Instant::now() + FIRST_ANSWER);
        self.outgoing.push_back(request);
        if asks_listeners && !self.listeners_asked {
            self.add_ours(exchange);
        }
    }

    /// istiod ignores what comes before the proxy's own first request, which carries the node.
    fn add_ours(&mut self, exchange: &Exchange) {
        self.listeners_asked = true;
        if exchange.shared.config.name_table {
            self.outgoing.push_back(intercept::subscribe(exchange.flavour, intercept::NAMES));
        }
        self.tell_health(exchange);
    }

    fn tell_health(&mut self, exchange: &Exchange) {
        if let Some(health) = exchange.shared.inputs.health.borrow().as_ref() {
            self.outgoing.push_back(intercept::health(exchange.flavour, health));
        }
    }

    fn from_istiod(
        &mut self,
        exchange: &mut Exchange,
        message: Result<Option<Bytes>, Status>,
    ) -> Result<(), StreamError> {
        let message = message.map_err(|status| StreamError::ended(&status))?;
        let Some(message) = message else { return Ok(()) };
        if !self.established {
            self.established = true;
            exchange.early = Vec::new();
            exchange.shared.answered(self.peer.clone());
            tracing::info!(istiod = self.peer, "istiod gives configuration.");
        }
        exchange.shared.state.response();
        let outline = scan::response(&message);
        match intercept::kind(outline.type_url) {
            Kind::Proxy => self.incoming = Some(message),
            Kind::Names => {
                let (table, answer) = intercept::name_table(exchange.flavour, &message, &outline);
                if let Some(table) = table {
                    exchange.shared.names.send_replace(Some(Arc::new(table)));
                }
                self.outgoing.push_back(answer);
            }
            Kind::Foreign => {
                tracing::debug!(type_url = outline.type_url, "Dropped a response for nobody here.");
            }
        }
        Ok(())
    }
}

/// The next message; `None` inside when the stream has only just been opened.
async fn next_message(upstream: &mut Upstream) -> Result<Option<Bytes>, Status> {
    match upstream {
        Upstream::Opening(opening) => {
            let stream = opening.await?;
            *upstream = Upstream::Open(stream);
            Ok(None)
        }
        Upstream::Open(stream) => match stream.next().await {
            Some(message) => message.map(Some),
            None => Err(Status::unavailable("the stream was closed")),
        },
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Requests in flight to istiod. Beyond it the proxy waits, and responses still flow.
const QUEUE: usize = 256;
/// Before the first answer the proxy asks for clusters and listeners, and little more.
const EARLY: usize = 64;
/// A large mesh takes seconds to compute; a hung istiod takes for ever.
const FIRST_ANSWER: Duration = Duration::from_secs(45);
/// What the log shows of the proxy's words.
const WORDS: usize = 1000;
