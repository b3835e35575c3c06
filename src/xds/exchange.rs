//! One try: Envoy's stream relayed over one connection, in both directions at once. It never
//! decides whether there is another try.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderValue, Method};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::drain_hold;
use super::frames::{Incoming, Outgoing};
use super::node;
use super::progress::Progress;
use super::rejections;
use super::requests::Requests;
use super::session::Session;
use super::upstream::{Line, StreamError, Upstream};
use super::wire::{self, Flavour, Response};
use super::{Claims, Health};
use crate::base::trouble::chain;
use crate::proto::names::Names;
use crate::workload::Workload;

/// How a try ended.
pub(super) enum End {
    /// By Envoy, whose stream is over.
    Envoy(Status),
    /// By us: istiod has to look at this machine anew, with a stream of its own.
    Renewed { answered: bool },
    /// On the side of istiod, before or after its first response.
    Upstream { error: StreamError, answered: bool },
}

/// Relays until one side ends.
pub(super) async fn exchange<U: Upstream>(
    session: &Session<U>,
    line: Line,
    requests: &mut Requests,
) -> End {
    let headers = match session.shared.upstream.headers(&line).await {
        Ok(headers) => headers,
        Err(failure) => return End::Upstream { error: failure.into(), answered: false },
    };
    let (queue, queued) = mpsc::channel(REQUESTS);
    let request = opening(session.flavour, headers, Outgoing::request(queued));
    let (acknowledge, acknowledgements) = watch::channel(None);
    session.shared.ledger.stream_begins();
    let progress = Progress::default();
    let health = session.shared.inputs.health.clone();
    let mut claims = session.shared.inputs.claims.clone();
    let Claims { workload, opening } = claims.borrow_and_update().clone();
    if !opening.is_due() {
        // It came to that while we dialled.
        return End::Renewed { answered: false };
    }
    let convergence = &session.shared.convergence;
    let workload = workload.unwrap_or_else(|| Arc::clone(&session.shared.config.workload));
    let is_healthy = matches!(*health.borrow(), Some(Health::Healthy));
    convergence.begin(session.number, &workload, is_healthy);
    session.shared.drain_hold.begin(is_healthy);
    let up = Upward {
        session,
        queue,
        progress: &progress,
        acknowledgements,
        health,
        workload,
        is_same: true,
        subscribed: false,
        asked_clusters: false,
    };
    let down = Downward {
        session,
        line,
        progress: &progress,
        held: VecDeque::new(),
        acknowledge,
        began: Instant::now(),
    };
    let error = tokio::select! {
        status = up.run(requests) => return End::Envoy(status),
        error = down.run(request) => error,
        error = progress.silence() => error,
        () = rejections::resubscription(session) => {
            return End::Renewed { answered: true };
        }
        () = services_complete(session) => return End::Renewed { answered: true },
        () = spare_ready(session) => return End::Renewed { answered: true },
        () = others(&mut claims) => {
            convergence.entry_changed();
            return End::Renewed { answered: progress.is_answered() };
        }
    };
    End::Upstream { error, answered: progress.is_answered() }
}

/// The request that opens a stream.
fn opening(flavour: Flavour, headers: MetadataMap, messages: Outgoing) -> http::Request<Body> {
    let mut request = http::Request::new(Body::new(messages));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(flavour.path());
    *request.headers_mut() = headers.into_headers();
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request
}

/// Waits until the services that istiod has sent call for a new stream, and has the connection for
/// it made beforehand.
async fn services_complete<U: Upstream>(session: &Session<U>) {
    let Session { shared, number, .. } = session;
    let mut changes = shared.convergence.changes();
    loop {
        changes.borrow_and_update();
        let decision = shared.convergence.decide(*number);
        shared.show_services(*number, decision.report);
        if decision.settled {
            shared.admit_inbound();
        }
        if decision.renew {
            shared.convergence.renewed();
            // Without a connection for the next stream this one is worth more.
            if shared.has_spare() || session.make_spare().await {
                return;
            }
            sleep(NO_SPARE).await;
            continue;
        }
        if !decision.expects_renewal {
            shared.drop_spare();
        }
        let time = async {
            match decision.look_at {
                Some(moment) => sleep_until(moment).await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return pending().await },
            () = time => {}
        }
    }
}

/// Makes a connection whenever a new stream is expected, so that it can be opened at once.
async fn spare_ready<U: Upstream>(session: &Session<U>) {
    let Session { shared, number, .. } = session;
    let mut changes = shared.convergence.changes();
    loop {
        changes.borrow_and_update();
        if shared.convergence.decide(*number).expects_renewal && !shared.has_spare() {
            session.make_spare().await;
        }
        if changes.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Waits for other claims.
async fn others(claims: &mut watch::Receiver<Claims>) {
    if claims.changed().await.is_err() {
        pending().await
    }
}

/// From Envoy to istiod.
struct Upward<'a, U> {
    session: &'a Session<U>,
    queue: mpsc::Sender<Bytes>,
    progress: &'a Progress,
    /// Our own answer; only the newest one counts.
    acknowledgements: watch::Receiver<Option<Bytes>>,
    health: watch::Receiver<Option<Health>>,
    /// Who the machine is. An Envoy that an earlier agent started may say something else.
    workload: Arc<Workload>,
    /// Whether Envoy says it, too.
    is_same: bool,
    /// Whether Envoy has asked for listeners, and we for our own types.
    subscribed: bool,
    /// Whether Envoy has asked for clusters.
    asked_clusters: bool,
}

impl<U: Upstream> Upward<'_, U> {
    /// Passes requests until Envoy ends the stream; waits for ever when istiod has ended it.
    async fn run(mut self, requests: &mut Requests) -> Status {
        for message in requests.opening.clone() {
            self.pass(message).await;
        }
        loop {
            tokio::select! {
                request = requests.next(self.progress) => match request {
                    Ok(Some(message)) => self.pass(message).await,
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                },
                Ok(()) = self.acknowledgements.changed() => {
                    let answer = self.acknowledgements.borrow_and_update().clone();
                    if let Some(answer) = answer {
                        self.send(answer).await;
                    }
                }
                Ok(()) = self.health.changed(), if self.subscribed => self.report_health().await,
            }
        }
    }

    /// Passes a request of Envoy; after the first one for listeners it is our turn.
    async fn pass(&mut self, message: Bytes) {
        let restated = node::restated(self.session.flavour, &message, &self.workload);
        self.is_same &= restated.is_none();
        let is_listeners = match self.session.flavour.request(&message) {
            Ok(request) => {
                self.session.shared.requested(&request);
                if request.type_url == wire::LISTENER && !request.nonce.is_empty() {
                    let Session { shared, number, .. } = self.session;
                    shared.convergence.listeners_acknowledged(*number);
                }
                if request.type_url == wire::CLUSTER && !self.asked_clusters {
                    self.asked_clusters = true;
                    let Session { shared, flavour, number, .. } = self.session;
                    let held = flavour.held_clusters(&message);
                    let is_new = held.is_none();
                    shared.convergence.envoy_asks(*number, *flavour, held, self.is_same);
                    shared.drain_hold.envoy_asks(is_new);
                    if is_new {
                        shared.delay_inbound(START_DELAY).await;
                    }
                }
                request.type_url == wire::LISTENER
            }
            Err(error) => {
                debug!(%error, "A request of Envoy is passed on unread.");
                false
            }
        };
        self.send(restated.unwrap_or(message)).await;
        self.progress.asked.notify_one();
        if is_listeners && !self.subscribed {
            self.subscribed = true;
            if self.session.shared.config.name_table {
                self.send(self.session.flavour.subscription(wire::NAME_TABLE)).await;
            }
            self.report_health().await;
        }
    }

    async fn report_health(&mut self) {
        let Session { shared, flavour, number, .. } = self.session;
        let is_healthy = |now: &Option<Health>| matches!(now, Some(Health::Healthy));
        if is_healthy(&self.health.borrow()) && shared.convergence.makes_endpoint(*number) {
            shared.delay_inbound(REPORT_DELAY).await;
        }
        let Some(now) = self.health.borrow_and_update().clone() else { return };
        shared.drain_hold.told(&now);
        self.send(flavour.health(&now)).await;
        shared.convergence.reported(*number, matches!(now, Health::Healthy));
    }

    async fn send(&self, message: Bytes) {
        if self.queue.send(message).await.is_err() {
            // Istiod's side is over; the other direction knows why.
            pending::<()>().await;
        }
    }
}

/// From istiod to Envoy.
struct Downward<'a, U> {
    session: &'a Session<U>,
    line: Line,
    progress: &'a Progress,
    /// Responses that wait, in their order.
    held: VecDeque<Bytes>,
    acknowledge: watch::Sender<Option<Bytes>>,
    began: Instant,
}

impl<U: Upstream> Downward<'_, U> {
    /// Passes responses until istiod's side is over.
    async fn run(mut self, request: http::Request<Body>) -> StreamError {
        let Err(status) = self.relay(request).await;
        self.error(&status)
    }

    async fn relay(&mut self, request: http::Request<Body>) -> Result<Infallible, Status> {
        let broken = |error: tonic::transport::Error| Status::unavailable(chain(&error));
        let response =
            self.line.channel.ready().await.map_err(broken)?.call(request).await.map_err(broken)?;
        // A stream that is refused at once has its status in the headers.
        if let Some(status) = Status::from_header_map(response.headers()) {
            return Err(status);
        }
        if response.status() != http::StatusCode::OK {
            return Err(Status::unavailable(format!("HTTP status {}", response.status())));
        }
        let mut incoming = Incoming::new(response.into_body(), RESPONSE_LIMIT);
        loop {
            tokio::select! {
                message = incoming.next() => match message? {
                    Some(message) => self.take(message).await,
                    None => break,
                },
                () = self.may_pass(), if !self.held.is_empty() => self.release().await,
            }
        }
        Err(incoming.status().unwrap_or_else(|| Status::unavailable("the connection was closed")))
    }

    fn error(&self, status: &Status) -> StreamError {
        let source = std::error::Error::source(status).map(chain).unwrap_or_default();
        let mut message = status.message().to_owned();
        if message.is_empty() {
            status.code().description().clone_into(&mut message);
        }
        if !source.is_empty() && !message.contains(&source) {
            message = format!("{message}: {source}");
        }
        let message = message.chars().take(REASON_LIMIT).collect();
        let code = status.code();
        if self.progress.is_answered() {
            StreamError::Ended { code, message }
        } else {
            StreamError::Refused { code, message }
        }
    }

    async fn take(&mut self, message: Bytes) {
        let Session { shared, flavour, number, .. } = self.session;
        if !self.progress.answered.swap(true, Ordering::Relaxed) {
            shared.connected(*number, &self.line.peer);
            shared.convergence.answered(*number, self.began.elapsed());
        }
        shared.ledger.count(|state| state.responses += 1);
        match flavour.response(&message) {
            Ok(response) if wire::is_for_envoy(response.type_url) => {
                match response.type_url {
                    wire::CLUSTER => shared.convergence.clusters(*number, *flavour, &message),
                    wire::LISTENER => shared.convergence.listeners(*number),
                    wire::ENDPOINTS => shared.convergence.endpoints(*number, *flavour, &message),
                    _ => {}
                }
                if drain_hold::concerns(response.type_url) {
                    self.hold_or_pass(message).await;
                } else {
                    self.pass(message).await;
                }
            }
            Ok(response) if response.type_url == wire::NAME_TABLE && shared.config.name_table => {
                self.take_name_table(*flavour, &response, &message);
            }
            Ok(response) => debug!(type_url = response.type_url, "Dropped a type not for Envoy."),
            Err(error) => warn!(%error, "Dropped a response of istiod."),
        }
    }

    /// Passes what makes services known, unless Envoy is to keep what it has for a while.
    async fn hold_or_pass(&mut self, message: Bytes) {
        let Session { shared, number, .. } = self.session;
        self.held.push_back(message);
        let holds = shared.drain_hold.holds() || shared.convergence.holds_until(*number).is_some();
        if !holds || self.held.len() > HELD {
            self.release().await;
        } else {
            shared.convergence.held(*number);
        }
    }

    /// Waits until what is held back may pass.
    async fn may_pass(&self) {
        let Session { shared, number, .. } = self.session;
        let mut changes = shared.convergence.changes();
        loop {
            if shared.drain_hold.holds() {
                shared.drain_hold.over().await;
            }
            changes.borrow_and_update();
            let Some(end) = shared.convergence.holds_until(*number) else { return };
            tokio::select! {
                () = sleep_until(end) => {}
                _ = changes.changed() => {}
            }
        }
    }

    async fn release(&mut self) {
        while let Some(message) = self.held.pop_front() {
            self.pass(message).await;
        }
        self.session.shared.convergence.released(self.session.number);
    }

    async fn pass(&self, message: Bytes) {
        if self.session.to_envoy.send(message).await.is_err() {
            // Envoy has left; the session knows.
            pending::<()>().await;
        }
    }

    fn take_name_table(&self, flavour: Flavour, response: &Response<'_>, message: &[u8]) {
        let refusal = match flavour.name_table(message) {
            Ok(Some(table)) => {
                self.publish(table);
                None
            }
            Ok(None) => None,
            Err(error) => {
                warn!(%error, "Refused a name table of istiod; the one before stays.");
                Some(error.to_string())
            }
        };
        self.session.shared.ledger.answered(wire::NAME_TABLE, refusal.as_deref());
        self.acknowledge.send_replace(Some(flavour.answer(wire::NAME_TABLE, response, refusal)));
    }

    fn publish(&self, table: Names) {
        self.session.shared.names.send_if_modified(|names| {
            let changed = names.as_deref() != Some(&table);
            if changed {
                *names = Some(Arc::new(table));
            }
            changed
        });
    }
}

/// Requests that wait for istiod to read them. Envoy answers each response once, so only an
/// istiod that has stopped reading fills this; Envoy then waits by flow control.
const REQUESTS: usize = 1024;
/// The largest response of istiod: far above that of any mesh seen, far below what breaks a host.
const RESPONSE_LIMIT: usize = 256 << 20;
/// How long new inbound connections wait after an Envoy has started, at most: those of callers that have
/// not heard that the one before has ended come before this one has services, and before the workload
/// has been probed.
const START_DELAY: Duration = Duration::from_secs(5);
/// How long new inbound connections wait after a report of health, at most: a machine that no service
/// selects has no services. A client's kernel repeats the first packet after one second and after three.
const REPORT_DELAY: Duration = Duration::from_secs(2);
/// How long to wait when there is no connection for a new stream.
const NO_SPARE: Duration = Duration::from_secs(1);
/// Responses that are held back at most.
const HELD: usize = 64;
/// Characters kept of istiod's reason.
const REASON_LIMIT: usize = 1000;
