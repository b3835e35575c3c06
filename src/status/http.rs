//! The status server on 15020: the pages that Istio's tooling knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use tokio::net::TcpListener;

use super::caller::{Caller, Guard, MayOrder, Orders, Refusal};
use super::scrape::{Scrapes, Sources, merged};
use super::{Desk, Order, connections, metrics};
use crate::base::page;
use crate::base::tasks::Tasks;

/// Where the status server listens, and who may ask for what.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; pilot-agent's is port 15020 on all addresses.
    pub listen: SocketAddr,
    /// Whether metrics are shown to this machine only.
    pub metrics_on_loopback_only: bool,
    /// Whether the status and its web page are shown to this machine only.
    pub status_on_loopback_only: bool,
    /// Who may give orders.
    pub orders: Orders,
    /// The proxy's user, where it has one of its own: it passes on what others send, and does not count as this machine.
    pub proxy_user: Option<u32>,
    /// Whose metrics are shown beside ours.
    pub sources: Sources,
}

/// Serves the web page at `/`, its data at `/v1/status`, and `/healthz/ready`, `/stats/prometheus`,
/// `/metrics`, `/drain` and `/quitquitquit` until the tasks stop. The latter paths are pilot-agent's
/// (Istio `pilot/cmd/pilot-agent/status/server.go`).
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    desk: Desk,
    tasks: Tasks,
) -> Result<(), std::io::Error> {
    let guard = Guard::new(config.proxy_user, config.orders);
    let pages = Pages { desk, config, guard, scrapes: Arc::default() };
    connections::serve(listener, routes().with_state(pages), tasks).await
}

fn routes() -> Router<Pages> {
    Router::new()
        .route("/", get(front))
        .route("/v1/status", get(snapshot))
        .route("/healthz/ready", get(ready))
        .route("/stats/prometheus", get(prometheus))
        .route("/metrics", get(prometheus))
        .route("/drain", order(Order::Drain))
        .route("/quitquitquit", order(Order::Quit))
}

/// A route that changes something. There is no other way to make one here, and it asks who may.
fn order(order: Order) -> MethodRouter<Pages> {
    post(async move |_: MayOrder, State(pages): State<Pages>| {
        match pages.desk.orders.try_send(order) {
            Ok(()) => StatusCode::OK.into_response(),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent is busy\n").into_response(),
        }
    })
}

/// What the pages need.
#[derive(Clone)]
struct Pages {
    desk: Desk,
    config: Config,
    guard: Guard,
    scrapes: Arc<Scrapes>,
}

impl AsRef<Guard> for Pages {
    fn as_ref(&self) -> &Guard {
        &self.guard
    }
}

/// Whoever asks may see the status.
struct MaySeeStatus;

impl FromRequestParts<Pages> for MaySeeStatus {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, pages: &Pages) -> Result<Self, Refusal> {
        if pages.config.status_on_loopback_only {
            let Caller(connection) = Caller::from_request_parts(parts, pages).await?;
            pages.guard.local_reader(connection, &parts.headers)?;
        }
        Ok(Self)
    }
}

/// Whoever asks may read metrics.
struct MayReadMetrics;

impl FromRequestParts<Pages> for MayReadMetrics {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, pages: &Pages) -> Result<Self, Refusal> {
        if pages.config.metrics_on_loopback_only {
            let Caller(connection) = Caller::from_request_parts(parts, pages).await?;
            pages.guard.local_user(connection)?;
        }
        Ok(Self)
    }
}

/// The snapshot for people.
async fn front(_: MaySeeStatus) -> Response {
    let page::Page { html, headers } = page::render(PAGE);
    (headers, html).into_response()
}

/// The snapshot, in the form of `vm-agent status --json`.
async fn snapshot(_: MaySeeStatus, State(pages): State<Pages>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(pages.desk.board.shown())).into_response()
}

/// Anybody hears whether the machine is ready; what is wrong with it is for those who may see its status.
async fn ready(who: Result<MaySeeStatus, Refusal>, State(pages): State<Pages>) -> Response {
    let snapshot = pages.desk.board.snapshot();
    if snapshot.ready {
        return StatusCode::OK.into_response();
    }
    let mut why = format!("{:?}\n", snapshot.phase).to_lowercase();
    for condition in snapshot.conditions.iter().filter(|_| who.is_ok()) {
        why.push_str(&format!("{}: {}\n", condition.room, condition.trouble));
    }
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

/// Ours, then Envoy's, then the application's, as pilot-agent merges them.
async fn prometheus(
    _: MayReadMetrics,
    State(pages): State<Pages>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Pages { desk, config, scrapes, .. } = pages;
    let own = metrics::page(&desk.board, &scrapes);
    let limit = headers.get(SCRAPE_TIMEOUT).and_then(|value| value.to_str().ok()?.parse().ok());
    let limit = limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let limit = limit.map_or(SCRAPE_LIMIT, |limit| limit.min(SCRAPE_LIMIT));
    let body = merged(own, &config.sources, query.as_deref(), limit, scrapes);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], body).into_response()
}

const PAGE: &str = include_str!("page.html");
/// What Prometheus says of its patience.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";
/// The limit where it says nothing, and for what it says.
const SCRAPE_LIMIT: Duration = Duration::from_secs(30);
