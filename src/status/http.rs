//! The status server on 15020: the pages that Istio's tooling knows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::scrape::{Scrapes, Sources, merged};
use super::{Desk, Order};

/// Where the status server listens.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; pilot-agent's is port 15020 on all addresses.
    pub listen: SocketAddr,
    /// Whether metrics are shown to this machine only.
    pub metrics_on_loopback_only: bool,
    /// Whose metrics are shown beside ours.
    pub sources: Sources,
}

/// Serves `/healthz/ready`, `/stats/prometheus`, `/metrics`, `/drain` and `/quitquitquit` until
/// `stop`. The paths are pilot-agent's (Istio `pilot/cmd/pilot-agent/status/server.go`).
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    desk: Desk,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let pages = Router::new()
        .route("/healthz/ready", get(ready))
        .route("/stats/prometheus", get(prometheus))
        .route("/metrics", get(prometheus))
        .route("/drain", post(drain))
        .route("/quitquitquit", post(quit))
        .with_state(Pages { desk, config, scrapes: Arc::default() });
    let service = pages.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// What the pages need.
#[derive(Clone)]
struct Pages {
    desk: Desk,
    config: Config,
    scrapes: Arc<Scrapes>,
}

async fn ready(State(pages): State<Pages>) -> Response {
    let snapshot = pages.desk.board.snapshot();
    if snapshot.ready {
        return StatusCode::OK.into_response();
    }
    let mut why = format!("{:?}\n", snapshot.phase).to_lowercase();
    for condition in &snapshot.conditions {
        why.push_str(&format!("{}: {}\n", condition.room, condition.trouble));
    }
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

/// Ours, then Envoy's, then the application's, as pilot-agent merges them.
async fn prometheus(
    State(pages): State<Pages>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Pages { desk, config, scrapes } = pages;
    if config.metrics_on_loopback_only && !is_loopback(peer) {
        return (StatusCode::FORBIDDEN, ONLY_LOCAL).into_response();
    }
    let own = metrics::page(&desk.board, &scrapes);
    let limit = headers.get(SCRAPE_TIMEOUT).and_then(|value| value.to_str().ok()?.parse().ok());
    let limit = limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let limit = limit.map_or(SCRAPE_LIMIT, |limit| limit.min(SCRAPE_LIMIT));
    let body = merged(own, &config.sources, query.as_deref(), limit, scrapes);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], body).into_response()
}

async fn drain(State(pages): State<Pages>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    from_loopback(&pages.desk, peer, Order::Drain)
}

async fn quit(State(pages): State<Pages>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    from_loopback(&pages.desk, peer, Order::Quit)
}

fn from_loopback(desk: &Desk, peer: SocketAddr, order: Order) -> Response {
    if !is_loopback(peer) {
        return (StatusCode::FORBIDDEN, ONLY_LOCAL).into_response();
    }
    match desk.orders.try_send(order) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent is busy\n").into_response(),
    }
}

fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

const ONLY_LOCAL: &str = "only from this machine\n";
/// What Prometheus says of its patience.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";
/// The limit where it says nothing, and for what it says.
const SCRAPE_LIMIT: Duration = Duration::from_secs(30);
