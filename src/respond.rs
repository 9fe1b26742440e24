//! The end of a stack: refusals and errors become answers.
//!
//! Inside a stack a refusal is an error, since a layer above may know what to do about it. A web server wants none: axum
//! and tonic serve services that cannot fail. [`RespondLayer`] goes outermost, turns whatever error arrives into a response,
//! and its own error type is [`Infallible`].
//!
//! | what happened | HTTP | gRPC |
//! | --- | --- | --- |
//! | no key can serve, queue full, limit reached | 429, `Retry-After` | `RESOURCE_EXHAUSTED` |
//! | breaker open, memory used up, draining | 503, `Retry-After` | `UNAVAILABLE` |
//! | deadline passed, no response head in time | 504 | `DEADLINE_EXCEEDED` |
//! | no route for the model | 404 | `NOT_FOUND` |
//! | request body too large | 413 | `INVALID_ARGUMENT` |
//! | request body broken | 400 | `INVALID_ARGUMENT` |
//! | request body too slow | 408 | `DEADLINE_EXCEEDED` |
//! | no connection, connection broken, any other error | 502 | `UNAVAILABLE` |
//!
//! That no key can serve is a 429 and not a 503, because the official OpenRouter clients repeat a 5xx for up to an hour.
//! `Retry-After` is in whole seconds, rounded up, and 1 when nobody knows better; gRPC has it as `grpc-retry-pushback-ms`.
//!
//! HTTP bodies have OpenRouter's error shape, `{"error":{"code":429,"message":…,"metadata":{…}}}`, or Anthropic's where the
//! path is that of `/messages`. The metadata names the reason as [`Why::as_str`](crate::error::Why::as_str) does, and a 429
//! of ours says `"limit_source":"balancer"`, which the upstream's never do. gRPC answers consist of trailers only. Messages
//! are those of our own errors; the text of any other is never passed on, since it could hold a secret.
//!
//! Who stands above, in the same process, finds in the answer's extensions the [`Rejected`] that it stands for, or what
//! any other error means as an [`OutcomeCell`].
//!
//! An answer that was held back until it said something, and failed before it did (see
//! [`CommitGateLayer`](crate::CommitGateLayer)), is such an error too, unless it is an event stream: a server that is given a
//! head and at once a failure closes the connection without a word.
//!
//! Any other error of the response body comes too late for an answer. In an event stream it becomes one more event, the error in
//! the shape of the path, after the last whole one; then the body fails, so that the server ends the connection uncleanly
//! and nobody takes what came for all there was. A compressed stream, a JSON body and gRPC just fail. See [`ToldBody`].
//!
//! # Examples
//!
//! Around an axum router:
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, body::Body, routing::post};
//! use http::Request;
//! use tower::{Layer, ServiceBuilder, ServiceExt};
//! use tower_openrouter::{deadline::DeadlineLayer, limit::ConcurrencyLimitLayer, respond::RespondLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower::BoxError> {
//! let limit = ConcurrencyLimitLayer::new(1)?.refuse();
//! let app: Router = Router::new().route("/v1/chat/completions", post(async || "hello")).layer(
//!     ServiceBuilder::new().layer(RespondLayer::new()).layer(DeadlineLayer::default()).layer(limit),
//! );
//!
//! let request = || Request::post("/v1/chat/completions").body(Body::empty()).unwrap();
//! let first = app.clone().oneshot(request()).await?;
//! let second = app.clone().oneshot(request()).await?;
//! assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 429));
//! assert_eq!(second.headers()["retry-after"], "1");
//! # Ok(())
//! # }
//! ```
//!
//! The gRPC form:
//!
//! ```
//! use http::{Request, Response};
//! use tower::{BoxError, ServiceBuilder, ServiceExt};
//! use tower_openrouter::{error::{Rejected, Why}, respond::RespondLayer};
//!
//! async fn refuse(_: Request<()>) -> Result<Response<String>, BoxError> {
//!     Err(Rejected::new(Why::NoKey, "no key can serve").into())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let service = ServiceBuilder::new().layer(RespondLayer::grpc()).service_fn(refuse);
//! let Ok(response) = service.oneshot(Request::new(())).await;
//! assert_eq!(response.status(), 200);
//! assert_eq!(response.headers()["grpc-status"], "8");
//! assert_eq!(response.headers()["grpc-message"], "no key can serve");
//! # }
//! ```

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{Either, Full};
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

mod answer;
mod told;

use answer::Form;
pub use told::ToldBody;

use crate::{
    answer::{ErrorAnswer, Shape},
    error::Rejected,
    outcome::{OutcomeCell, error_fault},
};

/// Ends a stack: its services answer whatever happens. See the [module](self).
#[derive(Debug, Clone)]
pub struct RespondLayer {
    grpc: bool,
}

/// The body of an answer: the inner service's, or one of ours.
pub type RespondBody<B> = Either<ToldBody<B>, Full<Bytes>>;

impl RespondLayer {
    /// Answers in OpenRouter's error shape, or in Anthropic's where the path is that of `/messages`.
    pub fn new() -> Self {
        Self { grpc: false }
    }

    /// Answers as a gRPC server does.
    pub fn grpc() -> Self {
        Self { grpc: true }
    }
}

impl Default for RespondLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Respond { inner, grpc: self.grpc, failed: None }
    }
}

/// The service of a [`RespondLayer`].
#[derive(Debug)]
pub struct Respond<S> {
    inner: S,
    grpc: bool,
    /// The inner service failed to become ready: the next call is answered with this.
    failed: Option<BoxError>,
}

impl<S> Respond<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone> Clone for Respond<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), grpc: self.grpc, failed: None }
    }
}

impl<S, B, ResB> Service<Request<B>> for Respond<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    ResB: Body,
{
    type Response = Response<RespondBody<ResB>>;
    type Error = Infallible;
    type Future = RespondFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.failed.is_none() {
            self.failed = ready!(self.inner.poll_ready(cx)).err().map(Into::into);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let form = if self.grpc { Form::Grpc } else { Form::Http(Shape::of_path(request.uri().path())) };
        let state = match self.failed.take() {
            Some(error) => State::Failed { error: Some(error) },
            None => State::Running { future: self.inner.call(request) },
        };
        RespondFuture { state, form }
    }
}

pin_project! {
    /// The response future of [`Respond`].
    #[derive(Debug)]
    pub struct RespondFuture<F> {
        #[pin]
        state: State<F>,
        form: Form,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Running {
            #[pin]
            future: F,
        },
        Failed { error: Option<BoxError> },
    }
}

impl<F, ResB, E> Future for RespondFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: Into<BoxError>,
    ResB: Body,
{
    type Output = Result<Response<RespondBody<ResB>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let error = match this.state.project() {
            StateProj::Running { future } => match ready!(future.poll(cx)) {
                Ok(response) => {
                    return Poll::Ready(Ok(match this.form.unsaid(&response) {
                        None => this.form.pass(response),
                        Some(error) => {
                            let mut answer = this.form.answer(&ErrorAnswer::to(&error));
                            *answer.extensions_mut() = response.into_parts().0.extensions;
                            answer
                        }
                    }));
                }
                Err(error) => error.into(),
            },
            StateProj::Failed { error } => error.take().expect("polled after it was ready"),
        };
        let mut response = this.form.answer(&ErrorAnswer::to(&*error));
        if let Some(refusal) = Rejected::find(&*error) {
            response.extensions_mut().insert(refusal.clone());
        } else {
            let cell = OutcomeCell::new();
            cell.end(error_fault(&*error).into());
            response.extensions_mut().insert(cell);
        }
        Poll::Ready(Ok(response))
    }
}
