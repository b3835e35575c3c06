//! The status server on 15020: the pages that Istio's tooling knows.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::scrape::{Scrapes, Sources, merged};
use super::{Desk, Order};
use crate::base::page;

/// Where the status server listens.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; pilot-agent's is port 15020 on all addresses.
    pub listen: SocketAddr,
    /// Whether metrics are shown to this machine only.
    pub metrics_on_loopback_only: bool,
    /// Whether the status and its web page are shown to this machine only.
    pub status_on_loopback_only: bool,
    /// Whose metrics are shown beside ours.
    pub sources: Sources,
}

/// Serves the web page at `/`, its data at `/v1/status`, and `/healthz/ready`, `/stats/prometheus`,
/// `/metrics`, `/drain` and `/quitquitquit` until `stop`. The latter paths are pilot-agent's (Istio
/// `pilot/cmd/pilot-agent/status/server.go`).
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
        .route("/", get(front))
        .route("/v1/status", get(snapshot))
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

/// The snapshot for people.
async fn front(
    State(pages): State<Pages>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = pages.may_see_status(peer, &headers) {
        return refusal.into_response();
    }
    let page::Page { html, headers } = page::render(PAGE);
    (headers, html).into_response()
}

/// The snapshot, in the form of `vm-agent status --json`.
async fn snapshot(
    State(pages): State<Pages>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    if let Err(refusal) = pages.may_see_status(peer, &headers) {
        return refusal.into_response();
    }
    ([(header::CACHE_CONTROL, "no-store")], Json(pages.desk.board.shown())).into_response()
}

impl Pages {
    fn may_see_status(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.config.status_on_loopback_only { is_local(peer, headers) } else { Ok(()) }
    }
}

type Refusal = (StatusCode, &'static str);

/// A page of the web that has its own name lead here comes from a browser on this machine, too:
/// the name that it asks for gives it away.
fn is_local(peer: SocketAddr, headers: &HeaderMap) -> Result<(), Refusal> {
    if !is_loopback(peer) {
        return Err((StatusCode::FORBIDDEN, STATUS_ONLY_LOCAL));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(is_local_name) { Ok(()) } else { Err((StatusCode::FORBIDDEN, NAME)) }
}

/// Whether a `Host` field means this machine by a name that nobody else can give it.
fn is_local_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
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

const PAGE: &str = include_str!("page.html");
const ONLY_LOCAL: &str = "only from this machine\n";
const STATUS_ONLY_LOCAL: &str =
    "only from this machine, for example through `ssh -L` (see status.access)\n";
const NAME: &str = "ask for localhost or for an address\n";
/// What Prometheus says of its patience.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";
/// The limit where it says nothing, and for what it says.
const SCRAPE_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(peer: &str, host: Option<&str>) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        is_local(peer.parse().unwrap(), &headers).map_err(|(_, words)| words)
    }

    #[test]
    fn the_status_is_shown_on_this_machine_by_its_own_names() {
        for peer in ["127.0.0.1:9", "127.8.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            for host in ["localhost:15020", "LOCALHOST", "127.0.0.1:15020", "[::1]:8080"] {
                assert_eq!(asked(peer, Some(host)), Ok(()), "{peer} {host}");
            }
        }
    }

    #[test]
    fn other_machines_see_no_status() {
        for peer in ["10.0.0.7:9", "[fd00::1]:9", "[::ffff:10.0.0.7]:9"] {
            assert_eq!(asked(peer, Some("localhost")), Err(STATUS_ONLY_LOCAL));
        }
    }

    #[test]
    fn a_name_of_somebody_elses_that_leads_here_shows_no_status() {
        for host in [None, Some("rebound.example:15020"), Some("localhost.example"), Some("")] {
            assert_eq!(asked("127.0.0.1:9", host), Err(NAME), "{host:?}");
        }
    }
}
