//! The status server on 15020: the pages that Istio's tooling knows.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::{Desk, Order};

/// Where the status server listens.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Address and port; pilot-agent's is port 15020 on all addresses.
    pub listen: SocketAddr,
}

/// Serves `/healthz/ready`, `/stats/prometheus`, `/metrics`, `/drain` and `/quitquitquit` until
/// `stop`. The paths are pilot-agent's (Istio `pilot/cmd/pilot-agent/status/server.go`).
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    desk: Desk,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let pages = Router::new()
        .route("/healthz/ready", get(ready))
        .route("/stats/prometheus", get(prometheus))
        .route("/metrics", get(prometheus))
        .route("/drain", post(drain))
        .route("/quitquitquit", post(quit))
        .with_state(desk);
    let service = pages.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(desk): State<Desk>) -> Response {
    let snapshot = desk.board.snapshot();
    if snapshot.ready {
        return StatusCode::OK.into_response();
    }
    let mut why = format!("{:?}\n", snapshot.phase).to_lowercase();
    for condition in &snapshot.conditions {
        why.push_str(&format!("{}: {}\n", condition.room, condition.trouble));
    }
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn prometheus(State(desk): State<Desk>) -> Response {
    let text = metrics::page(&desk.board);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn drain(State(desk): State<Desk>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    from_loopback(&desk, peer, Order::Drain)
}

async fn quit(State(desk): State<Desk>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    from_loopback(&desk, peer, Order::Quit)
}

fn from_loopback(desk: &Desk, peer: SocketAddr, order: Order) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from this machine\n").into_response();
    }
    match desk.orders.try_send(order) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent is busy\n").into_response(),
    }
}
