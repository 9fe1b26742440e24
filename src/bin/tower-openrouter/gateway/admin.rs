//! The operator's side: the [page](super::page), `/healthz`, `/readyz`, `/stats`, `/metrics`, `/explain/{id}`, on a listener of
//! its own.
//!
//! A web page can make a browser ask a local address, and by changing what a name resolves to even read the answer. Such
//! requests carry the page's name in `Host` or `Origin`, so only addresses are accepted there, unless the admin token is shown.

use std::net::{IpAddr, SocketAddr};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    middleware::{self, Next},
    response::IntoResponse,
    routing::{get, post},
};
use http::{
    HeaderMap, Response, StatusCode, Uri,
    header::{HOST, ORIGIN},
    uri::Authority,
};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tower_openrouter::{Endpoint, answer::Shape, explain::Trace, stack::BalancerHandle};

use super::{
    access::Access,
    actions,
    drain::Drain,
    events::{self, Events},
    live::Live,
    metrics, page, refusal,
    traces::{Explained, Traces},
};

/// What the operator may ask about.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    pub(super) balancer: BalancerHandle,
    pub(super) traces: Traces,
    pub(super) drain: Drain,
    pub(super) access: Access,
    pub(super) events: Events,
    pub(super) explain: Explained,
    pub(super) simulated: bool,
}

type Asked = State<Live<Admin>>;

/// The address the client has connected to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local(pub(super) SocketAddr);

/// The admin application. Each request must carry [`Local`] in its extensions.
pub(super) fn app(admin: Live<Admin>) -> Router {
    page::routes()
        .route("/events", get(events::listen))
        .route("/keys/{label}/{action}", post(actions::act))
        .route("/healthz", get(async || Json(json!({"alive": true}))))
        .route("/readyz", get(ready))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics::page))
        .route("/explain/{id}", get(explain))
        .fallback(async || {
            refuse(
                StatusCode::NOT_FOUND,
                "Not Found: there are /, /healthz, /readyz, /stats, /metrics and /explain/{id}",
            )
        })
        .method_not_allowed_fallback(async || refuse(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))
        .layer(middleware::from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
}

pub(super) fn refuse(status: StatusCode, message: &str) -> Response<Body> {
    refusal::refuse(Shape::Chat, status, message)
}

async fn guard(State(admin): Asked, request: Request, next: Next) -> Response<Body> {
    let admin = admin.now();
    let Some(Local(local)) = request.extensions().get().copied() else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    };
    let host = host(request.uri(), request.headers());
    let by_address = host.as_ref().is_some_and(|host| is_address(host, local.ip()));
    if !(by_address || admin.access.shown(request.headers())) {
        return refuse(StatusCode::FORBIDDEN, "Forbidden: ask by IP address or as localhost, or show the admin token");
    }
    if !origin_is_same(request.headers(), host.as_ref()) {
        return refuse(StatusCode::FORBIDDEN, "Forbidden: asked by another site");
    }
    next.run(request).await
}

/// Whom the client thinks it asks: the one `Host`, or HTTP/2's authority.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok()?.parse().ok(),
        (None, _) => uri.authority().cloned(),
        _ => None,
    }
}

/// Whether it is asked as localhost, by a loopback address or by the address it has.
fn is_address(host: &Authority, local: IpAddr) -> bool {
    let name = host.host();
    let ip = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name).parse::<IpAddr>();
    match ip {
        Ok(ip) => ip.is_loopback() || ip.to_canonical() == local.to_canonical(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

fn origin_is_same(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        origin.as_ref().and_then(Uri::authority) == host && host.is_some()
    })
}

/// Whether it makes sense to send requests here.
async fn ready(State(admin): Asked) -> Response<Body> {
    let (admin, now) = (admin.now(), Instant::now());
    let pool = admin.balancer.pool();
    let is_usable =
        |key: &Endpoint| key.is_in_service() && pool.resting(key).is_none() && key.shut_until(now).is_none();
    let usable = pool.endpoints().iter().any(is_usable);
    let why = match (admin.drain.is_draining(), usable) {
        (true, _) => "draining",
        (false, false) => "no usable key",
        (false, true) => return Json(json!({"ready": true})).into_response(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"ready": false, "why": why}))).into_response()
}

async fn stats(State(admin): Asked, headers: HeaderMap) -> Response<Body> {
    let admin = admin.now();
    if !admin.access.allows(&headers) {
        return refuse(StatusCode::UNAUTHORIZED, "Missing or wrong admin token");
    }
    Json(admin.balancer.snapshot()).into_response()
}

/// How a request came to its key, and what came of it; by the id its answer carries in `x-request-id`.
async fn explain(State(admin): Asked, headers: HeaderMap, id: Result<Path<String>, PathRejection>) -> Response<Body> {
    let admin = admin.now();
    if !admin.access.allows(&headers) {
        return refuse(StatusCode::UNAUTHORIZED, "Missing or wrong admin token");
    }
    let found = id.ok().and_then(|Path(id)| Some((admin.traces.find(&id)?, id)));
    let Some((trace, id)) = found else {
        return refuse(
            StatusCode::NOT_FOUND,
            "No trace of this request is kept: give the x-request-id of a recent answer; explained are requests that carry \
             x-balancer-explain: 1, or every one with --explain all",
        );
    };
    #[derive(Serialize)]
    struct Told {
        id: String,
        #[serde(flatten)]
        trace: Trace,
    }
    Json(Told { id, trace }).into_response()
}
