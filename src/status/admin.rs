//! The admin socket: the command line's way to the daemon, for root and the agent's own user.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{Desk, Order};
use crate::base::uds::Peers;

/// Serves `GET /v1/status` and, each by `POST`, `/v1/reload`, `/v1/step-aside`, `/v1/stop`, `/v1/cert/rotate` and
/// `/v1/proxy/{drain,restart,undrain}` on a Unix socket until `stop`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: UnixListener,
    peers: Peers,
    desk: Desk,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let pages = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/step-aside", post(step_aside))
        .route("/v1/stop", post(halt))
        .route("/v1/cert/rotate", post(rotate))
        .route("/v1/proxy/drain", post(drain))
        .route("/v1/proxy/restart", post(restart))
        .route("/v1/proxy/undrain", post(undrain))
        .with_state(desk);
    let listener = Guarded { listener, peers };
    let late = stop.clone();
    tokio::select! {
        served = async { axum::serve(listener, pages).with_graceful_shutdown(stop.cancelled_owned()).await } => served,
        // A request that is open without end must not hold up the stop; the others are answered by now.
        () = async { late.cancelled().await; tokio::time::sleep(LAST_ANSWERS).await } => Ok(()),
    }
}

async fn status(State(desk): State<Desk>) -> Response {
    Json(desk.board.shown()).into_response()
}

async fn reload(State(desk): State<Desk>) -> StatusCode {
    pass(&desk, Order::Reload)
}

async fn rotate(State(desk): State<Desk>) -> StatusCode {
    pass(&desk, Order::Rotate)
}

async fn halt(State(desk): State<Desk>) -> StatusCode {
    pass(&desk, Order::Stop)
}

async fn step_aside(State(desk): State<Desk>) -> StatusCode {
    pass(&desk, Order::StepAside)
}

async fn drain(State(desk): State<Desk>) -> StatusCode {
    pass(&desk, Order::Drain)
}

async fn restart(State(desk): State<Desk>) -> StatusCode {
    pass(&desk, Order::RestartProxy)
}

async fn undrain(State(desk): State<Desk>) -> StatusCode {
    pass(&desk, Order::Undrain)
}

fn pass(desk: &Desk, order: Order) -> StatusCode {
    match desk.orders.try_send(order) {
        Ok(()) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What it takes to write answers of some kilobytes.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// A listener that hangs up on callers who have no business here.
struct Guarded {
    listener: UnixListener,
    peers: Peers,
}

impl Listener for Guarded {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if self.peers.admit(&stream, "admin") {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
