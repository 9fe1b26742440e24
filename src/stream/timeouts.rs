//! Four limits on the silence of an upstream.
//!
//! One limit on the whole of a request cannot tell a model that thinks for minutes from a connection that died: long enough
//! for the first, it holds a permit and a caller for as long by the second. Answers fall silent in different places, and each
//! place has a length that is still sane. [`TimeoutsLayer`] sets four, all of one attempt: to the head, to the first real
//! output, between frames after that, and for the whole. What keeps a connection open without saying anything, an event
//! stream's comments and the white space before a JSON document, counts as silence.
//!
//! | limit | default | why |
//! | --- | --- | --- |
//! | [`headers`](TimeoutsLayer::headers) | 5 min | an answer that is not streamed may send its head only when it is done |
//! | [`first_output`](TimeoutsLayer::first_output) | 5 min | reasoning models think for minutes; half of the default [deadline](crate::deadline), so that another attempt has as long |
//! | [`gap`](TimeoutsLayer::gap) | 2 min | once a model speaks it falls silent for tens of seconds at most, to think between two tool calls |
//! | [`total`](TimeoutsLayer::total) | 30 min | the longest answer on record took 19 (`openrouter-api.md` §5); for stacks without a deadline |
//!
//! When one passes, the exchange below is dropped at once, which closes its connection and gives back what it held. The
//! caller sees an [`UpstreamError`] in place of the head, or as the error that ends the body. Each limit has a
//! [`Cause`] of its own. Where the leaf put an [`OutcomeCell`] into the answer, the fault is written there, so that the layers
//! around agree on it: before output it may be tried again, where the head was that of a stream once without being asked to,
//! since a stream that is closed before its first token mostly costs nothing; after output it is a sample against the pool.
//!
//! The wait of a slow reader is not the upstream's: a gap is measured from when there was nothing to read. One timer serves
//! all limits and is set anew only when it rings; an exchange that never waits has none.
//!
//! It goes around the leaf, within everything that holds something, and works around any other service: there the first frame
//! that is no comment and no padding counts as output.
//!
//! # Examples
//!
//! ```
//! use std::future::pending;
//! use http::{Request, Response};
//! use tower::{BoxError, ServiceBuilder, ServiceExt};
//! use tower_openrouter::{TimeoutsLayer, error::{UpstreamError, UpstreamErrorKind}};
//!
//! async fn hang(_: Request<()>) -> Result<Response<String>, BoxError> {
//!     pending().await
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # tokio::time::pause();
//! let service = ServiceBuilder::new().layer(TimeoutsLayer::default()).service_fn(hang);
//! let error = service.oneshot(Request::new(())).await.unwrap_err(); // after five minutes
//! assert_eq!(UpstreamError::find(&*error).unwrap().kind(), UpstreamErrorKind::HeadersTimeout);
//! # }
//! ```
//!
//! For a chat that people wait for, whose models do not think:
//!
//! ```
//! use std::time::Duration;
//! use tower_openrouter::{Balancer, TimeoutsLayer};
//! # use tower_openrouter::{ApiKey, OpenRouter, Pool, simulator::{Scenario, Simulator}};
//! # let transport = Simulator::new(Scenario::default())?.service();
//! # let pool = Pool::new([ApiKey::new("sk-or-v1-a")?])?;
//!
//! let timeouts = TimeoutsLayer::default()
//!     .headers(Duration::from_secs(10))?
//!     .first_output(Duration::from_secs(20))?
//!     .gap(Duration::from_secs(15))?;
//! let balancer = Balancer::builder(pool).timeouts(timeouts).build(OpenRouter::new(transport));
//! # let _: &Balancer<String> = &balancer;
//! # Ok::<(), tower::BoxError>(())
//! ```
//!
//! [`UpstreamError`]: crate::error::UpstreamError
//! [`Cause`]: crate::outcome::Cause
//! [`OutcomeCell`]: crate::outcome::OutcomeCell

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

mod body;
mod content;
mod limits;

pub use body::TimeoutsBody;
use limits::{Limits, Phase, Waiting};

/// Limits how long an upstream may be silent, in four places. See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct TimeoutsLayer {
    limits: Limits,
}

/// A time limit that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimeoutsError {
    /// Every exchange that has to wait at all would fail.
    #[error("the {0} timeout is 0, which would fail every request: give more, or leave it out for its default")]
    Zero(&'static str),
}

impl TimeoutsLayer {
    /// Sets the longest wait for an answer's head, from the call; default 5 minutes. More than ten years count as ten years.
    ///
    /// # Errors
    ///
    /// [`TimeoutsError::Zero`] when `limit` is zero.
    pub fn headers(mut self, limit: Duration) -> Result<Self, TimeoutsError> {
        self.limits.headers = positive("headers", limit)?;
        Ok(self)
    }

    /// Sets the longest wait for the first real output, from the call; default 5 minutes. More than ten years count as ten
    /// years.
    ///
    /// Real output is what the leaf [commits](crate::outcome::OutcomeCell) an answer by: text, reasoning or a tool call,
    /// rather than comments, empty deltas and news about the making of the answer.
    ///
    /// # Errors
    ///
    /// [`TimeoutsError::Zero`] when `limit` is zero.
    pub fn first_output(mut self, limit: Duration) -> Result<Self, TimeoutsError> {
        self.limits.first_output = positive("first_output", limit)?;
        Ok(self)
    }

    /// Sets the longest silence after the first output; default 2 minutes. More than ten years count as ten years.
    ///
    /// # Errors
    ///
    /// [`TimeoutsError::Zero`] when `limit` is zero.
    pub fn gap(mut self, limit: Duration) -> Result<Self, TimeoutsError> {
        self.limits.gap = positive("gap", limit)?;
        Ok(self)
    }

    /// Sets how long an attempt may take from its call to the end of its body; default 30 minutes. More than ten years count
    /// as ten years.
    ///
    /// # Errors
    ///
    /// [`TimeoutsError::Zero`] when `limit` is zero.
    pub fn total(mut self, limit: Duration) -> Result<Self, TimeoutsError> {
        self.limits.total = positive("total", limit)?;
        Ok(self)
    }
}

fn positive(name: &'static str, limit: Duration) -> Result<Duration, TimeoutsError> {
    if limit.is_zero() { Err(TimeoutsError::Zero(name)) } else { Ok(limit) }
}

impl<S> Layer<S> for TimeoutsLayer {
    type Service = Timeouts<S>;

    fn layer(&self, inner: S) -> Timeouts<S> {
        Timeouts { inner, limits: Arc::new(self.limits) }
    }
}

/// The service of a [`TimeoutsLayer`].
#[derive(Debug, Clone)]
pub struct Timeouts<S> {
    inner: S,
    limits: Arc<Limits>,
}

impl<S> Timeouts<S> {
    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, B, ResB> Service<Request<B>> for Timeouts<S>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
    ResB: Body,
    ResB::Error: Into<BoxError>,
{
    type Response = Response<TimeoutsBody<ResB>>;
    type Error = BoxError;
    type Future = TimeoutsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        TimeoutsFuture { answer: Some(self.inner.call(request)), waiting: None, limits: self.limits.clone() }
    }
}

pin_project! {
    /// The response future of [`Timeouts`].
    #[derive(Debug)]
    pub struct TimeoutsFuture<F> {
        // gone when a limit has passed
        #[pin]
        answer: Option<F>,
        waiting: Option<Pin<Box<Waiting>>>,
        limits: Arc<Limits>,
    }
}

impl<F, ResB, E> Future for TimeoutsFuture<F>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    E: Into<BoxError>,
    ResB: Body,
{
    type Output = Result<Response<TimeoutsBody<ResB>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let answer = this.answer.as_mut().as_pin_mut().expect("polled after it was ready");
        match answer.poll(cx) {
            Poll::Ready(Ok(response)) => {
                Poll::Ready(Ok(TimeoutsBody::of(response, this.waiting.take(), this.limits.clone())))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => {
                let waiting = Waiting::begun(this.waiting, this.limits);
                waiting.poll(cx, this.limits, Phase::Head).map(|limit| {
                    this.answer.set(None);
                    tracing::debug!(%limit, "the upstream was given up on before its head came");
                    Err(limit.error().into())
                })
            }
        }
    }
}
