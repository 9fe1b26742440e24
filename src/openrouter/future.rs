//! From the transport's answer to a judged one.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE, response::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower::BoxError;

use super::{
    body::OpenRouterBody,
    classify::{Answer, Judged, classify},
    headers,
    scan::Scan,
    service::Config,
};
use crate::{
    body::{ReadAhead, Seen},
    error::{self, UpstreamError, UpstreamErrorKind},
    outcome::{Cause, Fault, Outcome, OutcomeCell, Scope},
    spans::Wanted,
};

/// What is kept of a request until its answer comes.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) config: Arc<Config>,
    pub(super) opted_in: bool,
    pub(super) head: bool,
    pub(super) span: Wanted,
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
            // a failed answer whose body is being read
            failed: Option<Box<Failed<TB>>>,
            asked: Asked,
        },
    }
}

struct Failed<TB: Body> {
    parts: Parts,
    body: ReadAhead<Pin<Box<TB>>>,
    read: usize,
    // boxed, since few have to wait, and moved with the rest
    patience: Option<Pin<Box<Sleep>>>,
}

/// How long the body of an error may take once its head is here: it is small, and made with the head.
const PATIENCE: Duration = Duration::from_secs(10);

impl<TB: Body<Data = Bytes>> Failed<TB> {
    /// Reads the body until it is over, has failed, or `bound` bytes are here. What came of one that stalls says as much as
    /// can be known.
    fn poll(&mut self, cx: &mut Context<'_>, bound: usize) -> Poll<()> {
        while self.read < bound {
            match self.body.poll_ahead(cx) {
                Poll::Ready(Seen::Data(bytes)) => self.read += bytes,
                Poll::Ready(Seen::Trailers) => {}
                Poll::Ready(Seen::Failed | Seen::End) => break,
                Poll::Pending => {
                    return self.patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE))).as_mut().poll(cx);
                }
            }
        }
        Poll::Ready(())
    }
}

impl<F, TB: Body<Data = Bytes>> OpenRouterFuture<F, TB> {
    pub(super) fn new(answer: F, asked: Asked) -> Self {
        Self { state: State::Running { answer, failed: None, asked } }
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
        let StateProj::Running { answer, failed, asked } = self.project().state.project() else {
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
                    let body = ReadAhead::new(Box::pin(body));
                    *failed = Some(Box::new(Failed { parts, body, read: 0, patience: None }));
                }
                Poll::Pending => {}
            }
        }
        match failed.take_if(|reading| reading.poll(cx, asked.config.error_body_limit).is_ready()) {
            Some(read) => Poll::Ready(Ok(judged(*read, asked))),
            None => Poll::Pending,
        }
    }
}

/// An answer that is no error by its status: its body may still tell otherwise.
fn passed_on<B: Body<Data = Bytes>>(mut parts: Parts, body: B, asked: &mut Asked) -> Response<OpenRouterBody<B>> {
    let cell = OutcomeCell::new();
    let scan = if parts.status.is_success() {
        let exact = body.size_hint().exact();
        let scan = Scan::new(cell.clone(), &parts, exact, asked.head, asked.config.wall_clock);
        Some(scan.tell(asked.span.take()))
    } else {
        // a redirect is the caller's to look at; followed, it would carry the key away
        cell.end(Fault::new(Cause::BadRequest, Scope::Request).into());
        None
    };
    parts.extensions.insert(cell);
    Response::from_parts(parts, OpenRouterBody::new(ReadAhead::new(body), scan))
}

/// An error status, judged by its head and what was read of its body.
fn judged<B: Body<Data = Bytes>>(failed: Failed<B>, asked: &Asked) -> Response<OpenRouterBody<B>> {
    let Failed { mut parts, body, .. } = failed;
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
    Response::from_parts(parts, OpenRouterBody::new(body.unboxed(), None))
}

/// The answer to a request for something that is not below the API root. Nothing was sent.
fn bad_target<B: Body<Data = Bytes>>() -> Response<OpenRouterBody<B>> {
    let text = r#"{"error":{"code":404,"message":"The path does not lie below the API root: use one such as /v1/chat/completions"}}"#;
    let mut response = Response::new(OpenRouterBody::new(ReadAhead::of_text(text.into()), None));
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
    if error::is_known(&*error) { error } else { UpstreamError::new(UpstreamErrorKind::Reset, error).into() }
}

impl<F, TB: Body> fmt::Debug for OpenRouterFuture<F, TB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRouterFuture").finish_non_exhaustive()
    }
}
