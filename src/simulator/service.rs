//! The simulator as a `tower` service: paths, credentials, and one answer a request.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower_service::Service;

use super::cache::Wish;
use super::refusal::{self, Refusal};
use super::request::Dialect;
use super::stats::Received;
use super::ticket::Ticket;
use super::trace::Trace;
use super::{Shared, SimulatorBody, SimulatorError, cors, ids, inference, lookup};

/// Answers requests as OpenRouter would. Always ready, cheap to clone.
#[derive(Clone)]
pub struct SimulatorService {
    shared: Arc<Shared>,
}

impl SimulatorService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl fmt::Debug for SimulatorService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatorService").finish_non_exhaustive()
    }
}

type Answer = Result<Response<SimulatorBody>, SimulatorError>;

/// The answer on its way. Dropping it is what a closed connection is.
pub struct SimulatorFuture(Pin<Box<dyn Future<Output = Answer> + Send>>);

impl fmt::Debug for SimulatorFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatorFuture").finish_non_exhaustive()
    }
}

impl Future for SimulatorFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        self.0.as_mut().poll(cx)
    }
}

impl<B> Service<Request<B>> for SimulatorService
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<SimulatorBody>;
    type Error = SimulatorError;
    type Future = SimulatorFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), SimulatorError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> SimulatorFuture {
        SimulatorFuture(Box::pin(answer(Arc::clone(&self.shared), request)))
    }
}

/// A request whose body has arrived.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// Below `/v1`, without slash at either end.
    pub(super) path: String,
    pub(super) query: String,
    pub(super) credentials: Credentials,
    /// Whether `openrouter_metadata` is wanted.
    pub(super) metadata: bool,
    /// What is said about the response cache.
    pub(super) cache: Option<Wish>,
    /// None when it was larger than [`Wire::max_body_bytes`](super::Wire::max_body_bytes).
    pub(super) body: Option<Bytes>,
}

/// What the headers say about who is calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    Missing,
    Unusable,
    Unknown,
    Key(usize),
}

impl Credentials {
    pub(super) const fn key(self) -> Option<usize> {
        match self {
            Self::Key(key) => Some(key),
            Self::Missing | Self::Unusable | Self::Unknown => None,
        }
    }
}

async fn answer<B>(shared: Arc<Shared>, request: Request<B>) -> Answer
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let is_cross_origin = cors::is_cross_origin(request.headers());
    let mut response = if cors::is_preflight(request.method(), request.headers()) {
        shared.lock().ledger.lookup();
        let mut response = Response::new(SimulatorBody::whole(Bytes::new(), None));
        *response.status_mut() = StatusCode::NO_CONTENT;
        *response.headers_mut() = cors::preflight();
        common(&shared, response.headers_mut(), None);
        response
    } else {
        reply(shared, request).await?
    };
    if is_cross_origin {
        cors::open(response.headers_mut());
    }
    Ok(response)
}

async fn reply<B>(shared: Arc<Shared>, request: Request<B>) -> Answer
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, shared.scenario.wire.max_body_bytes).collect().await {
        Ok(collected) => Some(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => None,
        Err(error) => return Err(SimulatorError::RequestBody(error)),
    };
    let credentials = credentials(&shared, &parts.headers);
    record(&shared, &parts, body.as_ref(), credentials);
    let path = parts.uri.path();
    let path = path.strip_prefix("/api").unwrap_or(path);
    let path = path.strip_prefix("/v1/").unwrap_or_default().trim_matches('/').to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let call = Call {
        method: parts.method,
        path,
        query,
        credentials,
        metadata: Trace::wanted_by(&parts.headers),
        cache: Wish::of(&parts.headers),
        body,
    };
    let dialect = match call.path.as_str() {
        "chat/completions" => Dialect::Chat,
        "completions" => Dialect::Completions,
        "responses" => Dialect::Responses,
        "messages" => Dialect::Messages,
        "embeddings" => Dialect::Embeddings,
        _ => return lookup::answer(&shared, &call).await,
    };
    if call.method != Method::POST {
        shared.lock().ledger.lookup();
        return Ok(refuse(&shared, &refusal::not_found("Not Found"), &Reference::of(dialect), None));
    }
    inference::answer(&shared, call, dialect).await
}

fn credentials(shared: &Shared, headers: &HeaderMap) -> Credentials {
    let bearer = headers.get(AUTHORIZATION).map(|value| {
        let value = value.to_str().unwrap_or_default();
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("bearer") { token.trim() } else { "" }
    });
    let plain = || headers.get("x-api-key").map(|value| value.to_str().unwrap_or_default().trim());
    match bearer.or_else(plain) {
        None => Credentials::Missing,
        Some("") => Credentials::Unusable,
        Some(secret) => shared.lock().key_of(secret).map_or(Credentials::Unknown, Credentials::Key),
    }
}

fn record(shared: &Shared, parts: &http::request::Parts, body: Option<&Bytes>, credentials: Credentials) {
    let at = shared.clock.now().elapsed;
    let mut world = shared.lock();
    if !world.ledger.keeps_requests() {
        return;
    }
    let mut headers = parts.headers.clone();
    let marker = match credentials {
        Credentials::Key(key) => HeaderValue::try_from(format!("<{}>", world.keys[key].label)).ok(),
        _ => None,
    };
    let marker = marker.unwrap_or(HeaderValue::from_static("<unknown>"));
    for name in [AUTHORIZATION, HeaderName::from_static("x-api-key")] {
        if headers.contains_key(&name) {
            headers.insert(name, marker.clone());
        }
    }
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    world.ledger.received(Received { at, method, uri, headers, body: body.cloned().unwrap_or_default() });
}

/// What an error answer refers to.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) dialect: Dialect,
    /// `user_…` or `org_…`, once the key is known.
    pub(super) owner: Option<String>,
    /// The generation, once the key is known.
    pub(super) generation: Option<String>,
    /// `openrouter_metadata`, once routing was reached.
    pub(super) routing: Option<serde_json::Value>,
}

impl Reference {
    pub(super) const fn of(dialect: Dialect) -> Self {
        Self { dialect, owner: None, generation: None, routing: None }
    }
}

/// An error answer.
pub(super) fn refuse(
    shared: &Shared,
    refusal: &Refusal,
    reference: &Reference,
    ticket: Option<Ticket>,
) -> Response<SimulatorBody> {
    let wire = &shared.scenario.wire;
    // 401 bodies name nobody, even for a valid key in a storm.
    let owner = reference.owner.as_deref().filter(|_| refusal.status != 401);
    let generation = reference.generation.as_deref();
    let (content_type, bytes) = refusal.body(wire, reference, owner);
    let mut headers = HeaderMap::new();
    for (name, value) in refusal.rate_limit() {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), value.parse()) {
            headers.insert(name, value);
        }
    }
    if let Some(seconds) = refusal.retry_after.filter(|_| !wire.omit_hints) {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    let generation = generation.filter(|_| refusal.verbatim.is_none());
    respond(shared, (refusal.status, &content_type, headers), generation, bytes, ticket)
}

/// An answer with a body that is there at once.
pub(super) fn respond(
    shared: &Shared,
    (status, content_type, headers): (u16, &str, HeaderMap),
    generation: Option<&str>,
    bytes: Bytes,
    mut ticket: Option<Ticket>,
) -> Response<SimulatorBody> {
    if let Some(ticket) = &mut ticket {
        ticket.answered(status);
    }
    let mut response = Response::new(SimulatorBody::whole(bytes, ticket));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    *response.headers_mut() = headers;
    let content_type = HeaderValue::try_from(content_type).unwrap_or(HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    common(shared, response.headers_mut(), generation);
    response
}

/// Headers of every answer.
pub(super) fn common(shared: &Shared, headers: &mut HeaderMap, generation: Option<&str>) {
    let number = {
        let mut world = shared.lock();
        world.next_answer += 1;
        world.next_answer
    };
    if let Ok(ray) = HeaderValue::try_from(ids::ray(number)) {
        headers.insert("cf-ray", ray);
    }
    if let Some(Ok(id)) = generation.map(HeaderValue::try_from) {
        headers.insert("x-generation-id", id);
    }
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
}
