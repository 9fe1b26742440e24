//! What an operator does to a key: `POST /keys/{label}/drain`, `…/isolate`, `…/reset`.
//!
//! Whoever may read may not therefore act, so unlike reading this asks for the admin token always: without one configured it
//! is refused. The token goes in a header, which no other site can have a browser send.

use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::IntoResponse,
};
use http::{HeaderMap, Response, StatusCode};
use serde_json::json;
use tower_openrouter::stack::BalancerHandle;
use tracing::info;

use super::{
    admin::{Admin, refuse},
    live::Live,
};

const NOT_CONFIGURED: &str = "Keys cannot be acted on, since no admin token is configured: start the gateway with --admin-token \
                              (TOWER_OPENROUTER_ADMIN_TOKEN, admin_token)";

/// Does it, and says how the key stands.
pub(super) async fn act(
    State(admin): State<Live<Admin>>,
    headers: HeaderMap,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Response<Body> {
    let admin = admin.now();
    if admin.access.0.is_none() {
        return refuse(StatusCode::FORBIDDEN, NOT_CONFIGURED);
    }
    if !admin.access.shown(&headers) {
        return refuse(StatusCode::UNAUTHORIZED, "Missing or wrong admin token");
    }
    let Ok(Path((label, action))) = path else {
        return refuse(StatusCode::NOT_FOUND, "No key has this label");
    };
    let act = match &*action {
        "drain" => BalancerHandle::drain,
        "isolate" => BalancerHandle::isolate,
        "reset" => BalancerHandle::reset,
        _ => return refuse(StatusCode::NOT_FOUND, "No such action: there are drain, isolate and reset"),
    };
    if !act(&admin.balancer, &label) {
        return refuse(StatusCode::NOT_FOUND, "No key has this label: /stats names them");
    }
    info!(key = label, action, "by the operator");
    let endpoints = admin.balancer.pool().endpoints();
    let found = endpoints.iter().filter(|endpoint| endpoint.key().name() == label);
    let in_flight: u32 = found.clone().map(|endpoint| endpoint.figures().in_flight()).sum();
    let state = found.map(|endpoint| endpoint.admin_state()).next().unwrap_or_default();
    Json(json!({"key": label, "state": state.as_str(), "in_flight": in_flight})).into_response()
}
