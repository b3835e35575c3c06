//! The mesh's own door, plain HTTP: what it looks like, for everybody who can reach it; faults and
//! the rotation of roots, for the administrator's token.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tonic::Code;

use super::faults::{Fault, Service};
use super::picture::{self, Changes, Picture};
use super::rotation::Servers;
use super::view;
use crate::base::tasks::Tasks;

/// What the door opens to.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) servers: Servers,
    pub(super) tasks: Tasks,
}

/// What shall go wrong.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wish {
    service: Which,
    fault: Word,
    /// Of `latency`, seconds.
    #[serde(default)]
    seconds: u64,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Which {
    Ads,
    Ca,
    Kubernetes,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Word {
    Hang,
    Latency,
    None,
    Refuse,
    Rubbish,
    Unavailable,
}

pub(super) fn router(door: Door) -> Router {
    let guarded = Router::new()
        .route("/rotate-root", post(rotate))
        .route("/faults", post(fault))
        .route("/push", post(push))
        .layer(axum::middleware::from_fn_with_state(door.clone(), guard));
    let shown_to_people = view::router(Arc::clone(&door.servers.state));
    Router::new()
        .route("/picture", get(shown))
        .route("/pictures", get(pictures))
        .merge(guarded)
        .with_state(door)
        .merge(shown_to_people)
}

async fn guard(Shared(door): Shared<Door>, request: Request, next: Next) -> Response {
    let bearer = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if bearer.is_some_and(|bearer| door.servers.state.tokens.is_admin(bearer)) {
        return next.run(request).await;
    }
    let words = "the administrator's token is needed: it stands in the kubeconfig\n";
    (StatusCode::UNAUTHORIZED, words).into_response()
}

async fn shown(Shared(door): Shared<Door>) -> Json<Picture> {
    Json(picture::make(&door.servers.state))
}

/// Server-sent events, each a picture: one at once, and one after each change, at the most so
/// often that eyes can follow.
async fn pictures(Shared(door): Shared<Door>) -> Response {
    let changes = Changes::of(&door.servers.state);
    let start = Some((door, changes, Duration::ZERO));
    let events = stream::unfold(start, |at| async move {
        let (door, mut changes, pause) = at?;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
            // A time that passes changes nothing here; the connection's end is noticed by a write.
            let changed = tokio::time::timeout(QUIET, changes.next()).await;
            if changed == Ok(false) {
                return None;
            }
        }
        let picture = picture::make(&door.servers.state);
        let event = format!("data: {}\n\n", serde_json::to_string(&picture).unwrap_or_default());
        Some((Ok::<_, Infallible>(event), Some((door, changes, PAUSE))))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn rotate(Shared(door): Shared<Door>) -> Response {
    let pause = door.servers.state.options.default_ttl;
    let rotation = door.servers.rotate(pause);
    door.tasks.spawn("devmesh-rotation", async move {
        if let Err(error) = rotation.await {
            tracing::error!(%error, "The root is not rotated.");
        }
    });
    let steps = json!({"rotation": "begun", "secondsPerStep": pause.as_secs()});
    (StatusCode::ACCEPTED, Json(steps)).into_response()
}

async fn fault(Shared(door): Shared<Door>, Json(wish): Json<Wish>) -> StatusCode {
    let service = match wish.service {
        Which::Ads => Service::Ads,
        Which::Ca => Service::Ca,
        Which::Kubernetes => Service::Kube,
    };
    let fault = match wish.fault {
        Word::Hang => Fault::Hang,
        Word::Latency => Fault::Latency(Duration::from_secs(wish.seconds)),
        Word::None => Fault::None,
        Word::Refuse => Fault::Refuse,
        Word::Rubbish => Fault::Rubbish,
        Word::Unavailable => Fault::Status(Code::Unavailable, "switched off by its administrator"),
    };
    door.servers.state.faults.set(service, fault);
    StatusCode::NO_CONTENT
}

async fn push(Shared(door): Shared<Door>) -> StatusCode {
    door.servers.state.pushes.send_modify(|count| *count += 1);
    StatusCode::NO_CONTENT
}

/// Pictures are at least this far apart.
const PAUSE: Duration = Duration::from_millis(100);
/// And at the most this far, so that a page notices that its mesh has gone.
const QUIET: Duration = Duration::from_secs(5);
