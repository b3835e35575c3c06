//! The picture of the mesh for people: a web page, and what it draws from.

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::State;
use super::picture::{self, Picture};
use super::telemetry::{Flow, Report};
use crate::base::page;

/// `GET /` and `GET /v1/view`.
pub(super) fn router(state: Arc<State>) -> Router {
    Router::new().route("/", get(front)).route("/v1/view", get(view)).with_state(state)
}

/// What the control plane knows, and what the machines say.
#[derive(Debug, Serialize)]
struct View {
    #[serde(flatten)]
    picture: Picture,
    /// In the order of the machines.
    reports: Vec<Report>,
    flows: Vec<Flow>,
}

async fn front() -> Response {
    let page::Page { html, headers } = page::render(PAGE);
    (headers, html).into_response()
}

async fn view(Shared(state): Shared<Arc<State>>) -> Response {
    let mut picture = picture::make(&state);
    state.telemetry.name(&mut picture);
    let view = View {
        reports: state.telemetry.reports(&picture),
        flows: state.telemetry.flows(&picture),
        picture,
    };
    ([(header::CACHE_CONTROL, "no-store")], Json(view)).into_response()
}

const PAGE: &str = include_str!("page.html");
