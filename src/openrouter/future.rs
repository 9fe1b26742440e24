//! From the transport's answer to a judged one.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE, response::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::BoxError;

use super::{
    body::OpenRouterBody,
    classify::{Answer, Judged, classify},
    headers,
    replay::{Ahead, Replay},
    scan::Scan,
    service::Config,
};
use crate::{
    body::Guarded,
    clock,
    error::{Rejected, UpstreamError, UpstreamErrorKind, Why},
    outcome::{Cause, Fault, Outcome, OutcomeCell, Scope},
    request::Deadline,
};

/// What is kept of a request until its answer comes.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) config: Arc<Config>,
    pub(super) deadline: Deadline,
    pub(super) opted_in: bool,
    pub(super) head: bool,
}

pin_project! {
    /// The response future of [`OpenRouter`](crate::OpenRouter).
    pub struct OpenRouterFuture<F, TB: Body> {
        #[pin]
        state: State<F, TB>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, TB: Body> {
        BadTarget,
        Running {
            #[pin]
            answer: F,
            // boxed, since only who has to wait has one, and the others should not carry its size
            limit: Option<Pin<Box<Sleep>>>,
            // a failed answer whose body is being read
            failed: Option<Box<Failed<TB>>>,
            asked: Asked,
        },
    }
}

struct Failed<TB: Body> {
    parts: Parts,
    body: Ahead<TB>,
}

impl<F, TB: Body<Data = Bytes>> OpenRouterFuture<F, TB> {
    pub(super) fn new(answer: F, asked: Asked) -> Self {
        Self { state: State::Running { answer, limit: None, failed: None, asked } }
    }

    pub(super) fn bad_target() -> Self {
        Self { state: State::BadTarget }
    }
}

impl<F, E, TB> Future for OpenRouterFuture<F, TB>
where
    F: Future<Output = Result<Response<TB>, E>>,
    E: Into<BoxError>,
    TB: Body<Data = Bytes>,
{
    type Output = Result<Response<OpenRouterBody<TB>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let StateProj::Running { answer, limit, failed, asked } = self.project().state.project() else {
            return Poll::Ready(Ok(bad_target()));
        };
        if failed.is_none() {
            match answer.poll(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(wrap_error(error))),
                Poll::Ready(Ok(response)) => {
                    let (mut parts, body) = response.into_parts();
                    headers::clean(&mut parts.headers);
                    if !parts.status.is_client_error() && !parts.status.is_server_error() {
                        return Poll::Ready(Ok(passed_on(parts, body, asked)));
                    }
                    *failed = Some(Box::new(Failed { parts, body: Ahead::new(body) }));
                }
                Poll::Pending => {}
            }
        }
        if let Some(mut reading) = failed.take() {
            if reading.body.poll(cx, asked.config.error_body_limit).is_ready() {
                return Poll::Ready(Ok(judged(*reading, asked)));
            }
            *failed = Some(reading);
        }
        // only who has to wait needs a timer
        let limit = limit.get_or_insert_with(|| {
            let own = clock::after(Instant::now(), asked.config.headers_timeout);
            let until = asked.deadline.instant().map_or(own, |deadline| deadline.min(own));
            Box::pin(tokio::time::sleep_until(until))
        });
        ready!(limit.as_mut().poll(cx));
        Poll::Ready(match failed.take() {
            // what came of the body says as much as can be known
            Some(failed) => Ok(judged(*failed, asked)),
            // the caller's own haste says nothing about the upstream
            None if asked.deadline.is_over(Instant::now()) => {
                Err(Rejected::new(Why::Deadline, "the request's deadline passed before the upstream answered").into())
            }
            None => Err(UpstreamError::new(UpstreamErrorKind::HeadersTimeout, None).into()),
        })
    }
}

/// An answer that is no error by its status: its body may still tell otherwise.
fn passed_on<B: Body<Data = Bytes>>(mut parts: Parts, body: B, asked: &Asked) -> Response<OpenRouterBody<B>> {
    let cell = OutcomeCell::new();
    let scan = if parts.status.is_success() {
        let exact = body.size_hint().exact();
        Some(Scan::new(cell.clone(), &parts, exact, asked.head, asked.config.wall_clock))
    } else {
        // a redirect is the caller's to look at; followed, it would carry the key away
        cell.end(Fault::new(Cause::BadRequest, Scope::Request).into());
        None
    };
    parts.extensions.insert(cell);
    Response::from_parts(parts, Guarded::new(Replay::untouched(body), scan))
}

/// An error status, judged by its head and what was read of its body.
fn judged<B: Body<Data = Bytes>>(failed: Failed<B>, asked: &Asked) -> Response<OpenRouterBody<B>> {
    let Failed { mut parts, body } = failed;
    let Judged { outcome, account, provider, limit } = classify(&Answer {
        status: parts.status,
        headers: &parts.headers,
        body: &body.bytes(),
        opted_in: asked.opted_in,
        now: (asked.config.wall_clock)(),
    });
    let cell = OutcomeCell::new();
    if let Some(account) = &account {
        cell.report_account(account);
    }
    if let Some(provider) = &provider {
        cell.report_provider(provider);
    }
    if let Some(limit) = limit {
        cell.report_limit(limit);
    }
    cell.end(outcome);
    if let Outcome::Fault(fault) = outcome {
        tracing::debug!(status = parts.status.as_u16(), cause = %fault.cause, scope = %fault.scope, ?provider, "the upstream answered with an error");
    }
    parts.extensions.insert(cell);
    Response::from_parts(parts, Guarded::new(body.into_body(), None))
}

/// The answer to a request for something that is not below the API root. Nothing was sent.
fn bad_target<B: Body<Data = Bytes>>() -> Response<OpenRouterBody<B>> {
    let text = r#"{"error":{"code":404,"message":"The path does not lie below the API root: use one such as /v1/chat/completions"}}"#;
    let mut response = Response::new(Guarded::new(Replay::of_text(text.into()), None));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let cell = OutcomeCell::new();
    cell.end(Fault::new(Cause::NotFound, Scope::Request).into());
    response.extensions_mut().insert(cell);
    response
}

/// A transport that does not say how far it came may have sent the request.
pub(super) fn wrap_error(error: impl Into<BoxError>) -> BoxError {
    let error = error.into();
    if UpstreamError::find(&*error).is_some() || Rejected::find(&*error).is_some() {
        return error;
    }
    UpstreamError::new(UpstreamErrorKind::Reset, error).into()
}

impl<F, TB: Body> fmt::Debug for OpenRouterFuture<F, TB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRouterFuture").finish_non_exhaustive()
    }
}
